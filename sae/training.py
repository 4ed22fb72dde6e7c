"""`sae.train`: autoencoders from a store, several in one pass over it, stopped and resumed at will."""

import contextlib
import dataclasses
import functools
import operator
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae import showing
from sae.progress import Progress, chosen, every, say
from sae.recipes import TrainConfig
from sae.store.source import Source
from sae.trainer import activity, complaints, planning
from sae.trainer.checkpoints import NOT_FINITE, Checkpoints, Saved
from sae.trainer.complaints import TrainingWarning
from sae.trainer.information import info_of, with_result
from sae.trainer.preemption import Asked, Preempted, Preemption, watched
from sae.trainer.reporting import BarText, Rates, Report, Reports, Speedometer
from sae.trainer.result import Result
from sae.trainer.sweeps import Sweep
from sae.trainer.units import units_of


def train(
    config: TrainConfig | Sequence[TrainConfig],
    store: Source,
    mesh: Mesh | None = None,
    *,
    together: str = "side_by_side",
    checkpoint_dir: str | Path | None = None,
    save_every: int = 200,
    log_every: int = 50,
    reports: Sequence[Report] = (),
    progress: Progress | bool | None = None,
) -> Result:
    """Trains one autoencoder or several, on the same batches of one pass over the store.

    Args:
      config: one config, or several that agree in steps, batch_size and data_seed. Sites, widths, targets, learning
        rates, seeds and the rest may differ.
      store: has the configs' sites; or what `sae.stream` returns.
      mesh: with axes `data` and `latent`; all devices along `data` by default.
      together: how runs of one shape share a step: "side_by_side", one after another; "vmapped" or "scanned", stacked
        in one program. The first is fastest on CPU (`experiments/benchmarks/sweep_cost.py`); stacking saves launches
        where autoencoders are small.
      checkpoint_dir: where given, the run is saved there and goes on from what is there, to the same result as if it
        had not been stopped; on another mesh, to the same up to rounding. SIGTERM and SIGHUP save and raise
        `Preempted`; without it, they do what they always do. An error or Ctrl-C keeps what was saved.
      save_every: steps between checkpoints; the last and the best (`trainer.checkpoints.Checkpoints`) are kept.
      log_every: steps between records of the history.
      reports: told of every record, for example `sae.TensorBoard(folder)`.
      progress: by default a bar with L0, FVU, dead latents and the share of time spent waiting for data (as of the last
        record), what the run takes before it and a table of the runs after it, on standard error, where that is a
        terminal or this is a notebook. True shows them everywhere, False nowhere. Or a function that is called with the
        steps to come, and `total`, `initial` and `desc`, as tqdm is.

    Returns:
      The pair `autoencoders, history` (`sae.trainer.result.Result`, whose `table()` shows both). The autoencoders are
      folded to raw activations, in the order of the configs; where latents are split over the mesh, they stay split;
      `largest` has the largest activation of each latent over the batches that come after the last step
      (`sae.trainer.activity`). The history is a list of dicts: for each config one at the first step, at every
      `log_every`th and at the last, with means over the batches since the one before:

      - `run` (the number of the config), `site`, `l0_target`, `step`, `tokens`;
      - `loss`, its parts `reconstruction` and `penalty`, in scaled units, and `coefficient`, lambda; `fvu`;
      - of the latents, `l0`, `l0_quantiles` over tokens (5%, 25%, 50%, 75%, 95%), `dead`: how many were silent for the
        last `dead_tokens` tokens (as many as the config says, or half of what the run has seen), and `density`: how
        many fire with frequencies between `diagnostics.DENSITY_EDGES`;
      - of the thresholds, `threshold_mean`, `threshold_moved` (mean |log(theta / theta_0)|), and `window`, the share of
        pre-activations with a straight-through gradient;
      - `gradients`: their norms.

    Raises:
      ValueError: for a site the store has not, configs that cannot share batches, a mesh that the width or the batch
        cannot be split over, more memory than there is, a checkpoint of another run or of another source, a folder that
        cannot be written, or a loss that is not finite. All but the last before the first step.
      OSError: when the disk has no room for the checkpoints; before the first step, as far as that can be known.
      Preempted: when SIGTERM or SIGHUP came; what was trained is saved.

    Warns:
      TrainingWarning: in words, each thing once for each run: warm-ups longer than the run, thresholds that do not
        move, an L0 far off its target, an FVU that diverges, dead latents, steps that wait for data.
    """
    configs = planning.configs_of(config, "sae.train")
    if not hasattr(store, "batches"):
        raise ValueError(
            "sae.train takes a store or a stream to read from: what sae.harvest or sae.stream returns, or "
            f"sae.ActivationStore.open(path); got {showing.kind(store)}"
        )
    progress = chosen(progress if progress is not None or jax.process_index() == 0 else False)
    mesh = planning.default_mesh() if mesh is None else mesh
    _check(configs, store, mesh)
    configs = [c.resolve() for c in configs]
    save_every, log_every = _steps_between(save_every=save_every, log_every=log_every)
    sites = sorted({site for c in configs for site in c.sites + c.sites_out})
    widths = {site: store.width(site) for site in sites}
    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = Checkpoints(checkpoint_dir, configs, store, save_every)
        checkpoints.check_space(planning.state_bytes(configs, widths))
    plan = planning.plan(configs, widths, mesh, rows=store.rows, together=together)
    plan.check()
    started = Saved(
        history=[],
        passes=(),
        units=[
            {site: units_of(store, site, c.centre, len(c.sites)) for site in c.sites + c.sites_out} for c in configs
        ],
        sink_norms=store.sink_limits(),
    )
    with contextlib.ExitStack() as closing:
        preemption = Preemption()
        if checkpoints is not None:
            preemption = closing.enter_context(watched())
            closing.enter_context(_says_how_to_go_on(checkpoints))
        told = closing.enter_context(Reports(reports, checkpoints is not None))
        told.begin(configs)
        restored = None
        make = functools.partial(Sweep, configs, widths=widths, mesh=mesh, together=together)
        if checkpoints is not None:
            checkpoints.open()
            closing.callback(checkpoints.close)
            restored = checkpoints.restore(make(units=started.units).structure())
        start, states, saved = restored or (0, None, started)
        # Before the first step, so that what cannot be written is an error now.
        infos = [info_of(c, store, units, saved.sink_norms) for c, units in zip(configs, saved.units, strict=True)]
        sweep = make(units=saved.units)
        if states is None:
            sweep.begin()
        else:
            sweep.load(states)
        del states, restored
        history = list(saved.history)
        first = configs[0]
        speed = Speedometer(first, plan.flops, mesh.devices.flat[0])
        # A stream from the model has one order; a store that grows goes on in the passes that it had begun.
        order = {"passes": saved.passes} if saved.passes else {}
        split = NamedSharding(mesh, PartitionSpec("data"))
        batches = store.batches(
            first.batch_size, sites=sites, seed=first.data_seed, start_step=start, sharding=split, **order
        )
        closing.callback(batches.close)
        warned: set[tuple] = set()
        if start < first.steps:
            _warn(configs, [complaints.beforehand(c) for c in configs], warned)

        def save(done: int) -> None:
            now = dataclasses.replace(saved, history=list(history), passes=tuple(getattr(batches, "passes", ())))
            checkpoints.save(done, sweep.states(), now)

        say(progress, _takes(configs, plan, store, start))
        steps = progress(range(start, first.steps), total=first.steps, initial=start, desc="train")
        if hasattr(steps, "set_postfix_str"):
            told.append(BarText(steps))
            closing.callback(steps.close)
        done = start
        try:
            for step in every(steps, range(start, first.steps)):
                preemption.begin_wait()
                with speed.waiting():
                    batch = next(batches)
                preemption.waits = False
                speed.made(sweep.update(batch))
                done = step + 1
                records = ()
                if step % log_every == 0 or done == first.steps:
                    records = _records(step, configs, sweep)
                    rates = speed.since_last()
                    history += records
                stop = checkpoints is not None and preemption.at(done)
                if checkpoints is not None and (stop or done == first.steps or checkpoints.due(done)):
                    save(done)  # before reports are told, so that one that fails loses nothing
                if records:
                    told.record(records, rates, done == first.steps)
                    _warn(configs, _complaints(configs, history, done, rates), warned)
                if stop:
                    break
        except Asked:  # while it waited for a batch, for however long
            if done > start:
                save(done)
        finally:
            preemption.waits = False
        released, largest = [], []
        if done == first.steps:
            released = sweep.released()
            largest = activity.largest_activations(released, configs, batches, mesh)
    if preemption.signal is not None:
        name, what = preemption.signal.name, f"after step {done} of {first.steps}; saved in {checkpoint_dir}"
        raise Preempted(f"asked to stop by {name} {what if done else 'before the first step'}", preemption.signal)
    if mesh.shape["latent"] == 1 and jax.process_count() == 1:
        released = jax.tree.map(jnp.asarray, jax.device_get(released))
    last = {record["run"]: record for record in history}
    released = [
        dataclasses.replace(autoencoder, info=with_result(info, last[number]), largest=record)
        for number, (autoencoder, info, record) in enumerate(zip(released, infos, largest, strict=True))
    ]
    result = Result(released, history)
    say(progress, result.table())
    return result


def _takes(configs: list[TrainConfig], plan: planning.Plan, store: Source, start: int) -> str:
    """What a run takes, in a line."""
    runs, tokens = showing.count(len(configs), "autoencoder"), showing.count(store.rows, "token")
    on = f", from step {start:,} on" if start else ""
    return (
        f"train: {runs}, {plan.steps:,} steps of {configs[0].batch_size:,} tokens{on}; {plan.passes:.2f} passes over "
        f"{tokens} of {store.name}; {showing.size(plan.read)} to read, {showing.size(plan.peak)} of each device"
    )


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


def _records(step: int, configs: Sequence[TrainConfig], sweep: Sweep) -> list[dict]:
    """The records of a step, plain numbers.

    Raises:
      ValueError: for a loss that is not finite.
    """
    records = []
    for number, (config, values) in enumerate(zip(configs, sweep.records(), strict=True)):
        about = {"step": step, "tokens": (step + 1) * config.batch_size, "run": number}
        about |= {"site": "+".join(config.sites), "l0_target": config.l0_target}
        records.append(about | jax.tree.map(lambda v: v.tolist(), values))
        if not np.isfinite(records[-1]["loss"]):
            raise ValueError(f"the loss of {config.site} is {records[-1]['loss']} at step {step}: {NOT_FINITE}")
    return records


def _complaints(configs: Sequence[TrainConfig], history: list[dict], done: int, rates: Rates) -> list[dict[str, str]]:
    """What is wrong with each run, by kind, and with all of them; looked for at every tenth record, and at the last."""
    ended = done == configs[0].steps
    if not ended and len(history) // len(configs) % 10:
        return []
    found = [complaints.complaints(c, history[number :: len(configs)]) for number, c in enumerate(configs)]
    if rates.input_wait > 0.25 and done > 1:
        found.append(
            {
                "input_wait": f"{rates.input_wait:.0%} of the time goes into waiting for data: train more autoencoders "
                "in one pass, or read from a faster disk"
            }
        )
    return found


def _warn(configs: Sequence[TrainConfig], found: Sequence[dict[str, str]], warned: set[tuple]) -> None:
    """Warns of what is wrong, each kind once for each run, and once for all runs of which the same is to be said. Entry
    i is of run i; one more is of all runs."""
    alike: dict[str, list[str]] = {}
    for number, of_run in enumerate(found):
        for kind, text in of_run.items():
            if (number, kind) not in warned:
                warned.add((number, kind))
                alike.setdefault(text, []).extend([_name(configs[number])] if number < len(configs) else [])
    for text, names in alike.items():
        subject = "; ".join(names)
        if len(names) > 1:
            subject = f"all {len(names)} runs" if len(names) == len(configs) else f"{len(names)} runs ({subject})"
        warnings.warn(f"{subject}: {text}" if subject else text, TrainingWarning, stacklevel=3)


def _steps_between(**numbers: int) -> list[int]:
    """Numbers of steps by the names of arguments, plain.

    Raises:
      ValueError: for one that is no whole number from 1 on.
    """
    for name, number in numbers.items():
        try:
            numbers[name] = operator.index(number)
        except TypeError:
            raise ValueError(f"{name} must be a whole number of steps, got {number!r}") from None
        if numbers[name] < 1:
            raise ValueError(f"{name} must be at least 1 step, got {number}")
    return list(numbers.values())


def _name(config: TrainConfig) -> str:
    into = f" to {config.site_out}" if config.transcodes else ""
    return f"{'+'.join(config.sites)}{into}, {config.width} latents, {config.aim}"


def _check(configs: list[TrainConfig], store: Source, mesh: Mesh) -> None:
    store.check_sites([site for c in configs for site in c.sites + c.sites_out])
    for field in ("steps", "batch_size", "data_seed"):
        values = sorted({getattr(c, field) for c in configs})
        if len(values) > 1:
            raise ValueError(f"runs that share batches must agree in {field}, got {values}: train them separately")
    for c in configs:
        if len(found := sorted({store.width(site) for site in c.sites})) > 1:
            raise ValueError(f"a crosscoder's sites must be of one width, got widths {found} of {', '.join(c.sites)}")
    if getattr(store, "growing", False) and jax.process_count() > 1:
        raise ValueError(
            f"{store.name} is still growing, and {jax.process_count()} processes would not see the same of it: wait "
            "for the harvest to end, or train in one process"
        )
    planning.check_mesh(configs, mesh)
    store.batches_per_pass(configs[0].batch_size)
