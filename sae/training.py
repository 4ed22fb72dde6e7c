"""`sae.train`: autoencoders from a store, several in one pass over it, stopped and resumed at will."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae import state as states
from sae.autoencoder import Info, JumpReLU
from sae.files import read_json, replace_file
from sae.recipes import TrainConfig
from sae.store.order import Pass
from sae.store.reading import ActivationStore

LOG_EVERY = 50


def train(
    config: TrainConfig | Sequence[TrainConfig],
    store: ActivationStore,
    mesh: Mesh | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
    save_every: int = 200,
    progress: Callable[..., Iterable] = lambda steps, **_: steps,
) -> tuple[list[JumpReLU], list[dict]]:
    """Trains one autoencoder or several side by side, on the same batches of one pass over the store.

    Args:
      config: one config, or several that agree in steps, batch_size and seed.
      store: has the configs' sites.
      mesh: with axes `data` and `latent`; all devices along `data` by default.
      checkpoint_dir: where given, the run is saved there and goes on from what is there, to the same result as if it
        had not been stopped.
      save_every: steps between checkpoints.
      progress: called with the steps to come, and `total`, `initial` and `desc`, as tqdm is.

    Returns:
      The autoencoders, folded to raw activations, in the order of the configs; and the history: a dict for each config
      at every 50th step, with `step`, `site`, `l0_target`, `loss`, `reconstruction`, `penalty`, `l0`,
      `threshold_mean`, as of that batch, in scaled units.

    Raises:
      ValueError: for a site the store has not, configs that cannot share batches, a mesh that the width or the batch
        cannot be split over, or a checkpoint of another run.
    """
    configs = [config] if isinstance(config, TrainConfig) else list(config)
    mesh = mesh or Mesh(np.asarray(jax.devices()).reshape(-1, 1), ("data", "latent"))
    _check(configs, store, mesh)
    first = configs[0]
    scales = [float(np.sqrt(store.mean_squared_norm(c.site))) for c in configs]
    runs = _Runs(configs, store, mesh)
    history: list[dict] = []
    start, passes = 0, ()
    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = _Checkpoints(Path(checkpoint_dir), configs, store, save_every)
        start, runs.states, history, passes = checkpoints.restore(runs.states)
    sites = sorted({c.site for c in configs})
    split = NamedSharding(mesh, PartitionSpec("data"))
    try:
        # A stream from the model has one order; a store that grows goes on in the passes that it had begun.
        order = {"passes": passes} if passes else {}
        batches = store.batches(
            first.batch_size, sites=sites, seed=first.seed, start_step=start, sharding=split, **order
        )
        for step in progress(range(start, first.steps), total=first.steps, initial=start, desc="train"):
            metrics = runs.update(next(batches), scales)
            if step % LOG_EVERY == 0 or step + 1 == first.steps:
                history += [
                    {"step": step, "site": c.site, "l0_target": c.l0_target, **{k: float(v) for k, v in m.items()}}
                    for c, m in zip(configs, jax.device_get(metrics), strict=True)
                ]
            if checkpoints is not None:
                passes = getattr(batches, "passes", ())
                checkpoints.save(step + 1, runs.states, history, passes, last=step + 1 == first.steps)
        batches.close()
    finally:
        if checkpoints is not None:
            checkpoints.close()
    autoencoders = [
        states.fold(state.params, c, scale, _info(c, store, scale))
        for c, scale, state in zip(configs, scales, jax.device_get(runs.states), strict=True)
    ]
    return jax.tree.map(jnp.asarray, autoencoders), history


class _Runs:
    """The states of all runs, and one update of each. Runs of equal shape share a compiled step."""

    def __init__(self, configs: list[TrainConfig], store: ActivationStore, mesh: Mesh):
        self.configs = configs
        self.goals = [states.targets(c) for c in configs]
        # The compiled step depends on none of these, so they do not tell configs apart.
        common = [
            dataclasses.replace(c, site="", coefficient=0.0, l0_target=None if c.l0_target is None else 1.0, seed=0)
            for c in configs
        ]
        widths = [store.width(c.site) for c in configs]
        self.steps = [states.compiled_step(c, A, mesh) for c, A in zip(common, widths, strict=True)]
        # Initialised where they will lie, never whole on one device.
        self.states = []
        for c, A in zip(configs, widths, strict=True):
            make = lambda c=c, A=A: states.initial(c, A)  # noqa: E731
            placed = states.shardings(jax.eval_shape(make), mesh)
            self.states.append(jax.jit(make, out_shardings=placed)())

    def update(self, batch: dict[str, jax.Array], scales: list[float]) -> list[dict[str, jax.Array]]:
        metrics = []
        for i, (config, step) in enumerate(zip(self.configs, self.steps, strict=True)):
            self.states[i], parts = step(self.states[i], batch[config.site], jnp.float32(scales[i]), self.goals[i])
            metrics.append(parts)
        # Wait: on a CPU, the collectives of steps in flight can starve each other of threads.
        return jax.block_until_ready(metrics)


class _Checkpoints:
    """A run on disk: its states and history by step, and `run.json`, which says what run it is."""

    def __init__(self, folder: Path, configs: list[TrainConfig], store: ActivationStore, save_every: int):
        self.folder = folder.absolute()
        self._identity = {
            "configs": [dataclasses.asdict(c) for c in configs],
            "store": dataclasses.asdict(store.manifest),
        }
        self._check_identity()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, save_interval_steps=save_every, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def _check_identity(self) -> None:
        facts = self.folder / "run.json"
        if facts.exists():
            there, asked = read_json(facts), json.loads(json.dumps(self._identity))
            if there != asked:
                raise ValueError(
                    f"{self.folder} holds the checkpoint of another run: {_difference(there, asked)}. "
                    "Name another folder, or delete this one. Nothing was changed."
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(facts, json.dumps(self._identity, indent=2) + "\n")

    def restore(self, fresh: list[states.State]) -> tuple[int, list[states.State], list[dict], list[Pass]]:
        """The last saved (step, states, history, passes of the store), or (0, what was given, [], [])."""
        step = self._manager.latest_step()
        if step is None:
            return 0, fresh, [], []
        args = ocp.args.Composite(states=ocp.args.StandardRestore(fresh), history=ocp.args.JsonRestore())
        try:
            saved = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax raises errors of many kinds for damaged files
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise ValueError(f"the checkpoint {self.folder / str(step)} is damaged, delete it: {reason}") from error
        passes = [
            Pass(p["first_step"], p["number"], tuple((int(i), int(rows)) for i, rows in p["segments"]), p["block"])
            for p in saved["history"]["passes"]
        ]
        return step, saved["states"], saved["history"]["records"], passes

    def save(
        self, step: int, current: list[states.State], history: list[dict], passes: Sequence[Pass], last: bool
    ) -> None:
        if self._manager.latest_step() == step or not (last or self._manager.should_save(step)):
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(current))
        free = shutil.disk_usage(self.folder).free
        if needed > free:  # before Orbax finds out in one of its threads
            raise OSError(
                f"the disk is full: a checkpoint of {needed / 1e6:.0f} MB goes to {self.folder}, where "
                f"{free / 1e6:.0f} MB are free; what was saved before is kept. Free some and run again to go on"
            )
        log = {"records": history, "passes": [dataclasses.asdict(p) for p in passes]}
        args = ocp.args.Composite(states=ocp.args.StandardSave(current), history=ocp.args.JsonSave(log))
        self._manager.save(step, args=args, force=last)

    def close(self) -> None:
        self._manager.close()


def _difference(there: dict, asked: dict) -> str:
    """The first fields in which two nested JSON values differ, in words."""
    found: list[str] = []

    def walk(path, a, b):
        if type(a) is type(b) and isinstance(a, dict):
            for key in sorted(set(a) | set(b)):
                walk(f"{path}.{key}" if path else key, a.get(key), b.get(key))
        elif type(a) is type(b) and isinstance(a, list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                walk(f"{path}[{i}]", x, y)
        elif a != b:
            found.append(f"{path} is {json.dumps(a)[:60]} there, {json.dumps(b)[:60]} asked for")

    walk("", there, asked)
    return "; ".join(found[:3])


def _check(configs: list[TrainConfig], store: ActivationStore, mesh: Mesh) -> None:
    if not configs:
        raise ValueError("train needs one config at least, got none")
    store.check_sites([c.site for c in configs])
    for field in ("steps", "batch_size", "seed"):
        values = sorted({getattr(c, field) for c in configs})
        if len(values) > 1:
            raise ValueError(f"runs that share batches must agree in {field}, got {values}: train them separately")
    if set(mesh.axis_names) != {"data", "latent"}:
        raise ValueError(f"the mesh needs the axes 'data' and 'latent', got {mesh.axis_names}")
    store.batches_per_pass(configs[0].batch_size)
    if configs[0].batch_size % mesh.shape["data"]:
        raise ValueError(
            f"a batch of {configs[0].batch_size} cannot be split over {mesh.shape['data']} devices along 'data'"
        )
    for c in configs:
        if c.width % mesh.shape["latent"]:
            raise ValueError(f"{c.width} latents cannot be split over {mesh.shape['latent']} devices along 'latent'")


def _info(config: TrainConfig, store: ActivationStore, scale: float) -> Info:
    manifest = store.manifest
    facts = states.training_facts(
        config,
        scale,
        left_out={
            "token_ids": list(manifest.dropped_tokens),
            "sink_norms": {site: manifest.sink_factor * store.median_norm(site) for site in manifest.sink_sites},
        },
        store={"corpus_sha256": manifest.corpus_sha256, "model_sha256": manifest.model_sha256},
    )
    return Info(model=manifest.model, site=config.site, site_out=config.site, units=manifest.units, training=facts)
