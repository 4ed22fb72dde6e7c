"""Telling others how a run goes: TensorBoard files, Weights & Biases; and how fast it goes."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import jax
from tensorboardX import SummaryWriter

from sae.recipes import TrainConfig
from sae.trainer import planning
from sae.trainer.diagnostics import DENSITY_EDGES, QUANTILES


@dataclasses.dataclass(frozen=True)
class Rates:
    """Since the record before: tokens a second (each counted once, however many autoencoders are trained on it), the
    share of the time that was spent waiting for data, and the share of the devices' peak in floating-point operations,
    None where that is not known."""

    tokens_per_second: float
    input_wait: float
    share_of_peak: float | None


class Report(Protocol):
    """What `sae.train` tells of records, as it makes them."""

    def record(self, records: Sequence[dict], rates: Rates) -> None:
        """Called with the records of all runs at one step."""

    def close(self) -> None:
        """Called when training ends, however it ends."""


class Speedometer:
    """Measures how fast a run goes, without waiting for the device more than a step at a time."""

    def __init__(self, config: TrainConfig, flops: float, device: jax.Device):
        """flops: of a step of all runs, of a device (`Plan.flops`)."""
        self._tokens, self._device = config.batch_size, device
        self._flops = flops * planning.passes(config, device)
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
        peak = planning.peak_flops(self._device)
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


class TensorBoard:
    """Writes event files that TensorBoard reads, a folder for each run: `run_0`, `run_1`, …. A `Report`."""

    def __init__(self, folder: str | Path):
        self._folder, self._writers = Path(folder), {}

    def record(self, records: Sequence[dict], rates: Rates) -> None:
        for record in records:
            number, step = record["run"], record["step"]
            if number not in self._writers:
                # What an interrupted run had written from here on, it writes again.
                self._writers[number] = SummaryWriter(str(self._folder / f"run_{number}"), purge_step=step)
            writer = self._writers[number]
            for name, value in flat(record).items():
                writer.add_scalar(name, value, step)
            for name, value in dataclasses.asdict(rates).items():
                if value is not None:
                    writer.add_scalar(f"speed/{name}", value, step)
            _density(writer, record)
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


def _density(writer: SummaryWriter, record: dict) -> None:
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


class WeightsAndBiases:
    """Sends records to Weights & Biases (the extra `wandb`). A `Report`.

    Args:
      arguments: what `wandb.init` takes: project, name, mode and the rest.
    """

    def __init__(self, **arguments):
        try:
            import wandb
        except ImportError:
            raise ValueError("wandb is not installed: pip install 'mishax-lite[wandb]'") from None
        self._run = wandb.init(**arguments)

    def record(self, records: Sequence[dict], rates: Rates) -> None:
        speed = {f"speed/{name}": v for name, v in dataclasses.asdict(rates).items() if v is not None}
        numbers = {f"run_{r['run']}/{name}": value for r in records for name, value in flat(r).items()}
        self._run.log(numbers | speed, step=records[0]["step"])

    def close(self) -> None:
        self._run.finish()
