"""What a device can do: its memory, its peak, and how much of the peak a precision costs."""

import functools
import os
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sae.runs import Run
from sae.topologies import HBM

_GIB = 2**30
# By `device_kind`: GiB of HBM of a chip, and its peak in bfloat16 operations a second (Google Cloud, "TPU versions").
# Float32 products take three ("high") or six ("highest") of these.
TPUS = {
    "TPU v4": (HBM["v4"], 275e12),
    "TPU v5 lite": (HBM["v5e"], 197e12),
    "TPU v5": (HBM["v5p"], 459e12),
    "TPU v5p": (HBM["v5p"], 459e12),
    "TPU v6 lite": (HBM["v6e"], 918e12),
}


def passes(run: Run, device: jax.Device) -> int:
    """Returns how many products in bfloat16 a TPU makes for one product in the precision of a run; 1 elsewhere."""
    return {"highest": 6, "high": 3, "default": 1}[run.objective.precision] if device.platform == "tpu" else 1


def precision_advice(runs: Sequence[Run], platform: str) -> str | None:
    """Returns what full float32 products cost on a GPU, which has no units for them; None elsewhere, or without them.

    Measured on one H100 with JAX 0.11.2, a step with 16,384 latents.
    """
    if platform not in ("gpu", "cuda", "rocm") or all(run.objective.precision != "highest" for run in runs):
        return None
    return (
        "precision='highest' computes products in full float32: on an H100 a step with 16,384 latents takes 31.6 ms, "
        "and 6.9 ms in TF32 (precision='high'), 4.6 times less"
    )


def memory(device: jax.Device) -> int | None:
    """Returns the bytes of a device; None where they are not known. Devices of a CPU share the machine's."""
    if device.device_kind in TPUS:
        return TPUS[device.device_kind][0] * _GIB
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // max(1, jax.local_device_count("cpu"))
    return (device.memory_stats() or {}).get("bytes_limit")


def peak_flops(device: jax.Device) -> float | None:
    """Returns the operations a second of a device; None where they are not known.

    A TPU's are its data sheet's, in bfloat16; a CPU's are measured, in float32.
    """
    if device.device_kind in TPUS:
        return TPUS[device.device_kind][1]
    return _measured() if device.platform == "cpu" else None


def peak_in_words(peak: float, device: jax.Device) -> str:
    """Returns in words which peak `peak_flops` gives."""
    if device.device_kind in TPUS:
        return f"the data sheet's {peak / 1e12:.0f} TFLOP/s of a chip in bfloat16"
    return f"{peak / 1e12:.2g} TFLOP/s of a device, as this machine multiplied large float32 matrices"


@functools.cache
def _measured() -> float:
    """The operations a second of the best of three large products, shared by all devices of a CPU."""
    size = 1024
    a = np.ones((size, size), np.float32)
    product = jax.jit(jnp.dot)
    product(a, a).block_until_ready()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / max(1, jax.local_device_count())
