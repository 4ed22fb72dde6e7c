"""Token sequences on a mesh of devices: they are spread over its axis `data`.

The model decides where its parameters and activations lie. The latents of released autoencoders lie over the mesh's
other axes (`latent_sharding`); training has rules of its own (`sae.trainer.programs`).
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"


def ways(mesh: Mesh | None) -> int:
    """Returns the number of parts of a batch, which has to divide the number of its sequences."""
    return 1 if mesh is None else mesh.shape.get(DATA, 1)


def rounded_up(sequences: int, mesh: Mesh | None) -> int:
    """Returns the least number of sequences, from the given one on, that can be a batch on a mesh."""
    return -(-sequences // ways(mesh)) * ways(mesh)


def check_automatic(mesh: Mesh) -> None:
    """Raises ValueError for what is no mesh, or a mesh with explicit axes."""
    if not isinstance(mesh, Mesh):
        raise ValueError(f"a mesh is a jax.sharding.Mesh, such as Mesh(jax.devices(), ('latent',)), got {mesh!r:.80}")
    if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the mesh's axes must be automatic, got {dict(zip(mesh.axis_names, mesh.axis_types, strict=True))}: "
            "jax.make_mesh makes explicit ones unless told otherwise, jax.sharding.Mesh(devices, names) automatic ones"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of tokens [B, T]: their first axis over `data`, or a copy on every device of a mesh without
    that axis.

    Raises:
        ValueError: for a mesh with explicit axes.
    """
    check_automatic(mesh)
    return NamedSharding(mesh, PartitionSpec(DATA) if DATA in mesh.shape else PartitionSpec())


def latent_sharding(mesh: Mesh, axes: tuple[str, ...], width: int) -> NamedSharding:
    """Returns where an array of a released autoencoder lies: its axis Z over all axes of the mesh but `data`.

    Args:
        mesh: the mesh. One whose devices, but for `data`, do not divide the width has a copy everywhere.
        axes: the array's axes, as `Released.axes` names them.
        width: Z.

    Raises:
        ValueError: for what is no mesh, or a mesh with explicit axes.
    """
    check_automatic(mesh)
    rest = tuple(name for name in mesh.axis_names if name != DATA)
    divided = bool(rest) and width % (mesh.size // ways(mesh)) == 0
    return NamedSharding(mesh, PartitionSpec(*(rest if divided and axis == "Z" else None for axis in axes)))
