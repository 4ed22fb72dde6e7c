"""Orbax checkpoints in the layout of DeepMind's own: a flat dict of dicts.

`checkpoint["transformer/layer_0/attn/q_einsum"]["w"]` is the tree's `["layer_0"]["attn"]["q_einsum"]["w"]`, as in the
checkpoints on Kaggle (google-deepmind/gemma v2.0.8, `gemma/params.py`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

_ROOT = "transformer"
T = TypeVar("T")


def flatten(params: Mapping) -> dict[str, dict[str, jax.Array]]:
    """The nested tree that Flax uses -> the checkpoint's dict of dicts."""
    flat: dict[str, dict[str, jax.Array]] = {}
    for path, value in traverse_util.flatten_dict(params).items():
        flat.setdefault("/".join((_ROOT, *path[:-1])), {})[path[-1]] = value
    return flat


def write(params: Mapping, folder: Path) -> None:
    """Saves a tree of arrays as they are, dtype included.

    Raises:
      ValueError: if the folder exists.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise ValueError(f"{folder} exists: a checkpoint is written to a new folder")
    # Small models come in few files this way; arrays above the target size are still split.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(flatten(params)))


def read(folder: Path, expected: Mapping, sharding: jax.sharding.Sharding) -> dict:
    """Loads the tree `expected` (of `jax.ShapeDtypeStruct`), cast to its dtypes, onto `sharding`.

    Raises:
      ValueError: naming every tensor that is missing, not expected, or of another shape.
    """
    folder = Path(folder).absolute()
    want = traverse_util.flatten_dict(flatten(expected), sep="/")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = _readable(folder, lambda: checkpointer.metadata(folder).item_metadata.tree)
        have = traverse_util.flatten_dict(dict(stored), sep="/")
        problems = [f"missing: {name}" for name in sorted(set(want) - set(have))]
        problems += [f"not in this model: {name}" for name in sorted(set(have) - set(want))]
        problems += [
            f"{name}: shape {tuple(have[name].shape)}, expected {want[name].shape}"
            for name in sorted(set(want) & set(have))
            if tuple(have[name].shape) != want[name].shape
        ]
        if problems:
            more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
            raise ValueError(f"{folder} does not hold this model:\n  " + "\n  ".join(problems[:12]) + more)
        args = jax.tree.map(
            lambda struct: ocp.ArrayRestoreArgs(dtype=struct.dtype, sharding=sharding, global_shape=struct.shape),
            flatten(expected),
        )
        flat = _readable(folder, lambda: checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args)))
    leaves = {(*key.split("/")[1:], name): value for key, group in flat.items() for name, value in group.items()}
    return traverse_util.unflatten_dict(leaves)


def _readable(folder: Path, read: Callable[[], T]) -> T:
    """Orbax raises errors of many kinds for damaged files; here they are one kind, which names the folder."""
    try:
        return read()
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{folder} cannot be read as an Orbax checkpoint, its files are damaged: {reason}") from error
