"""What is told of runs while they train: their records, and warnings, each once."""

import warnings
from collections.abc import Sequence

import jax
import numpy as np

from sae.runs import Run
from sae.trainer import complaints
from sae.trainer.checkpoints import NOT_FINITE
from sae.trainer.complaints import TrainingWarning
from sae.trainer.speed import Rates, Speedometer
from sae.trainer.sweeps import Sweep

# A wait for data is worth a word once it was measured over so many steps and took so many seconds.
_STEPS_MEASURED, _SECONDS_WAITED = 50, 5.0


def records_of(step: int, runs: Sequence[Run], sweep: Sweep) -> list[dict]:
    """Returns the records of a step as plain numbers, in the order of the runs.

    Raises:
      ValueError: for a loss that is not finite.
    """
    records = []
    for number, (run, values) in enumerate(zip(runs, sweep.records(), strict=True)):
        about = {"step": step, "tokens": (step + 1) * run.batch_size, "run": number}
        about |= {"site": "+".join(run.sites), "l0_target": run.l0_target}
        records.append(about | jax.tree.map(lambda v: v.tolist(), values))
        if not np.isfinite(records[-1]["loss"]):
            raise ValueError(f"the loss of {run.site} is {records[-1]['loss']} at step {step}: {NOT_FINITE}")
    return records


def complaints_of(
    runs: Sequence[Run], history: list[dict], steps: int, rates: Rates, speed: Speedometer
) -> list[dict[str, str]]:
    """Returns what is wrong, by kind: an entry for each run, and one more for all runs where they wait for data.

    It looks at every tenth record, and at the last.

    Args:
      runs: the runs.
      history: all records so far.
      steps: how many steps are made.
      rates: since the record before.
      speed: measured since training began, or went on.
    """
    ended = steps == runs[0].steps
    if not ended and len(history) // len(runs) % 10:
        return []
    messages = [complaints.complaints(run, history[number :: len(runs)]) for number, run in enumerate(runs)]
    matters = speed.steps >= _STEPS_MEASURED and speed.waited >= _SECONDS_WAITED
    if matters and rates.input_wait > 0.25:
        messages.append(
            {
                "input_wait": f"{rates.input_wait:.0%} of the time goes into waiting for data: train more autoencoders "
                "in one pass, or read from a faster disk"
            }
        )
    return messages


def warn(runs: Sequence[Run], messages: Sequence[dict[str, str]], warned: set[tuple], stacklevel: int = 2) -> None:
    """Warns of what is wrong, each kind once for each run, and in one line for all runs with the same message.

    Args:
      runs: the runs.
      messages: by kind; entry i is about run i, and one more about all runs.
      warned: (number of the run, kind) of the warnings that were given; new ones are added.
      stacklevel: as for `warnings.warn`.
    """
    alike: dict[str, list[str]] = {}
    for number, of_run in enumerate(messages):
        for kind, text in of_run.items():
            if (number, kind) not in warned:
                warned.add((number, kind))
                alike.setdefault(text, []).extend([_name(runs[number])] if number < len(runs) else [])
    for text, names in alike.items():
        subject = "; ".join(names)
        if len(names) > 1:
            subject = f"all {len(names)} runs" if len(names) == len(runs) else f"{len(names)} runs ({subject})"
        warnings.warn(f"{subject}: {text}" if subject else text, TrainingWarning, stacklevel=stacklevel)


def _name(run: Run) -> str:
    into = f" to {run.site_out}" if run.transcodes else ""
    return f"{'+'.join(run.sites)}{into}, {run.width} latents, {run.aim}"
