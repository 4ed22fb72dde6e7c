"""Telling others how a run goes: TensorBoard files, Weights & Biases; and how fast it goes."""

import abc
import contextlib
import copy
import dataclasses
import time
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from sae import showing
from sae.files import check_folder, local_path
from sae.progress import Labelled
from sae.runs import Run
from sae.trainer import devices
from sae.trainer.complaints import TrainingWarning
from sae.trainer.diagnostics import DENSITY_EDGES, QUANTILES
from sae.trainer.naming import run_names

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


@dataclasses.dataclass(frozen=True)
class Rates:
    """Since the record before: tokens a second (each counted once, however many autoencoders are trained on it), the
    share of the time that was spent waiting for data, and the share of the devices' peak in floating-point operations,
    None where that is not known."""

    tokens_per_second: float
    input_wait: float
    share_of_peak: float | None


class Report(abc.ABC):
    """Base of what `sae.train` tells of records, as it makes them. A subclass has `record`, and the others where it
    needs them.

    Example:
      >>> class Losses(sae.Report):
      ...     def record(self, records, rates):
      ...         print([round(record["loss"], 3) for record in records])
    """

    def begin(self, runs: Sequence[Run]) -> None:  # noqa: B027, nothing by default
        """Called before the first record with the runs, in the order of the records' `run`."""

    @abc.abstractmethod
    def record(self, records: Sequence[dict], rates: Rates) -> None:
        """Called with the records of all runs at one step."""

    def close(self) -> None:  # noqa: B027, nothing by default
        """Called when training ends, however it ends."""


def check_reports(reports: Sequence[Report]) -> None:
    """Raises ValueError for one that is no `Report`."""
    for report in reports:
        if not isinstance(report, Report):
            raise ValueError(f"reports are objects of subclasses of sae.Report, got {showing.kind(report)}")


class BarText(Report):
    """Shows L0, FVU, dead latents and waiting beside a progress bar, which is closed by its maker.

    Args:
      bar: one of tqdm, or another.
    """

    def __init__(self, bar: Labelled):
        self._bar = bar

    def record(self, records: Sequence[dict], rates: Rates) -> None:
        self._bar.set_postfix_str(in_words(records, rates), refresh=False)


def in_words(records: Sequence[dict], rates: Rates) -> str:
    """The metrics of the runs at one step; from the least to the greatest, where there are several.

    Example:
      >>> in_words([{"l0": 20.13, "fvu": 0.1239, "dead": 3}], Rates(1e5, 0.02, None))
      'L0 20.1, FVU 0.124, dead 3, waiting 2%'
    """
    parts = []
    for word, name, form in (("L0", "l0", "{:.1f}"), ("FVU", "fvu", "{:.3f}"), ("dead", "dead", "{}")):
        values = [record[name] for record in records]
        ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
        parts.append(f"{word} {'-'.join(ends)}")
    return ", ".join([*parts, f"waiting {rates.input_wait:.0%}"])


class Reports:
    """All reports of a run; a context manager that closes them. Of several processes the first has reports.

    A report that fails ends the run, whose checkpoints are kept. Once all steps are made and no checkpoint has them, it
    is a warning, since an error would lose the autoencoders.

    Args:
      reports: the user's.
      saved: whether the run has checkpoints.
    """

    def __init__(self, reports: Sequence[Report], saved: bool):
        self._reports = list(reports) if jax.process_index() == 0 else []
        self._saved, self._ended = saved, False

    def __enter__(self) -> "Reports":
        return self

    def begin(self, runs: Sequence[Run]) -> None:
        """Tells all which runs there are."""
        for report in self._reports:
            report.begin(runs)

    def append(self, report: Report) -> None:
        """Adds one that is told of records from now on."""
        self._reports.append(report)

    def record(self, records: Sequence[dict], rates: Rates, ended: bool) -> None:
        """Tells all of the records of a step.

        Args:
          ended: this is the last step.
        """
        self._ended = ended
        for report in self._reports:
            try:
                report.record(copy.deepcopy(records), rates)  # the run's own go to its history and checkpoints
            except Exception as error:
                self._failed(report, error)

    def __exit__(self, kind, error: BaseException | None, _) -> None:
        """Closes all, also where one fails; what has ended the run before that stays the error."""
        failure = None
        for report in self._reports:
            try:
                report.close()
            except Exception as own:
                if error is not None:
                    error.add_note(f"Closing {type(report).__name__} failed as well: {own!r}")
                elif failure is None:
                    failure = (report, own)
        if failure is not None:
            self._failed(*failure)

    def _failed(self, report: Report, error: Exception) -> None:
        if self._saved or not self._ended:
            raise error
        text = f"all steps are made, but {type(report).__name__} failed at the end: {error!r}"
        warnings.warn(text, TrainingWarning, stacklevel=4)


class Speedometer:
    """Measures how fast a run goes, without waiting for the device more than a step at a time."""

    def __init__(self, run: Run, flops: float, device: jax.Device):
        """flops: of a step of all runs, of a device (`Estimate.flops`)."""
        self._tokens, self._device = run.batch_size, device
        self._flops = flops * devices.passes(run, device)
        self._last = None
        self._began, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the next batch is waited for; what the device's work covers is no wait."""
        began = time.perf_counter()
        yield
        if self._last is None or self._last.is_ready():
            self._waited += time.perf_counter() - began

    def made(self, done: jax.Array) -> None:
        """A step was begun; the one before it is waited for, so that no more than two are under way."""
        if self._last is not None:
            self._last.block_until_ready()
        self._last = done
        self._steps += 1

    def since_last(self) -> Rates:
        now = time.perf_counter()
        seconds, steps = max(now - self._began, 1e-9), self._steps
        peak = devices.peak_flops(self._device)
        rates = Rates(
            steps * self._tokens / seconds,
            self._waited / seconds,
            None if peak is None else steps * self._flops / seconds / peak,
        )
        self._began, self._waited, self._steps = now, 0.0, 0
        return rates


def flat(record: dict) -> dict[str, float]:
    """The numbers of a record by names such as `gradients/W_enc`, `l0_quantiles/50`."""
    numbers = {}
    for name, value in record.items():
        if isinstance(value, dict):
            numbers |= {f"{name}/{part}": number for part, number in value.items()}
        elif name == "l0_quantiles":
            numbers |= {f"{name}/{100 * q:.0f}": number for q, number in zip(QUANTILES, value, strict=True)}
        elif isinstance(value, (int, float)) and name not in ("step", "run"):
            numbers[name] = value
    return numbers


class TensorBoard(Report):
    """Writes event files that TensorBoard reads, a folder for each run: `layer_3/resid_post/width_1536/target_l0_20`
    (`naming.run_names`). Its table of hyperparameters has the fields of each run.

    Args:
      folder: where the runs' folders go; `~` is the user's home.
      names: of the runs' folders, in place of those.

    Raises:
      ValueError: without the package tensorboardX, or when made with a folder that cannot be written; nothing is
        written before the first record.

    Example:
      >>> sae.train(runs, store, reports=[sae.TensorBoard("runs/tensorboard")])
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
                self._hyperparameters(number)
            writer = self._writers[number]
            for name, value in flat(record).items():
                writer.add_scalar(name, value, step)
            for name, value in dataclasses.asdict(rates).items():
                if value is not None:
                    writer.add_scalar(f"speed/{name}", value, step)
            _density(writer, record)
            writer.flush()

    def _hyperparameters(self, number: int) -> None:
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


def hyperparameters(run: Run) -> dict[str, float | bool | str]:
    """The fields of a run that have a value; several sites, or prefixes, as one text.

    Example:
      >>> hyperparameters(sae.gemma_scope(("a", "b"), 64, steps=10))["site"]
      'a, b'
    """
    values = {name: value for name, value in run.fields().items() if value not in (None, ())}
    plain = {name: ", ".join(map(str, v)) if isinstance(v, (tuple, list)) else v for name, v in values.items()}
    return {name: str(v) if isinstance(v, Fraction) else v for name, v in plain.items()}


def _density(writer: "SummaryWriter", record: dict) -> None:
    """The histogram of firing frequencies, by their edges: the first bin from 0, the last up to 1."""
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


class WeightsAndBiases(Report):
    """Sends records to Weights & Biases (the extra `wandb`).

    Args:
      arguments: what `wandb.init` takes: project, name, mode and the rest.

    Metrics are called by the runs' names (`naming.run_names`), whose fields are the project's config.

    Raises:
      ValueError: without the package wandb.
    """

    def __init__(self, **arguments):
        try:
            import wandb
        except ImportError:
            raise ValueError("wandb is not installed: pip install wandb") from None
        self._run, self._names = wandb.init(**arguments), None

    def begin(self, runs: Sequence[Run]) -> None:
        """Names the runs, and sends their fields."""
        # pyrefly: ignore[bad-assignment]  not None here
        self._names = run_names(runs)
        # pyrefly: ignore[bad-argument-type]  not None here
        self._run.config.update({n: hyperparameters(c) for n, c in zip(self._names, runs, strict=True)})

    def record(self, records: Sequence[dict], rates: Rates) -> None:
        speed = {f"speed/{name}": v for name, v in dataclasses.asdict(rates).items() if v is not None}
        names = [f"run_{r['run']}" if self._names is None else self._names[r["run"]] for r in records]
        numbers = {f"{of}/{n}": value for of, r in zip(names, records, strict=True) for n, value in flat(r).items()}
        self._run.log(numbers | speed, step=records[0]["step"])

    def close(self) -> None:
        self._run.finish()
