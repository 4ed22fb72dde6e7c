"""`sae.train`: autoencoders from a store, several in one pass over it, stopped and resumed at will."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae.autoencoder import JumpReLU
from sae.crosscoder import Crosscoder
from sae.recipes import TrainConfig
from sae.store.source import Source
from sae.trainer import diagnostics, planning
from sae.trainer.checkpoints import NOT_FINITE, Checkpoints, Saved
from sae.trainer.information import info_of, sink_norms
from sae.trainer.preemption import Preempted, watched
from sae.trainer.reporting import Report, Speedometer
from sae.trainer.sweeps import Sweep
from sae.trainer.units import units_of


class TrainingWarning(UserWarning):
    """Something about a run is off; the message says what, and what to do."""


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
    progress: Callable[..., Iterable] = lambda steps, **_: steps,
) -> tuple[list[JumpReLU | Crosscoder], list[dict]]:
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
        had not been stopped; on another mesh, to the same up to rounding. SIGTERM saves and raises `Preempted`; without
        it, SIGTERM does what it always does.
      save_every: steps between checkpoints; the last and the best (`trainer.checkpoints.Checkpoints`) are kept.
      log_every: steps between records of the history.
      reports: told of every record, for example `sae.TensorBoard(folder)`.
      progress: called with the steps to come, and `total`, `initial` and `desc`, as tqdm is.

    Returns:
      The autoencoders, folded to raw activations, in the order of the configs; where latents are split over the mesh,
      they stay split. And the history, a list of dicts: for each config one at the first step, at every `log_every`th
      and at the last, with means over the batches since the one before:

      - `run` (the number of the config), `site`, `l0_target`, `step`, `tokens`;
      - `loss`, its parts `reconstruction` and `penalty`, in scaled units, and `coefficient`, lambda; `fvu`;
      - of the latents, `l0`, `l0_quantiles` over tokens (5%, 25%, 50%, 75%, 95%), `dead`, and `density`: how many fire
        with frequencies between `diagnostics.DENSITY_EDGES`;
      - of the thresholds, `threshold_mean`, `threshold_moved` (mean |log(theta / theta_0)|), and `window`, the share of
        pre-activations with a straight-through gradient;
      - `gradients`: their norms.

    Raises:
      ValueError: for a site the store has not, configs that cannot share batches, a mesh that the width or the batch
        cannot be split over, more memory than there is, a checkpoint of another run, or a loss that is not finite.
      Preempted: when SIGTERM came; what was trained is saved.

    Warns:
      TrainingWarning: in words, when thresholds do not move, L0 stays off its target, latents die, or steps wait for
        data.
    """
    configs = [config] if isinstance(config, TrainConfig) else list(config)
    mesh = mesh or Mesh(np.asarray(jax.devices()).reshape(-1, 1), ("data", "latent"))
    _check(configs, store, mesh)
    sites = sorted({site for c in configs for site in c.sites + c.sites_out})
    widths = {site: store.width(site) for site in sites}
    plan = planning.plan(configs, widths, mesh, rows=store.rows, together=together)
    plan.check()
    if min(save_every, log_every) < 1:
        raise ValueError(f"save_every and log_every count steps from 1, got {save_every} and {log_every}")
    started = Saved(
        history=[],
        passes=(),
        units=[
            {site: units_of(store, site, c.centre, len(c.sites)) for site in c.sites + c.sites_out} for c in configs
        ],
        sink_norms=sink_norms(store),
    )
    with contextlib.ExitStack() as closing:
        reports = list(reports) if jax.process_index() == 0 else []
        for report in reports:
            closing.callback(report.close)
        checkpoints = found = preemption = None
        if checkpoint_dir is not None:
            checkpoints = Checkpoints(Path(checkpoint_dir), configs, store, save_every)
            closing.callback(checkpoints.close)
            preemption = closing.enter_context(watched())
        make = functools.partial(Sweep, configs, widths=widths, mesh=mesh, together=together)
        if checkpoints is not None:
            found = checkpoints.restore(make(units=started.units).structure())
        start, states, saved = found or (0, None, started)
        sweep = make(units=saved.units)
        if states is None:
            sweep.begin()
        else:
            sweep.load(states)
        del states, found
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
        for step in progress(range(start, first.steps), total=first.steps, initial=start, desc="train"):
            with speed.waiting():
                batch = next(batches)
            speed.made(sweep.update(batch))
            done = step + 1
            if step % log_every == 0 or done == first.steps:
                history += _record(step, configs, sweep, history, reports, speed)
            if checkpoints is None:
                continue
            stop = preemption.at(done)
            if stop or done == first.steps or checkpoints.due(done):
                now = dataclasses.replace(saved, history=list(history), passes=tuple(getattr(batches, "passes", ())))
                checkpoints.save(done, sweep.states(), now)
            if stop:
                checkpoints.wait()
                raise Preempted(
                    f"asked to stop by SIGTERM after step {done} of {first.steps}; saved in {checkpoint_dir}"
                )
    released = [
        dataclasses.replace(autoencoder, info=info_of(c, store, own, saved.sink_norms))
        for autoencoder, c, own in zip(sweep.released(), configs, saved.units, strict=True)
    ]
    if mesh.shape["latent"] == 1 and jax.process_count() == 1:
        released = jax.tree.map(jnp.asarray, jax.device_get(released))
    return released, history


def _record(step, configs, sweep: Sweep, history: list[dict], reports, speed: "Speedometer") -> list[dict]:
    """The records of a step; reports are told, and warnings given."""
    found = []
    for number, (config, values) in enumerate(zip(configs, sweep.records(), strict=True)):
        about = {"step": step, "tokens": (step + 1) * config.batch_size, "run": number}
        about |= {"site": "+".join(config.sites), "l0_target": config.l0_target}
        found.append(about | jax.tree.map(lambda v: v.tolist(), values))
        if not np.isfinite(found[-1]["loss"]):
            raise ValueError(f"the loss of {config.site} is {found[-1]['loss']} at step {step}: {NOT_FINITE}")
    rates = speed.since_last()
    for report in reports:
        report.record(found, rates)
    if step + 1 == configs[0].steps or len(history) % (10 * len(configs)) == 0:
        for number, config in enumerate(configs):
            own = [r for r in history + found if r["run"] == number]
            for complaint in diagnostics.complaints(config, own):
                warnings.warn(f"{_name(config)}: {complaint}", TrainingWarning, stacklevel=3)
        if rates.input_wait > 0.25 and step:
            warnings.warn(
                f"{rates.input_wait:.0%} of the time goes into waiting for data: train more autoencoders in one pass, "
                "or read from a faster disk",
                TrainingWarning,
                stacklevel=3,
            )
    return found


def _name(config: TrainConfig) -> str:
    aim = f"lambda {config.coefficient:g}" if config.l0_target is None else f"target L0 {config.l0_target:g}"
    return f"{'+'.join(config.sites)}, {config.width} latents, {aim}"


def _check(configs: list[TrainConfig], store: Source, mesh: Mesh) -> None:
    if not configs:
        raise ValueError("train needs one config at least, got none")
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
