"""What is told of runs that go on: their records, and warnings, each once."""

import warnings
from collections.abc import Sequence

import jax
import numpy as np

from sae.runs import Run
from sae.trainer import complaints
from sae.trainer.checkpoints import NOT_FINITE
from sae.trainer.complaints import TrainingWarning
from sae.trainer.reporting import Rates
from sae.trainer.sweeps import Sweep


def records_of(step: int, runs: Sequence[Run], sweep: Sweep) -> list[dict]:
    """The records of a step, plain numbers.

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


def complaints_of(runs: Sequence[Run], history: list[dict], done: int, rates: Rates) -> list[dict[str, str]]:
    """What is wrong with each run, by kind, and with all of them; looked for at every tenth record, and at the last."""
    ended = done == runs[0].steps
    if not ended and len(history) // len(runs) % 10:
        return []
    messages = [complaints.complaints(c, history[number :: len(runs)]) for number, c in enumerate(runs)]
    if rates.input_wait > 0.25 and done > 1:
        messages.append(
            {
                "input_wait": f"{rates.input_wait:.0%} of the time goes into waiting for data: train more autoencoders "
                "in one pass, or read from a faster disk"
            }
        )
    return messages


def warn(runs: Sequence[Run], found: Sequence[dict[str, str]], warned: set[tuple], stacklevel: int = 2) -> None:
    """Warns of what is wrong, each kind once for each run, and once for all runs of which the same is to be said. Entry
    i is of run i; one more is of all runs."""
    alike: dict[str, list[str]] = {}
    for number, of_run in enumerate(found):
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
