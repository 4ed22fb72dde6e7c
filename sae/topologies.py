"""TPU topologies: devices that this machine lacks, for which libtpu compiles on any x86-64 Linux machine."""

import importlib.util
import os

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh

HBM = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB of memory in a chip, from Google Cloud's "TPU versions"


def missing() -> str | None:
    """Returns the reason why nothing can be compiled for TPUs here, or None."""
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed: pip install 'jax[tpu]' (`make test-tpu` makes an environment with it)"
    return None


def chips(topology: str) -> list[jax.Device]:
    """Returns the devices of a topology. It has to be called before JAX uses a device other than the CPU.

    Raises:
        ValueError: for a topology that libtpu does not know, a chip of unknown memory, and without libtpu.
    """
    if missing():
        raise ValueError(missing())
    if topology.split(":")[0] not in HBM:
        raise ValueError(
            f"no topology {topology!r}: give one of {', '.join(HBM)}, a colon and the chips, such as v5e:4x4"
        )
    # These keep libtpu from looking for a TPU, from asking a metadata server, and from taking a lock. The type only
    # prevents a warning that there is no TPU.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": "disabled"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
    jax.config.update("jax_platforms", "cpu")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"libtpu does not know the topology {topology!r}: {str(error).splitlines()[0]}") from None


def mesh(devices: list[jax.Device], over: int, name: str, what: str) -> Mesh:
    """Returns a mesh `data` x `name` over all devices.

    Args:
        devices: the devices.
        over: the number of devices along the axis `name`.
        name: the name of the second axis.
        what: the devices in words, for the error.

    Raises:
        ValueError: for a number of devices that `over` does not divide.
    """
    if len(devices) % over:
        count = "1 device" if len(devices) == 1 else f"{len(devices)} devices"
        raise ValueError(f"{what} has {count}: {over} of them cannot share the parameters evenly")
    shape = (len(devices) // over, over)
    if devices[0].platform != "tpu":
        return Mesh(np.asarray(devices).reshape(shape), ("data", name))
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), ("data", name))
