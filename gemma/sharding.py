"""Where parameters, activations and the cache lie on a mesh of devices: all the rules in one place.

Sequences are spread over the mesh's axis `data`. The parameters are spread over all its other axes taken together,
whatever their names (`model`; `latent`, on a mesh made for autoencoders): attention by heads, the feed-forward by its
hidden width F, the embedding by its rows V. An activation follows from that: it is spread by its sequences, and by its
axis N, K, F or V where it has one.

A tensor whose axis does not divide evenly has a copy on every device. So if the number M of the devices of those axes
- divides K, all of attention is spread;
- divides N alone (M = 8 on the 2B; Gemma 3 270M and 1B, with K = 1), keys, values and their cache are on every device;
- does not divide N, every device does all of attention. The result is right, but an M of at most N is better.

The model's code has no constraints in it. From where the parameters lie, XLA derives that a device sums over the others
once for the embedding (each looks up the rows that it has), once after attention and once after the feed-forward,
[B, T, D] each time, and that no parameter moves. tests/gemma/test_sharding.py and test_tpu.py hold it to that.

Parameters are not spread over `data`: Gemma 2 27B takes 3.2 GiB of a chip in bfloat16, and 6.3 in float32, at
M = 16. Tokens must be placed (`jax.device_put(tokens, batch_sharding(mesh))`): jit copies an array that lies on no mesh
to every device, and each row of `data` then computes the whole batch.
"""

from collections.abc import Iterable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from gemma import sites
from gemma.cache import Cache
from gemma.configs import Config

DATA = "data"

# The axis that is spread, by the last name on the path of a parameter that is not `w`. Norms' scales are not spread.
_PARAMS = {
    "input_embedding": 0,  # (V, D)
    "q_einsum": 0,  # (N, D, H)
    "kv_einsum": 1,  # (2, K, D, H)
    "attn_vec_einsum": 0,  # (N, H, D)
    "gating_einsum": 2,  # (2, D, F)
    "linear": 0,  # (F, D)
}


def param_shardings(shapes: dict, mesh: Mesh) -> dict:
    """Returns a tree of `NamedSharding` for a tree of parameters.

    Args:
        shapes: the parameters, as arrays or `jax.ShapeDtypeStruct`.
        mesh: the mesh.

    Raises:
        ValueError: for a mesh with explicit axes.
    """

    def place(path: tuple[DictKey, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axis = next((_PARAMS[key.key] for key in reversed(path) if key.key in _PARAMS), None)
        return _spread(mesh, leaf.shape, None, axis)

    return jax.tree_util.tree_map_with_path(place, shapes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of tokens, positions and masks: their first axis, B, over `data`, which must divide it.

    Raises:
        ValueError: for a mesh with explicit axes.
    """
    return _spread(mesh, (0,), 0, None)


def site_shardings(config: Config, names: Iterable[str], mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns the shardings of the values at sites by name, as `out_shardings` for a jitted `capture`.

    The values stay where they are computed, so returning them takes no communication. Only `k` and `v` are gathered
    where N is divided and K is not, as a device computes no more of them than its queries need.

    Args:
        config: the model's shape.
        names: the sites, such as `layer_3/attn_z` and `logits`.
        mesh: the mesh.

    Raises:
        ValueError: for a mesh with explicit axes.
    """

    def place(name: str) -> NamedSharding:
        site = records.get(name)
        if site is None or site.sharding is None:
            return _spread(mesh, (0,), 0, None)
        # B and T stand before the value's own axes; for pairs of tokens, T and S stand after them.
        axis = site.sharding + (2 if site.per_token else 1)
        return _spread(mesh, (0,) * axis + (site.shape[site.sharding],), 0, axis)

    records = sites.of(config)
    return {name: place(name) for name in names}


def cache_shardings(shapes: Cache, mesh: Mesh) -> Cache:
    """Returns a cache whose leaves are `NamedSharding`: keys and values [B, R, K, H] by B and K, positions by B.

    To make a cache on the mesh:

        make = functools.partial(gemma.cache.empty, config, batch, capacity, dtype)
        cache = jax.jit(make, out_shardings=cache_shardings(jax.eval_shape(make), mesh))()

    Args:
        shapes: a cache of arrays or `jax.ShapeDtypeStruct`.
        mesh: the mesh.

    Raises:
        ValueError: for a mesh with explicit axes.
    """

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        rank = len(leaf.shape)
        return _spread(mesh, leaf.shape, 0 if rank else None, 2 if rank == 4 else None)

    return jax.tree.map(place, shapes)


def _spread(mesh: Mesh, shape: tuple[int, ...], over_data: int | None, over_rest: int | None) -> NamedSharding:
    """Returns a sharding with one axis over `data`, and one over all other axes of the mesh if they divide it."""
    if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the mesh's axes must be automatic, got {dict(zip(mesh.axis_names, mesh.axis_types, strict=True))}: "
            "jax.make_mesh makes explicit ones unless told otherwise, jax.sharding.Mesh(devices, names) automatic ones"
        )
    rest = tuple(name for name in mesh.axis_names if name != DATA)
    spec: list[str | tuple[str, ...] | None] = [None] * len(shape)
    if over_data is not None and DATA in mesh.shape:
        spec[over_data] = DATA
    devices = mesh.size // mesh.shape.get(DATA, 1)
    if over_rest is not None and rest and shape[over_rest] % devices == 0:
        spec[over_rest] = rest if len(rest) > 1 else rest[0]
    return NamedSharding(mesh, PartitionSpec(*spec))
