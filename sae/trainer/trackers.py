"""Reports for programs that show runs: TensorBoard files, Weights & Biases."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.files import check_folder, local_path
from sae.runs import Run
from sae.trainer.diagnostics import DENSITY_EDGES, QUANTILES
from sae.trainer.naming import run_names
from sae.trainer.reporting import Report
from sae.trainer.speed import Rates

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_NOT_SHOWN = ("step", "run", "batches")  # where a record belongs, and not what was measured


class TensorBoard(Report):
    """Writes event files that TensorBoard reads, in a folder for each run: `layer_3/resid_post/width_1536/target_l0_20`
    (`naming.run_names`). Its table of hyperparameters has the fields of each run.

    Args:
      folder: where the runs' folders go; `~` is the user's home.
      names: of the runs' folders, in place of the names above.

    Raises:
      ValueError: without the package tensorboardX, or when made with a folder that cannot be written; nothing is
        written before the first record.

    Example:
      >>> reports = [sae.TensorBoard("runs/tensorboard")]  # sae.train(runs, store, reports=reports)
    """

    def __init__(self, folder: str | Path, names: Sequence[str] | None = None):
        try:
            import tensorboardX  # here, so that training by itself does not need it
        except ImportError:
            raise ValueError(
                "TensorBoard's files need the package tensorboardX: pip install tensorboardX (the extra `tensorboard`)"
            ) from None
        self._make = tensorboardX.SummaryWriter
        self._folder, self._writers = local_path(folder), {}
        check_folder(self._folder, "event files")
        self._given, self._names, self._runs = names, None, ()
        self._ends = {}  # what says that a run has ended, for its file

    def begin(self, runs: Sequence[Run]) -> None:
        """Names the runs.

        Raises:
          ValueError: for another number of names than of runs.
        """
        if self._given is not None and len(self._given) != len(runs):
            raise ValueError(f"TensorBoard has {len(self._given)} names for {len(runs)} runs: give one for each")
        # pyrefly: ignore[bad-assignment]  empty before the first
        self._runs = tuple(runs)
        # pyrefly: ignore[bad-assignment]  not None here
        self._names = run_names(runs) if self._given is None else list(self._given)

    def record(self, records: Sequence[dict], rates: Rates) -> None:
        for record in records:
            number, step = record["run"], record["step"]
            if number not in self._writers:
                name = f"run_{number}" if self._names is None else self._names[number]
                # What an interrupted run had written from here on, it writes again.
                self._writers[number] = self._make(str(self._folder / name), purge_step=step)
                self._write_hyperparameters(number)
            writer = self._writers[number]
            for name, value in flat(record).items():
                writer.add_scalar(name, value, step)
            for name, value in dataclasses.asdict(rates).items():
                if value is not None:
                    writer.add_scalar(f"speed/{name}", value, step)
            _write_density(writer, record)
            writer.flush()

    def _write_hyperparameters(self, number: int) -> None:
        """Writes a run's fields to its own folder: `SummaryWriter.add_hparams` makes another folder for it."""
        from tensorboardX.summary import hparams

        if self._runs:
            metrics = dict.fromkeys(("loss", "fvu", "l0", "dead"))
            *begun, self._ends[number] = hparams(hyperparameters(self._runs[number]), metrics)
            for summary in begun:
                self._writers[number].file_writer.add_summary(summary)

    def close(self) -> None:
        for number, writer in self._writers.items():
            if number in self._ends:
                writer.file_writer.add_summary(self._ends[number])
            writer.close()
        self._writers, self._ends = {}, {}


class WeightsAndBiases(Report):
    """Sends records to Weights & Biases (the extra `wandb`).

    Metrics are called by the runs' names (`naming.run_names`); the project's config has the fields of each run.

    Args:
      **arguments: what `wandb.init` takes: project, name, mode and the rest.

    Raises:
      ValueError: without the package wandb.

    Example:
      >>> issubclass(sae.WeightsAndBiases, sae.Report)  # for sae.train(runs, store, reports=[...])
      True
      >>> sae.WeightsAndBiases(project="latents")  # doctest: +SKIP
    """

    def __init__(self, **arguments):
        try:
            import wandb
        except ImportError:
            raise ValueError("wandb is not installed: pip install wandb (the extra `wandb`)") from None
        self._run: Any = wandb.init(**arguments)
        self._names: list[str] | None = None

    def begin(self, runs: Sequence[Run]) -> None:
        """Names the runs, and sends their fields."""
        self._names = names = run_names(runs)
        self._run.config.update({name: hyperparameters(run) for name, run in zip(names, runs, strict=True)})

    def record(self, records: Sequence[dict], rates: Rates) -> None:
        speed = {f"speed/{name}": value for name, value in dataclasses.asdict(rates).items() if value is not None}
        numbers = {}
        for record in records:
            name = f"run_{record['run']}" if self._names is None else self._names[record["run"]]
            numbers |= {f"{name}/{metric}": value for metric, value in flat(record).items()}
        self._run.log(numbers | speed, step=records[0]["step"])

    def close(self) -> None:
        self._run.finish()


def flat(record: dict) -> dict[str, float]:
    """Returns the numbers of a record by names such as `gradients/W_enc` and `l0_quantiles/50`.

    Example:
      >>> flat({"step": 50, "run": 0, "l0": 20.5, "gradients": {"W_enc": 0.25}})
      {'l0': 20.5, 'gradients/W_enc': 0.25}
    """
    numbers = {}
    for name, value in record.items():
        if isinstance(value, dict):
            numbers |= {f"{name}/{part}": number for part, number in value.items()}
        elif name == "l0_quantiles":
            numbers |= {f"{name}/{100 * q:.0f}": number for q, number in zip(QUANTILES, value, strict=True)}
        elif isinstance(value, (int, float)) and name not in _NOT_SHOWN:
            numbers[name] = value
    return numbers


def hyperparameters(run: Run) -> dict[str, float | bool | str]:
    """Returns the fields of a run that have a value; several sites, or prefixes, as one text.

    Example:
      >>> hyperparameters(sae.gemma_scope(("a", "b"), 64, steps=10))["site"]
      'a, b'
    """
    values = {name: value for name, value in run.fields().items() if value not in (None, ())}
    plain = {name: ", ".join(map(str, v)) if isinstance(v, (tuple, list)) else v for name, v in values.items()}
    return {name: str(v) if isinstance(v, Fraction) else v for name, v in plain.items()}


def _write_density(writer: "SummaryWriter", record: dict) -> None:
    """Writes the histogram of firing frequencies, by their edges: the first bin from 0, the last up to 1."""
    counts = record["density"]
    writer.add_histogram_raw(
        "density",
        min=0.0,
        max=1.0,
        num=sum(counts),
        sum=0.0,
        sum_squares=0.0,
        bucket_limits=[*DENSITY_EDGES, 1.1],
        bucket_counts=counts,
        global_step=record["step"],
    )
