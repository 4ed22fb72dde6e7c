"""A run on disk: `run.json`, which says what run it is, and for each saved step the states and the history."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from sae.files import check_folder, free_bytes, local_path
from sae.inputs import Units
from sae.runs import Run
from sae.store.order import Pass
from sae.store.source import Source
from sae.trainer.identity import Identity
from sae.trainer.state import State


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint holds beside the states. Units and norms of a store that grows are those of the run's start.

    Attributes:
      history: the records so far.
      passes: of the store, so far.
      units: for each run, {site: `Units`}.
      sink_norms: {site: the norm above which a token is an attention sink}.
    """

    history: list[dict]
    passes: tuple[Pass, ...]
    units: list[dict[str, Units]]
    sink_norms: dict[str, float]


class Checkpoints:
    """The checkpoints of a run, of which the last and the best are kept. Each autoencoder is an item, `run_0`,
    `run_1`, ….

    The best has the lowest FVU in the record before it, averaged over the runs, among checkpoints whose L0s were all
    within a tenth of their targets, with lambda at its full strength throughout. To go back to it, delete later ones.

    Attributes:
      folder: where they are.
      restored: whether `restore` has looked for a checkpoint.
    """

    def __init__(self, folder: str | Path, runs: Sequence[Run], source: Source, save_every: int):
        """Checks that the run can be saved in the folder. Writes nothing before `open`.

        Args:
          folder: of this machine, or mounted; it need not exist.
          runs: the runs.
          source: what they read.
          save_every: steps between checkpoints.

        Raises:
          ValueError: for a folder that cannot be written, or holds the checkpoints of another run.
        """
        if "://" in str(folder):
            raise ValueError(f"checkpoints go to a folder, of this machine or mounted; got {folder}")
        self.folder = local_path(folder).absolute()
        if unfit := [letter for letter in _UNFIT if letter in str(self.folder)]:
            raise ValueError(
                f"checkpoints cannot be found again in a folder with {' '.join(unfit)} in its path: Orbax takes that "
                f"for a pattern. Name another folder than {self.folder}"
            )
        if not _is_utf8(str(self.folder)):
            raise ValueError(f"checkpoints go to a folder whose path is UTF-8, got {str(self.folder)!r}. Name another")
        check_folder(self.folder, "the checkpoints")
        self._runs, self._save_every = runs, save_every
        self.restored = False
        self._identity = Identity.of(runs, source)
        self._identity.check(self.folder, bool(self.steps()))

    def steps(self) -> list[int]:
        """Returns the steps that are saved, in order."""
        if not self.folder.exists():
            return []
        # ASCII alone: "²" is a digit to Python.
        names = [path.name for path in self.folder.iterdir()]
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def check_space(self, size: int) -> None:
        """Checks, before any step, that the checkpoints fit on the disk: the last, the best, and one that is written
        before another is removed.

        Args:
          size: bytes of a checkpoint.

        Raises:
          OSError: for a disk without the room; it says the bytes needed and the bytes free.
        """
        steps = self._runs[0].steps
        # The first step is saved as well, and the last.
        saves = min(3, min(steps, 2) + (steps - 1) // self._save_every)
        extra = max(0, saves - len(self.steps()))
        free = free_bytes(self.folder)
        if extra * size > free:
            raise OSError(
                f"the disk is full: a checkpoint of {size / 1e6:.0f} MB goes to {self.folder}, up to {extra} more of "
                f"them at a time, and {free / 1e6:.0f} MB are free. Free some, or raise save_every"
            )

    def open(self) -> None:
        """Begins the folder, or opens the one that the run has begun."""
        _all_processes("identified")  # before one of them writes what another looks for
        if jax.process_index() == 0:
            self._identity.write(self.folder)
        _all_processes("named")
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "log": ocp.JsonCheckpointHandler(),
                **{f"run_{i}": ocp.StandardCheckpointHandler() for i in range(len(self._runs))},
            },
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=self._save_every,
                best_fn=_score,  # without it, metrics are not written
                best_mode="min",
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(1), checkpoint_managers.BestN(get_metric_fn=_score, reverse=True, n=1)]
                ),
            ),
        )

    def restore(self, structure: list[State]) -> tuple[int, list[State], Saved] | None:
        """Returns the last saved step, its states, and the rest; None where nothing is saved.

        Args:
          structure: shapes, dtypes and shardings of the runs' states, on whatever mesh.

        Raises:
          ValueError: for a checkpoint that cannot be read, is of another run, or is not in float32.
        """
        step = self._manager.latest_step()
        if step is None:
            self.restored = True
            return None
        self._check_dtypes(step, structure)
        items = {f"run_{i}": ocp.args.StandardRestore(state) for i, state in enumerate(structure)}
        try:
            saved = self._manager.restore(step, args=ocp.args.Composite(log=ocp.args.JsonRestore(), **items))
        except (OSError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # not the files' fault
        except Exception as error:  # Orbax raises errors of many kinds for damaged files
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} cannot be read: {reason}. If its files are damaged, delete "
                "it: training goes on from the one before"
            ) from error
        log = saved["log"]
        self._identity.check_step(self.folder / str(step), log.get("run"))
        passes = tuple(
            Pass(p["first_step"], p["number"], tuple((int(i), int(rows)) for i, rows in p["segments"]), p["block"])
            for p in log["passes"]
        )
        units = [
            {site: Units(np.float32(unit["centre"]), np.float32(unit["scale"])) for site, unit in of.items()}
            for of in log["units"]
        ]
        self.restored = True
        return step, [saved[name] for name in items], Saved(log["records"], passes, units, log["sink_norms"])

    def _check_dtypes(self, step: int, fresh: list[State]) -> None:
        """Raises ValueError for arrays of other dtypes: Orbax would convert bfloat16 moments without a word."""
        metadata = self._manager.item_metadata(step)
        if any(metadata.get(f"run_{i}") is None for i in range(len(fresh))):
            return  # the checkpoint is damaged, and restoring it says so
        for i, state in enumerate(fresh):
            stored = _by_name(metadata[f"run_{i}"].tree)
            for name, want in _by_name(state).items():
                if name in stored and np.dtype(stored[name].dtype) != want.dtype:
                    raise ValueError(f"run_{i}/{name} is {stored[name].dtype}, masters and moments are {want.dtype}")

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after so many steps."""
        return self._manager.latest_step() != step and self._manager.should_save(step)

    def save(self, step: int, states: list[State], saved: Saved) -> None:
        """Begins to save the states after so many steps. The checkpoint before is kept until this one is written.

        Args:
          step: how many steps are made.
          states: in the order of the runs.
          saved: the rest.

        Raises:
          OSError: for a disk without room for it.
          ValueError: for a state that is not finite.
        """
        if self._manager.latest_step() == step:
            return
        if not all(bool(_finite(state)) for state in states):
            raise ValueError(f"the state is not finite after step {step}: {NOT_FINITE}")
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
        free = free_bytes(self.folder)
        if needed > free:  # said here, before Orbax fails in one of its threads
            raise OSError(
                f"the disk is full: a checkpoint of {needed / 1e6:.0f} MB goes to {self.folder}, where "
                f"{free / 1e6:.0f} MB are free. What was saved before is kept: free some and run again to go on"
            )
        items = {f"run_{i}": ocp.args.StandardSave(state) for i, state in enumerate(states)}
        log = {
            "records": saved.history,
            "passes": [dataclasses.asdict(p) for p in saved.passes],
            "units": [
                {site: {"centre": np.asarray(u.centre).tolist(), "scale": float(u.scale)} for site, u in of.items()}
                for of in saved.units
            ],
            "sink_norms": saved.sink_norms,
            "run": self._identity.fingerprint(),
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(log=ocp.args.JsonSave(log), **items),
            metrics={"fvu": self._fvu(saved.history)},
            force=True,
        )

    def _fvu(self, history: list[dict]) -> float:
        """The FVU of the last record, averaged over the runs; infinite for a checkpoint that cannot be the best."""
        runs = len(self._runs)
        if len(history) < 2 * runs:
            return math.inf
        last, before = history[-runs:], history[-2 * runs : -runs]
        for run, record, start in zip(self._runs, last, before, strict=True):
            off = 0.0 if run.l0_target is None else abs(record["l0"] / run.l0_target - 1.0)
            if start["step"] < run.warm_from or off > 0.1:
                return math.inf
        return float(np.mean([record["fvu"] for record in last]))

    def wait(self) -> None:
        """Waits until the checkpoint that `save` has begun is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits likewise, and closes the files."""
        self._manager.close()


# A checkpoint whose path has "[" or "\\" is not found; with the others, one of a folder beside it may be.
_UNFIT = "[\\?*"
NOT_FINITE = "lower the learning rate, or look for activations that are not finite. What was saved before is kept"


def _is_utf8(text: str) -> bool:
    """False for bytes of another encoding in a path, which Python has as surrogates."""
    return text.encode(errors="replace").decode() == text


def _score(metrics: dict) -> float:
    return metrics["fvu"]


@jax.jit
def _finite(state: State) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def _all_processes(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _by_name(tree) -> dict[str, jax.Array]:
    """The arrays of a state, or their metadata, by names such as `params/W_enc`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
