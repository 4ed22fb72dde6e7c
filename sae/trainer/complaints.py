"""What is off about a run, in words, with what to do: before its first step, while it trains, and at its end. Each part
speaks for itself; this file speaks for the run as a whole."""

from collections.abc import Mapping, Sequence

from sae.parts import Course
from sae.runs import Run


class TrainingWarning(UserWarning):
    """Something about a run is off; the message says what, and what to do.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("error", sae.TrainingWarning)  # the first warning ends the run
      ...     warnings.warn("the thresholds have not moved", sae.TrainingWarning)
      Traceback (most recent call last):
      sae.trainer.complaints.TrainingWarning: the thresholds have not moved
    """


def beforehand(run: Run) -> dict[str, str]:
    """Returns what a run's parts alone say will go wrong, by kind; empty when nothing does.

    Example:
      >>> list(beforehand(Run("s", 64, steps=100)))
      ['learning_rate_warmup', 'coefficient_warmup']
    """
    messages: dict[str, str] = {}
    for _, part in run.parts():
        messages |= part.beforehand(run.sizes)
    return messages


def complaints(run: Run, records: Sequence[Mapping]) -> dict[str, str]:
    """Returns what is wrong with a run by kind, from its records so far; empty when nothing is.

    At the end of a run everything is said, however short it was. Before, nothing is said in the first fifth, and before
    lambda has its full strength only what the architecture says.

    Args:
      run: the run.
      records: of this run alone.
    """
    if not records:
        return {}
    course = Course(records, run.sizes, run.warm_from)
    if not course.ended and course.last["step"] < run.steps // 5:
        return {}
    messages = dict(run.autoencoder.warnings(course))
    if course.settled:
        for name, part in run.parts():
            if name != "autoencoder":
                messages |= part.warnings(course)
        messages |= _of_dead(course)
    return messages


def _of_dead(course: Course) -> dict[str, str]:
    last, sizes = course.last, course.sizes
    # Before the end, only once silence has lasted as long as the run says; at the end, over what the run has seen.
    if last["dead"] <= 0.1 * sizes.width or not (course.ended or last["dead_tokens"] >= sizes.dead_tokens):
        return {}
    return {
        "dead": f"{last['dead']} of {sizes.width} latents ({last['dead'] / sizes.width:.0%}) are dead, silent for the "
        f"last {last['dead_tokens']:,} tokens: set or raise revival, lower the learning rate or the width, or train on "
        "more tokens"
    }
