"""Loads an autoencoder onto eight devices and prints, in bytes, how far the process's memory went: for test_wide.py.

Arguments: the folder. Printed, as JSON: `before` and `peak`, of the process's resident memory; `arrays`, of the
finished arrays; `part`, of the largest part of one on a device."""

import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh

import sae


def memory(name: str) -> int:
    """Bytes by the name of a line in /proc; `getrusage` counts what the parent had before this program began, too."""
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(f"{name}:"))


mesh = Mesh(np.asarray(jax.devices()).reshape(1, 8), ("data", "latent"))
jax.block_until_ready(jax.device_put(np.zeros(8, np.float32)))
before = memory("VmRSS")
autoencoder = sae.load(sys.argv[1], mesh=mesh)
arrays = jax.block_until_ready(list(autoencoder.arrays().values()))
figures = {
    "before": before,
    "peak": memory("VmHWM"),
    "arrays": sum(array.nbytes for array in arrays),
    "part": max(shard.data.nbytes for array in arrays for shard in array.addressable_shards),
}
print(json.dumps(figures))
