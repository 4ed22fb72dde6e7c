"""What a run will take, before it starts: memory of each device, steps, bytes to read, operations; from the compiled
program, also for devices that are not there."""

import dataclasses
import functools
import os
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sae.recipes import TrainConfig
from sae.trainer import programs
from sae.trainer.sweeps import groups_of

_GIB = 2**30
# By `device_kind`: GiB of HBM of a chip, and its peak in bfloat16 operations a second (Google Cloud, "TPU versions").
# Float32 products take three ("high") or six ("highest") of these.
TPUS = {
    "TPU v4": (32, 275e12),
    "TPU v5 lite": (16, 197e12),
    "TPU v5": (95, 459e12),
    "TPU v5p": (95, 459e12),
    "TPU v6 lite": (32, 918e12),
}
READ_AHEAD = 3  # batches on a device while a step runs


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run takes. Bytes and operations are of one device where not said otherwise.

    Attributes:
      devices: their number and kind. mesh: its axes.
      state: parameters, moments and statistics of all runs. batches: on their way. temporaries: of the largest step.
      memory: what there is, None where that is not known. refused: XLA's own words, when it could not compile a step
        for want of memory.
      steps, tokens: of the whole run. passes: over the rows there are. read: bytes of activations over the whole run,
        float32, of all devices.
      flops: operations of a step. seconds: of the whole run at `EXPECTED` of the peak; None where the peak is not
        known.
    """

    devices: str
    mesh: Mapping[str, int]
    state: int
    batches: int
    temporaries: int
    memory: int | None
    refused: str | None
    steps: int
    tokens: int
    passes: float | None
    read: int
    flops: float
    seconds: float | None

    @property
    def peak(self) -> int:
        return self.state + self.batches + self.temporaries

    def check(self) -> None:
        """Raises ValueError, with advice, where the run does not fit."""
        if self.refused is None and (self.memory is None or self.peak <= self.memory):
            return
        has = "" if self.memory is None else f", which has {self.memory / _GIB:.2f} GiB"
        needed = self.refused or f"a step takes {self.temporaries / _GIB:.2f} GiB beside it"
        raise ValueError(
            f"this does not fit into a device's memory{has}: the states of all runs take {self.state / _GIB:.2f} GiB "
            f"of each, {needed}. Put more devices along 'latent' (now {self.mesh['latent']}), train fewer autoencoders "
            "in one pass, or take a smaller batch_size or width"
        )

    def __str__(self) -> str:
        gib = {name: getattr(self, name) / _GIB for name in ("state", "batches", "temporaries", "peak")}
        of = "" if self.memory is None else f" of {self.memory / _GIB:.1f}"
        hours = "not known" if self.seconds is None else _duration(self.seconds)
        passes = "" if self.passes is None else f", {self.passes:.2f} passes"
        return (
            f"{self.devices}, mesh {' x '.join(f'{n} {name}' for name, n in self.mesh.items())}\n"
            f"memory of a device: {gib['peak']:.2f}{of} GiB (states {gib['state']:.2f}, batches {gib['batches']:.2f}, "
            f"a step {gib['temporaries']:.2f})\n"
            f"{self.steps:,} steps, {self.tokens:,} tokens{passes}, {self.read / 1e9:,.1f} GB to read\n"
            f"{self.flops / 1e12:.3f} TFLOP a step and device; at {EXPECTED:.0%} of the peak: {hours}"
        )


EXPECTED = 0.5  # of the peak; Gemma Scope had 50.8% with 131k latents on TPU v3 (arXiv 2408.05147, section 3)


def plan(
    configs: Sequence[TrainConfig],
    widths: Mapping[str, int],
    mesh: Mesh,
    *,
    rows: int | None = None,
    together: str = "side_by_side",
) -> Plan:
    """Compiles the steps for the mesh, whose devices need not be there, and adds up.

    Args:
      widths: of the activations at the configs' sites. rows: of the store, for the number of passes.

    Raises:
      ValueError: for a mesh that the runs cannot be split over.
    """
    check_mesh(configs, mesh)
    device = mesh.devices.flat[0]
    first, sites = configs[0], {site for c in configs for site in c.sites + c.sites_out}
    state = temporaries = 0
    refused, flops = None, 0.0
    for shape, _ in groups_of(configs, widths, together):
        state += _bytes_of_a_device(shape, mesh)
        try:
            compiled = programs.compiled_step(shape, mesh)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refused = f"and XLA says: {str(error).splitlines()[0][:300]}"
            continue
        temporaries = max(temporaries, compiled.memory_analysis().temp_size_in_bytes)
        flops += _flops(shape, compiled)
    tokens = first.steps * first.batch_size
    row = 4 * sum(widths[site] for site in sites)
    peak = peak_flops(device)
    return Plan(
        devices=f"{mesh.size} x {device.device_kind}",
        mesh=dict(mesh.shape),
        state=state,
        batches=READ_AHEAD * row * first.batch_size // mesh.shape["data"],
        temporaries=temporaries,
        memory=memory(device),
        refused=refused,
        steps=first.steps,
        tokens=tokens,
        passes=None if rows is None else tokens / rows,
        read=row * tokens,
        flops=flops,
        seconds=None if peak is None else first.steps * flops * passes(first, device) / (EXPECTED * peak),
    )


def check_mesh(configs: Sequence[TrainConfig], mesh: Mesh) -> None:
    """Raises ValueError unless every run can be split over the mesh."""
    if set(mesh.axis_names) != {"data", "latent"}:
        raise ValueError(f"the mesh needs the axes 'data' and 'latent', got {mesh.axis_names}")
    data, latent = mesh.shape["data"], mesh.shape["latent"]
    for c in configs:
        if c.batch_size % data:
            raise ValueError(f"a batch of {c.batch_size} cannot be split over {data} devices along 'data'")
        if c.width % latent:
            raise ValueError(f"{c.width} latents cannot be split over {latent} devices along 'latent'")


def _flops(shape: programs.Shape, compiled: jax.stages.Compiled) -> float:
    counted = compiled.cost_analysis()["flops"]
    # A loop's body is counted once.
    return counted * (shape.stacked if shape.together == "scanned" and shape.stacked else 1)


def passes(config: TrainConfig, device: jax.Device) -> int:
    """How often a TPU's bfloat16 units are passed for one product in the precision of a config."""
    return {"highest": 6, "high": 3, "default": 1}[config.precision] if device.platform == "tpu" else 1


def _bytes_of_a_device(shape: programs.Shape, mesh: Mesh) -> int:
    leaves = zip(jax.tree.leaves(shape.structure()), jax.tree.leaves(shape.shardings(mesh)), strict=True)
    return sum(int(np.prod(s.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf, s in leaves)


def memory(device: jax.Device) -> int | None:
    """Bytes of a device; of the machine, for a CPU, whose devices share them."""
    if device.device_kind in TPUS:
        return TPUS[device.device_kind][0] * _GIB
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // max(1, jax.local_device_count("cpu"))
    return (device.memory_stats() or {}).get("bytes_limit")


def peak_flops(device: jax.Device) -> float | None:
    """Operations a second of a device: a TPU's from its data sheet, in bfloat16; a CPU's as measured, in float32."""
    if device.device_kind in TPUS:
        return TPUS[device.device_kind][1]
    return _measured() if device.platform == "cpu" else None


@functools.cache
def _measured() -> float:
    """Of the best of three large products; all devices of a CPU share it."""
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


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"
