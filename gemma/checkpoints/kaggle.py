"""Reads and writes Orbax checkpoints with DeepMind's names.

Those on Kaggle are a flat dict of dicts: `checkpoint["transformer/layer_0/attn/q_einsum"]["w"]` is the tree's
`["layer_0"]["attn"]["q_einsum"]["w"]` (google-deepmind/gemma v2.0.8, `gemma/params.py`). Newer ones are nested, with or
without `transformer` and `params` before the names; either kind may have one more `w` below `mlp/gating_einsum` and
`mlp/linear` (`gemma/gm/ckpts/_compat.py`). Gemma 2's have 128 more rows of embeddings than tokens, and from the 9B on
the gates' axes are (2, F, D). This package writes the flat kind, without any of that.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from gemma.checkpoints import places, streaming
from gemma.checkpoints.shapes import Shapes, recognise
from gemma.configs import Config

_ROOT = "transformer"
_PATTERNS = "[]*?\\"
_PADDING = 128  # rows after the last token's
_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "_sharding", "checkpoint", "manifest.ocdbt")
_ARRAYS = ("_METADATA", "_sharding", "checkpoint", "manifest.ocdbt")  # beside the arrays themselves
_IMAGES = ("vision_encoder/", "SigLiPFromPatches_0/", "embedder/mm_")  # Gemma 3 from 4B on; not in this package
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint.

    Attributes:
        name: the keys that lead to it, joined.
        keys: these keys.
        shape: its shape.
        dtype: its dtype; None if the checkpoint has none.
    """

    name: str
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: jnp.dtype | None


def is_checkpoint(folder: Path) -> bool:
    """Returns whether a folder looks like one that Orbax wrote."""
    return folder.is_dir() and any((folder / mark).is_file() for mark in _MARKS)


def items(folder: Path) -> list[Path]:
    """Returns the checkpoints in the step folder of a `CheckpointManager` that may hold a model.

    A step has one folder with arrays for each item; a single item is called `default`.
    """
    if any((folder / mark).is_file() for mark in _ARRAYS):
        return []
    return [one for one in sorted(folder.iterdir()) if one.is_dir() and any((one / mark).is_file() for mark in _ARRAYS)]


def flatten(params: Mapping) -> dict[str, dict[str, jax.Array]]:
    """Returns the checkpoint's dict of dicts for Flax's nested tree."""
    flat: dict[str, dict[str, jax.Array]] = {}
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    for path, value in leaves.items():
        flat.setdefault("/".join((_ROOT, *path[:-1])), {})[path[-1]] = value
    return flat


def check_path(folder: Path) -> None:
    """Raises ValueError for a path where Orbax (0.12.8) would silently leave half a checkpoint.

    It takes some characters for patterns when it joins the files of its processes.
    """
    if unfit := [character for character in _PATTERNS if character in str(places.absolute(folder))]:
        raise ValueError(
            f"{folder} has {' '.join(unfit)} in its path, where Orbax does not write whole checkpoints: name another "
            "folder, or save with format='huggingface'"
        )


def write(params: Mapping, folder: Path) -> None:
    """Saves a tree of arrays in their own dtypes.

    Raises:
        ValueError: if the folder exists, or has a path that Orbax cannot use.
    """
    check_path(folder)
    folder = places.absolute(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists: a checkpoint is written to a new folder")
    # With these options small models come in few files; arrays above the target size are still split.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(flatten(params)))


def scan(folder: Path) -> dict[streaming.Path, Leaf]:
    """Returns the arrays of a checkpoint by the names of the model's parameters, without those for images.

    Raises:
        ValueError: if Orbax cannot read the folder's metadata, or two arrays are the same parameter.
    """
    folder = places.absolute(folder)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        damaged = f"{folder} cannot be read as an Orbax checkpoint, its files are damaged"
        items = _readable(damaged, lambda: checkpointer.metadata(folder).item_metadata)
        if items is None:  # Orbax logs why
            raise ValueError(f"{damaged}: none of its arrays can be read")
        leaves = jax.tree_util.tree_flatten_with_path(items.tree)[0]
    by_path: dict[streaming.Path, Leaf] = {}
    for path, leaf in leaves:
        keys = tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        name = "/".join(keys)
        bare = name.removeprefix("params/").removeprefix(_ROOT + "/")
        if bare.startswith(_IMAGES):
            continue
        if bare.endswith(("mlp/gating_einsum/w", "mlp/linear/w")):
            bare = bare.removesuffix("/w")
        ours = tuple(bare.split("/"))
        if ours in by_path:
            raise ValueError(f"{folder} does not hold this model: {name} is stored as {by_path[ours].name} too")
        by_path[ours] = Leaf(name, keys, tuple(getattr(leaf, "shape", None) or ()), getattr(leaf, "dtype", None))
    return by_path


def recognise_shapes(folder: Path, leaves: Mapping[streaming.Path, Leaf]) -> Config:
    """Returns the configuration of a checkpoint without config.json; see `gemma.checkpoints.shapes`."""
    layers = [int(path[0][6:]) for path in leaves if path[0].startswith("layer_") and path[0][6:].isdecimal()]

    def shape(*ending: str) -> tuple[int, ...]:
        return next(leaf.shape for path, leaf in leaves.items() if path[-len(ending) :] == ending)

    try:
        (rows, D), (F, _) = shape("embedder", "input_embedding"), shape("mlp", "linear")
        (N, _, H), (_, K, _, _) = shape("attn", "q_einsum", "w"), shape("attn", "kv_einsum", "w")
    except (StopIteration, ValueError):
        raise ValueError(f"{folder} has no config.json, and its arrays are not those of a Gemma 2 or 3") from None
    V = 256_000 if rows == 256_000 + _PADDING else rows
    normed = any("_query_norm" in path for path in leaves)
    return recognise(str(folder), Shapes(V, max(layers) + 1, D, F, N * H, K * H, normed))


def read(
    folder: Path,
    leaves: Mapping[streaming.Path, Leaf],
    structs: Mapping,
    shardings: Mapping,
    *,
    ours: bool = False,
) -> dict:
    """Reads the tree of parameters, each array straight to its place.

    Args:
        folder: the checkpoint's folder.
        leaves: its arrays, from `scan`.
        structs: see `streaming.stream`.
        shardings: see `streaming.stream`.
        ours: whether `write` made the checkpoint, so that the gates' axes are certain.

    Raises:
        ValueError: with the name of every array that is missing, extra, of another shape, damaged, or has NaN or
            infinite values, and of the gates of a model with D = F, whose axes cannot be told apart.
    """
    folder = places.absolute(folder)
    want = traverse_util.flatten_dict(structs)
    _check(str(folder), leaves, want, ours)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:

        def fetch(path: streaming.Path, struct: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
            leaf = leaves[path]
            swapped = path[-1] == "gating_einsum" and leaf.shape != struct.shape
            shape = leaf.shape if swapped else struct.shape  # it reads the first rows if the array has more
            stored_sharding = _swap(sharding) if swapped else sharding
            args = ocp.ArrayRestoreArgs(dtype=struct.dtype, sharding=stored_sharding, global_shape=shape, strict=False)
            item = ocp.args.PyTreeRestore(
                item=_nest(leaf.keys, jax.ShapeDtypeStruct(shape, struct.dtype, sharding=stored_sharding)),
                restore_args=_nest(leaf.keys, args),
                partial_restore=True,
            )
            array = _readable("damaged", lambda: jax.tree.leaves(checkpointer.restore(folder, args=item))[0])
            return jax.jit(lambda x: x.swapaxes(1, 2), out_shardings=sharding)(array) if swapped else array

        names = {path: leaf.name for path, leaf in leaves.items()}
        return streaming.stream(str(folder), structs, shardings, fetch, names)


def _check(where: str, leaves: Mapping, want: Mapping, ours: bool) -> None:
    """Raises ValueError with the names of all arrays that cannot be this model's."""
    problems = [f"missing: {'/'.join((_ROOT, *path))}" for path in want if path not in leaves]
    problems += [f"not in this model: {leaf.name}" for path, leaf in leaves.items() if path not in want]
    for path in want:
        if path not in leaves:
            continue
        leaf, shape = leaves[path], want[path].shape
        also = {
            "input_embedding": (shape[0] + _PADDING, *shape[1:]),
            "gating_einsum": (shape[0], *reversed(shape[1:])),
        }.get(path[-1], shape)
        if leaf.shape not in (shape, also):
            other = f" or {also}" if also != shape else ""
            problems.append(f"{leaf.name}: shape {leaf.shape}, expected {shape}{other}")
        elif path[-1] == "gating_einsum" and shape[1] == shape[2] and not ours:
            problems.append(f"{leaf.name}: as D = F = {shape[1]}, its shape does not tell (2, D, F) from (2, F, D)")
        elif leaf.dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
            problems.append(f"{leaf.name}: dtype {leaf.dtype}, expected floating-point numbers")
    streaming.refuse(where, problems)


def _nest(keys: tuple[str, ...], value: T) -> dict | T:
    """Returns a tree with one leaf."""
    return {keys[0]: _nest(keys[1:], value)} if keys else value


def _swap(sharding: Sharding) -> Sharding:
    """Returns the sharding of (2, F, D) for that of a parameter (2, D, F)."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    first, second, third = (*sharding.spec, None, None, None)[:3]
    return NamedSharding(sharding.mesh, PartitionSpec(first, third, second))


def _readable(what: str, read: Callable[[], T]) -> T:
    """Reads; turns Orbax's errors for damaged files, which are of many kinds, into one that says what is damaged."""
    try:
        return read()
    except Exception as error:
        first = error
        while first.__cause__ is not None:  # TensorStore's reason; Orbax wraps it in pages
            first = first.__cause__
        reason = (str(first) or type(first).__name__).splitlines()[0][:200]
        raise ValueError(f"{what}: {reason}") from error
