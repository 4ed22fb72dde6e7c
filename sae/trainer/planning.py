"""What a run will take, before it starts: memory of each device, steps, bytes to read, operations; from the compiled
program, also for devices that are not there."""

import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sae import showing
from sae.runs import Run
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
      advice: on the precision of products, where it costs much; None elsewhere.
      peak_flops: which peak `seconds` is of, in words; None where it is not known.
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
    advice: str | None = None
    peak_flops: str | None = None

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

    def __repr__(self) -> str:
        of = "" if self.memory is None else f" of {self.memory / _GIB:.1f}"
        return f"Plan({self.peak / _GIB:.2f}{of} GiB of a device, {self.steps:,} steps, {self.tokens:,} tokens)"

    def __str__(self) -> str:
        gib = {name: getattr(self, name) / _GIB for name in ("state", "batches", "temporaries", "peak")}
        of = "" if self.memory is None else f" of {self.memory / _GIB:.1f}"
        hours = "how long that takes is not known, as the peak of this device is not"
        if self.seconds is not None:
            hours = f"at {EXPECTED:.0%} of the peak, {self.peak_flops}: {_duration(self.seconds)}"
        passes = "" if self.passes is None else f", {self.passes:.2f} passes"
        return (
            f"{self.devices}, mesh {' x '.join(f'{n} {name}' for name, n in self.mesh.items())}\n"
            f"memory of a device: {gib['peak']:.2f}{of} GiB (states {gib['state']:.2f}, batches {gib['batches']:.2f}, "
            f"a step {gib['temporaries']:.2f})\n"
            f"{self.steps:,} steps, {self.tokens:,} tokens{passes}, {self.read / 1e9:,.1f} GB to read\n"
            f"{self.flops / 1e12:.3f} TFLOP a step and device; {hours}"
            + ("" if self.advice is None else f"\n{self.advice}")
        )


EXPECTED = 0.5  # of the peak; Gemma Scope had 50.8% with 131k latents on TPU v3 (arXiv 2408.05147, section 3)


def default_mesh() -> Mesh:
    """Returns the mesh that training has by default: all devices along `data`."""
    return Mesh(np.asarray(jax.devices()).reshape(-1, 1), ("data", "latent"))


def plan(
    runs: Run | Sequence[Run],
    widths: Mapping[str, int],
    mesh: Mesh | None = None,
    *,
    rows: int | None = None,
    together: str = "side_by_side",
) -> Plan:
    """Compiles the steps for the mesh, whose devices need not be there, and adds up.

    Args:
      runs: one, or several that are trained in one pass.
      widths: {site: A} of the runs' sites, such as `{site: store.width(site) for site in store.sites}`.
      mesh: with axes `data` and `latent`; all devices along `data` by default, as for `sae.train`.
      rows: of the store, for the number of passes.

    Raises:
      ValueError: for a site whose width is missing, and a mesh that the runs cannot be split over.
    """
    runs = runs_of(runs, "sae.plan")
    if not isinstance(widths, Mapping):
        raise ValueError(
            "sae.plan takes the widths of activations, {site: store.width(site) for site in store.sites}; got "
            + showing.kind(widths)
        )
    if missing := [site for c in runs for site in c.sites + c.sites_out if site not in widths]:
        raise ValueError(f"the width of {missing[0]!r} is missing: there are those of {', '.join(widths)}")
    mesh = default_mesh() if mesh is None else mesh
    check_mesh(runs, mesh)
    device = mesh.devices.flat[0]
    first, sites = runs[0], {site for c in runs for site in c.sites + c.sites_out}
    state = temporaries = 0
    refused, flops = None, 0.0
    for shape, _ in groups_of(runs, widths, together):
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
        advice=precision_advice(runs, device.platform),
        peak_flops=None if peak is None else _peak_in_words(peak, device),
    )


def runs_of(runs: Run | Sequence[Run], caller: str) -> list[Run]:
    """Returns one run or several as a list.

    Args:
      runs: what was given.
      caller: what the error calls the function that was given them.

    Raises:
      ValueError: for anything else, and for none.
    """
    several = isinstance(runs, Iterable) and not isinstance(runs, str | Run)
    listed = list(runs) if several else [runs]
    if not listed:
        raise ValueError(f"{caller} needs one run at least, got none")
    if wrong := [run for run in listed if not isinstance(run, Run)]:
        raise ValueError(f"{caller} takes a run, such as sae.short_run makes, or several; got {showing.kind(wrong[0])}")
    return listed


def state_bytes(runs: Sequence[Run], widths: Mapping[str, int], together: str = "side_by_side") -> int:
    """Bytes of the states of all runs, whole: of a checkpoint, nearly."""
    return sum(len(members) * _whole_bytes(shape) for shape, members in groups_of(runs, widths, together))


@functools.lru_cache(maxsize=64)
def _whole_bytes(shape: programs.Shape) -> int:
    """Of the state of one run."""
    leaves = jax.tree.leaves(shape.alone().structure_of_state())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def check_mesh(runs: Sequence[Run], mesh: Mesh) -> None:
    """Raises ValueError unless every run can be split over the mesh."""
    if set(mesh.axis_names) != {"data", "latent"}:
        raise ValueError(f"the mesh needs the axes 'data' and 'latent', got {mesh.axis_names}")
    data, latent = mesh.shape["data"], mesh.shape["latent"]
    for c in runs:
        if c.batch_size % data:
            raise ValueError(f"a batch of {c.batch_size} cannot be split over {data} devices along 'data'")
        if c.width % latent:
            raise ValueError(f"{c.width} latents cannot be split over {latent} devices along 'latent'")


def _flops(shape: programs.Shape, compiled: jax.stages.Compiled) -> float:
    counted = compiled.cost_analysis()["flops"]
    # A loop's body is counted once.
    return counted * (shape.stacked if shape.together == "scanned" and shape.stacked else 1)


def passes(run: Run, device: jax.Device) -> int:
    """How often a TPU's bfloat16 units are passed for one product in the precision of a run."""
    return {"highest": 6, "high": 3, "default": 1}[run.objective.precision] if device.platform == "tpu" else 1


def precision_advice(runs: Sequence[Run], platform: str) -> str | None:
    """What full float32 products cost on a GPU, which has no units for them; None where no run has them, or elsewhere.

    Measured on one H100 with JAX 0.11.2, a step with 16,384 latents.
    """
    if platform not in ("gpu", "cuda", "rocm") or all(run.objective.precision != "highest" for run in runs):
        return None
    return (
        "precision='highest' computes products in full float32: on an H100 a step with 16,384 latents takes 31.6 ms, "
        "and 6.9 ms in TF32 (precision='high'), 4.6 times less"
    )


def _bytes_of_a_device(shape: programs.Shape, mesh: Mesh) -> int:
    leaves = zip(jax.tree.leaves(shape.structure_of_state()), jax.tree.leaves(shape.shardings(mesh)), strict=True)
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


def _peak_in_words(peak: float, device: jax.Device) -> str:
    if device.device_kind in TPUS:
        return f"the data sheet's {peak / 1e12:.0f} TFLOP/s of a chip in bfloat16"
    return f"{peak / 1e12:.2g} TFLOP/s of a device, as this machine multiplied large float32 matrices"


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
