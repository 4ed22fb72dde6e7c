"""Where parameters and activations lie on a mesh of devices: all the rules, in one place.

A mesh may have any axes; two of them mean something here. Sequences are spread over `data`. The parameters of a layer
are spread over `model`: attention by heads, the feed-forward by its hidden width F, the embedding by its rows V, so
that a layer sums over devices once after attention and once after the feed-forward. Other axes, and a mesh without
these, hold copies. A tensor whose axis does not divide evenly is not spread.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

DATA, MODEL = "data", "model"

# The axis that is spread over `model`, by the last name on the path of a parameter that is not `w`.
_SPREAD = {
    "input_embedding": 0,  # (V, D)
    "q_einsum": 0,  # (N, D, H)
    "kv_einsum": 1,  # (2, K, D, H)
    "attn_vec_einsum": 0,  # (N, H, D)
    "gating_einsum": 2,  # (2, D, F)
    "linear": 0,  # (F, D)
}


def param_shardings(shapes: dict, mesh: Mesh) -> dict:
    """For a tree of parameters (arrays or `jax.ShapeDtypeStruct`), a tree of `NamedSharding`."""

    def place(path: tuple[DictKey, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axis = next((_SPREAD[key.key] for key in reversed(path) if key.key in _SPREAD), None)
        spec = [None] * len(leaf.shape)
        if axis is not None and leaf.shape[axis] % mesh.shape.get(MODEL, 1) == 0 and MODEL in mesh.shape:
            spec[axis] = MODEL
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, shapes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of tokens, positions, activations and logits: their first axis, B, over `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA) if DATA in mesh.shape else PartitionSpec())


def batch_placement(params: dict, batch: int) -> NamedSharding | None:
    """Where `batch` sequences belong that meet these parameters: None (JAX's default) off a mesh, whole on every device
    where they cannot be dealt out evenly over `data`."""
    placed = jax.tree.leaves(params)[0].sharding
    if not isinstance(placed, NamedSharding):
        return None
    even = batch % placed.mesh.shape.get(DATA, 1) == 0
    return batch_sharding(placed.mesh) if even else NamedSharding(placed.mesh, PartitionSpec())
