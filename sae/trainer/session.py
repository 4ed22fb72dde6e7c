"""One call of `sae.train`, from what is checked before its first step to what it returns."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae import showing
from sae.progress import Labelled, Progress, every, say
from sae.runs import Run
from sae.store.source import Batches, Source
from sae.trainer import complaints, estimating
from sae.trainer.checkpoints import Checkpoints, Saved
from sae.trainer.information import info_of, with_result
from sae.trainer.preemption import Asked, Preempted, Preemption, watched
from sae.trainer.reporting import BarText, Report, Reports, Speedometer, check_reports
from sae.trainer.result import Result
from sae.trainer.sweeps import Sweep
from sae.trainer.telling import complaints_of, records_of, warn


class Session:
    """Made, it has checked what can be known beforehand, and nothing is written. Entered, it has the states, from a
    checkpoint where there is one, and reads batches. Then `steps`, `step`, `finish`; after it was left, `result`.

    Attributes:
      runs: what is trained, on the same batches.
      history: the records so far.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        source: Source,
        mesh: Mesh,
        *,
        together: str,
        folder: str | Path | None,
        save_every: int,
        log_every: int,
        reports: Sequence[Report],
        progress: Progress,
    ):
        # pyrefly: ignore[bad-argument-type]  a list, from `runs_of`
        _check(runs, source, mesh)
        check_reports(reports)
        self.runs, self.history = list(runs), []
        self._source, self._mesh, self._log_every = source, mesh, log_every
        self._reports, self._progress = reports, progress
        widths = {site: source.width(site) for run in runs for site in run.sites + run.sites_out}
        self._sites = sorted(widths)
        self._checkpoints = None
        if folder is not None:
            self._checkpoints = Checkpoints(folder, runs, source, save_every)
            self._checkpoints.check_space(estimating.state_bytes(runs, widths))
        self._estimate = estimating.estimate(runs, source, mesh, together=together)
        self._estimate.check()
        units = [
            {site: run.inputs.units(source, site, len(run.sites)) for site in run.sites + run.sites_out} for run in runs
        ]
        self._saved = Saved(history=[], passes=(), units=units, sink_norms=source.sink_limits())
        self._make = functools.partial(Sweep, self.runs, widths=widths, mesh=mesh, together=together)
        self._closing = contextlib.ExitStack()
        self._preemption = Preemption()
        self._warned: set[tuple] = set()
        self._done, self._autoencoders = 0, []

    def __enter__(self) -> "Session":
        with contextlib.ExitStack() as closing:
            self._open(closing)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *error) -> bool | None:
        return self._closing.__exit__(*error)

    def _open(self, closing: contextlib.ExitStack) -> None:
        checkpoints, restored = self._checkpoints, None
        if checkpoints is not None:
            self._preemption = closing.enter_context(watched())
            closing.enter_context(_says_how_to_go_on(checkpoints))
        self._told = closing.enter_context(Reports(self._reports, checkpoints is not None))
        self._told.begin(self.runs)
        if checkpoints is not None:
            checkpoints.open()
            closing.callback(checkpoints.close)
            restored = checkpoints.restore(self._make(units=self._saved.units).structure())
        self._start, states, self._saved = restored or (0, None, self._saved)
        # Before the first step, so that what cannot be written is an error now.
        self._infos = [
            info_of(run, self._source, units, self._saved.sink_norms)
            for run, units in zip(self.runs, self._saved.units, strict=True)
        ]
        self._sweep = self._make(units=self._saved.units)
        self._sweep.check_releases()
        if states is None:
            self._sweep.begin()
        else:
            self._sweep.load(states)
        self.history, self._done = list(self._saved.history), self._start
        first = self.runs[0]
        self._speed = Speedometer(first, self._estimate.flops, self._mesh.devices.flat[0])
        self._batches = self._source.batches(
            first.batch_size,
            sites=self._sites,
            seed=first.data_seed,
            start_step=self._start,
            sharding=NamedSharding(self._mesh, PartitionSpec("data")),
            # A store that grows goes on in the passes that it had begun.
            passes=self._saved.passes,
        )
        closing.callback(self._batches.close)
        if self._start < first.steps:
            warn(self.runs, [complaints.beforehand(run) for run in self.runs], self._warned, stacklevel=5)
        say(self._progress, self._takes())
        self._bar = self._progress(
            range(self._start, first.steps), total=first.steps, initial=self._start, desc="train"
        )
        if isinstance(self._bar, Labelled):
            self._told.append(BarText(self._bar))
            closing.callback(self._bar.close)

    def steps(self) -> Iterator[int]:
        """The steps that are still to be made."""
        return every(self._bar, range(self._start, self.runs[0].steps))

    def step(self, step: int) -> bool:
        """Makes a step: a batch, an update of every run, and what is due after it. False where it was asked to stop."""
        try:
            self._preemption.begin_wait()
            with self._speed.waiting():
                batch = next(self._batches)
        except Asked:  # while it waited for a batch, for however long
            if self._done > self._start:
                self._save()
            return False
        finally:
            self._preemption.waits = False
        self._speed.made(self._sweep.update(batch))
        self._done = step + 1
        return self._after(step)

    def _after(self, step: int) -> bool:
        """Records, checkpoints, reports and warnings of a step. False where it was asked to stop."""
        ended, records = self._done == self.runs[0].steps, ()
        if step % self._log_every == 0 or ended:
            records = records_of(step, self.runs, self._sweep)
            rates = self._speed.since_last()
            self.history += records
        stop = self._checkpoints is not None and self._preemption.at(self._done)
        if self._checkpoints is not None and (stop or ended or self._checkpoints.due(self._done)):
            self._save()  # before reports are told, so that one that fails loses nothing
        if records:
            # pyrefly: ignore[unbound-name]  set before it is read
            self._told.record(records, rates, ended)
            warn(self.runs, complaints_of(self.runs, self.history, self._done, rates), self._warned, stacklevel=6)
        return not stop

    def _save(self) -> None:
        now = dataclasses.replace(self._saved, history=list(self.history), passes=tuple(self._batches.passes))
        # pyrefly: ignore[missing-attribute]  not None here
        self._checkpoints.save(self._done, self._sweep.states(), now)

    def finish(self) -> None:
        """Once all steps are made: releases the autoencoders, and does what the runs have for the end."""
        if self._done == self.runs[0].steps:
            self._autoencoders = _finished(self._sweep.released(), self.runs, self._batches, self._mesh)

    def result(self) -> Result:
        """What was trained.

        Raises:
          Preempted: where it was asked to stop.
        """
        steps = self.runs[0].steps
        if self._preemption.signal is not None:
            # pyrefly: ignore[missing-attribute]  not None here
            name, folder = self._preemption.signal.name, self._checkpoints.folder
            what = f"after step {self._done} of {steps}; saved in {folder}" if self._done else "before the first step"
            raise Preempted(f"asked to stop by {name} {what}", self._preemption.signal)
        autoencoders, last = self._autoencoders, {record["run"]: record for record in self.history}
        if self._mesh.shape["latent"] == 1 and jax.process_count() == 1:
            autoencoders = jax.tree.map(jnp.asarray, jax.device_get(autoencoders))
        released = [
            dataclasses.replace(autoencoder, info=with_result(info, last[number]))
            for number, (autoencoder, info) in enumerate(zip(autoencoders, self._infos, strict=True))
        ]
        return Result(released, self.history)

    def _takes(self) -> str:
        """What it takes, in a line."""
        runs, tokens = showing.count(len(self.runs), "autoencoder"), showing.count(self._source.rows, "token")
        on, estimate = f", from step {self._start:,} on" if self._start else "", self._estimate
        return (
            f"train: {runs}, {estimate.steps:,} steps of {self.runs[0].batch_size:,} tokens{on}; "
            f"{estimate.epochs:.2f} passes over {tokens} of {self._source.name}; {showing.size(estimate.read)} to "
            f"read, {showing.size(estimate.peak)} of each device"
        )


def _finished(autoencoders: list, runs: Sequence[Run], batches: Batches, mesh: Mesh) -> list:
    """The autoencoders after what each run has for the end, on the batches that would have come next."""
    wanted = [[part.batches(run.sizes) for part in run.finish] for run in runs]
    kept = [[part.begin(one) for part in run.finish] for one, run in zip(autoencoders, runs, strict=True)]
    for number in range(max((count for counts in wanted for count in counts), default=0)):
        batch = next(batches)
        for i, (one, run) in enumerate(zip(autoencoders, runs, strict=True)):
            values = tuple(batch[site] for site in run.sites)
            for j, part in enumerate(run.finish):
                if number < wanted[i][j]:
                    kept[i][j] = part.see(kept[i][j], one, values, mesh)
    for i, run in enumerate(runs):
        for part, kept_by_part in zip(run.finish, kept[i], strict=True):
            autoencoders[i] = part.end(kept_by_part, autoencoders[i], run.sizes)
    return autoencoders


@contextlib.contextmanager
def _says_how_to_go_on(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds to whatever ends a run before its end what is kept of the run."""
    try:
        yield
    except BaseException as error:
        if checkpoints.restored and (steps := checkpoints.steps()):
            error.add_note(
                f"The checkpoint of step {steps[-1]} is kept in {checkpoints.folder}: the same call goes on from there."
            )
        raise


def _check(runs: list[Run], store: Source, mesh: Mesh) -> None:
    store.check_sites([site for c in runs for site in c.sites + c.sites_out])
    for field in ("steps", "batch_size", "data_seed"):
        values = sorted({getattr(c, field) for c in runs})
        if len(values) > 1:
            raise ValueError(f"runs that share batches must agree in {field}, got {values}: train them separately")
    for c in runs:
        if len(widths := sorted({store.width(site) for site in c.sites})) > 1:
            raise ValueError(f"a crosscoder's sites must be of one width, got widths {widths} of {', '.join(c.sites)}")
    if store.growing and jax.process_count() > 1:
        raise ValueError(
            f"{store.name} is still growing, and {jax.process_count()} processes would not see the same of it: wait "
            "for the harvest to end, or train in one process"
        )
    estimating.check_mesh(runs, mesh)
    store.batches_per_pass(runs[0].batch_size)
