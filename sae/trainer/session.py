"""One call of `sae.train`, from the checks before its first step to what it returns."""

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
from sae.trainer.preemption import Preempted, Preemption, StopRequest, watched
from sae.trainer.reporting import BarText, Report, Reports, check_reports
from sae.trainer.result import Result
from sae.trainer.speed import Speedometer
from sae.trainer.sweeps import Sweep
from sae.trainer.telling import complaints_of, records_of, warn

_END = 10  # the last record of a short run is over the last tenth of its steps


class Session:
    """One call of `sae.train`.

    When made, it checks what can be known beforehand and writes nothing. When entered, it has the states, from a
    checkpoint where one exists, and reads batches. Then come `steps`, `step` and `finish`, and outside, `result`.

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
        dims = {site: source.width(site) for run in runs for site in run.sites + run.sites_out}
        self._sites = sorted(dims)
        self._checkpoints = None
        if folder is not None:
            self._checkpoints = Checkpoints(folder, runs, source, save_every)
            self._checkpoints.check_space(estimating.state_bytes(runs, dims))
        self._estimate = estimating.estimate(runs, source, mesh, together=together)
        self._estimate.check()
        units = [
            {site: run.inputs.units(source, site, len(run.sites)) for site in run.sites + run.sites_out} for run in runs
        ]
        self._saved = Saved(history=[], passes=(), units=units, sink_norms=source.sink_limits())
        self._make = functools.partial(Sweep, self.runs, dims=dims, mesh=mesh, together=together)
        self._closing = contextlib.ExitStack()
        self._preemption = Preemption()
        self._warned: set[tuple] = set()
        self._steps_made, self._autoencoders = 0, []
        self._begin_anew = _begins_anew(runs, log_every)

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
        # Before the first step, so that a record that cannot be written is an error now.
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
        self.history, self._steps_made = list(self._saved.history), self._start
        first = self.runs[0]
        self._speed = Speedometer(first, self._estimate.flops, self._mesh.devices.flat[0])
        self._batches = self._source.batches(
            first.batch_size,
            sites=self._sites,
            seed=first.data_seed,
            start_step=self._start,
            sharding=NamedSharding(self._mesh, PartitionSpec("data")),
            # A store that grows goes on in the epochs that it had begun.
            passes=self._saved.passes,
        )
        closing.callback(self._batches.close)
        if self._start < first.steps:
            warn(self.runs, [complaints.beforehand(run) for run in self.runs], self._warned, stacklevel=5)
        say(self._progress, self._in_a_line())
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
        """Makes a step: a batch, an update of every run, and what is due after it.

        Returns:
          False where a signal has requested a stop.
        """
        try:
            self._preemption.begin_wait()
            with self._speed.waiting():
                batch = next(self._batches)
        except StopRequest:  # during the wait for a batch, however long
            if self._steps_made > self._start:
                self._save()
            return False
        finally:
            self._preemption.waits = False
        self._speed.count_step(self._sweep.update(batch))
        self._steps_made = step + 1
        return self._after(step)

    def _after(self, step: int) -> bool:
        """Makes records, checkpoints, reports and warnings of a step. Returns False where a stop was requested."""
        ended, records = self._steps_made == self.runs[0].steps, ()
        if step % self._log_every == 0 or ended:
            records = records_of(step, self.runs, self._sweep)
            rates = self._speed.since_last()
            self.history += records
        elif self._steps_made == self._begin_anew:
            self._sweep.empty_tallies()
        stop = self._checkpoints is not None and self._preemption.at(self._steps_made)
        if self._checkpoints is not None and (stop or ended or self._checkpoints.due(self._steps_made)):
            self._save()  # before reports are told, so that a report that fails loses nothing
        if records:
            # pyrefly: ignore[unbound-name]  set before it is read
            self._told.record(records, rates, ended)
            messages = complaints_of(self.runs, self.history, self._steps_made, rates, self._speed)
            warn(self.runs, messages, self._warned, stacklevel=6)
        return not stop

    def _save(self) -> None:
        now = dataclasses.replace(self._saved, history=list(self.history), passes=tuple(self._batches.passes))
        # pyrefly: ignore[missing-attribute]  not None here
        self._checkpoints.save(self._steps_made, self._sweep.states(), now)

    def finish(self) -> None:
        """Once all steps are made, releases the autoencoders and runs the finish of every run."""
        if self._steps_made == self.runs[0].steps:
            self._autoencoders = _finished(self._sweep.released(), self.runs, self._batches, self._mesh)

    def result(self) -> Result:
        """Returns the autoencoders and the history.

        Raises:
          Preempted: where a signal has requested a stop.
        """
        steps = self.runs[0].steps
        if self._preemption.signal is not None:
            # pyrefly: ignore[missing-attribute]  not None here
            name, folder, count = self._preemption.signal.name, self._checkpoints.folder, self._steps_made
            when = f"after step {count} of {steps}; saved in {folder}" if count else "before the first step"
            raise Preempted(f"asked to stop by {name} {when}", self._preemption.signal)
        autoencoders, last = self._autoencoders, {record["run"]: record for record in self.history}
        if self._mesh.shape["latent"] == 1 and jax.process_count() == 1:
            autoencoders = jax.tree.map(jnp.asarray, jax.device_get(autoencoders))
        released = [
            dataclasses.replace(autoencoder, info=with_result(info, last[number]))
            for number, (autoencoder, info) in enumerate(zip(autoencoders, self._infos, strict=True))
        ]
        return Result(released, self.history)

    def _in_a_line(self) -> str:
        """Returns in a line what training takes."""
        runs, tokens = showing.count(len(self.runs), "autoencoder"), showing.count(self._source.rows, "token")
        on, estimate = f", from step {self._start:,} on" if self._start else "", self._estimate
        return (
            f"train: {runs}, {estimate.steps:,} steps of {self.runs[0].batch_size:,} tokens{on}; "
            f"{estimate.epochs:.2f} epochs over {tokens} of {self._source.name}; {showing.size(estimate.read)} to "
            f"read, {showing.size(estimate.peak)} of each device"
        )


def _begins_anew(runs: Sequence[Run], log_every: int) -> int | None:
    """Returns how many steps a short run makes before its tally is emptied for the last record; None for other runs.

    Without it the last record of a short run, by which its end is judged, would be a mean over lambda's warm-up too.
    """
    steps, warm = runs[0].steps, max(run.warm_from for run in runs)
    before = (steps - 2) // log_every * log_every  # the step of the record before the last
    last = steps - max(1, steps // _END)
    return last if steps > 1 and before < warm and before + 1 < last else None


def _finished(autoencoders: list, runs: Sequence[Run], batches: Batches, mesh: Mesh) -> list:
    """Returns the autoencoders after the finish of each run, on the batches that would have come next."""
    counts = [[part.batches(run.sizes) for part in run.finish] for run in runs]
    kept = [[part.begin(one) for part in run.finish] for one, run in zip(autoencoders, runs, strict=True)]
    for number in range(max((count for of_run in counts for count in of_run), default=0)):
        batch = next(batches)
        for i, (one, run) in enumerate(zip(autoencoders, runs, strict=True)):
            values = tuple(batch[site] for site in run.sites)
            for j, part in enumerate(run.finish):
                if number < counts[i][j]:
                    kept[i][j] = part.see(kept[i][j], one, values, mesh)
    for i, run in enumerate(runs):
        for part, kept_by_part in zip(run.finish, kept[i], strict=True):
            autoencoders[i] = part.end(kept_by_part, autoencoders[i], run.sizes)
    return autoencoders


@contextlib.contextmanager
def _says_how_to_go_on(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds to an error that ends a run before its end where its last checkpoint is."""
    try:
        yield
    except BaseException as error:
        if checkpoints.restored and (steps := checkpoints.steps()):
            error.add_note(
                f"The checkpoint of step {steps[-1]} is kept in {checkpoints.folder}: the same call goes on from there."
            )
        raise


def _check(runs: list[Run], source: Source, mesh: Mesh) -> None:
    source.check_sites([site for run in runs for site in run.sites + run.sites_out])
    for field in ("steps", "batch_size", "data_seed"):
        values = sorted({getattr(run, field) for run in runs})
        if len(values) > 1:
            raise ValueError(f"runs that share batches must agree in {field}, got {values}: train them separately")
    for run in runs:
        if len(dims := sorted({source.width(site) for site in run.sites})) > 1:
            raise ValueError(
                f"a crosscoder's sites must have activations of one dim, got {', '.join(map(str, dims))} for "
                f"{', '.join(run.sites)}"
            )
    if source.growing and jax.process_count() > 1:
        raise ValueError(
            f"{source.name} is still growing, and {jax.process_count()} processes would not see the same rows of it: "
            "wait for the harvest to end, or train in one process"
        )
    estimating.check_mesh(runs, mesh)
    source.batches_per_pass(runs[0].batch_size)
