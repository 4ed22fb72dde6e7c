"""What a run takes, before it starts: memory of each device, steps, bytes to read, operations. All of it comes from the
compiled program, also for devices that this machine lacks."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from sae import showing, topologies
from sae.runs import Run
from sae.store.source import Source
from sae.trainer import devices, programs
from sae.trainer.sweeps import groups_of

_GIB = 2**30
READ_AHEAD = 3  # batches on a device while a step runs
EXPECTED = 0.5  # share of the peak; Gemma Scope had 50.8% with 131k latents on TPU v3 (arXiv 2408.05147, section 3)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What training takes. Bytes and operations are of one device, unless an attribute says otherwise.

    Printed, it is four lines: devices, memory, steps, time.

    Attributes:
        devices: number and kind of the devices.
        mesh: the axes of the mesh, {name: devices along it}.
        state: bytes of parameters, moments and statistics of all runs.
        batches: bytes of the batches that are read ahead.
        temporaries: bytes that the largest step takes beside both.
        memory: bytes that a device has; None where they are not known.
        refused: XLA's error, where it could not compile a step for want of memory; None elsewhere.
        steps: of the whole run.
        tokens: of the whole run.
        epochs: readings of all rows; None where the number of rows is not known.
        read: bytes of float32 activations over the whole run, for all devices.
        checkpoint: bytes of a checkpoint of all runs, from all devices.
        flops: operations of a step.
        seconds: of the whole run at `EXPECTED` of the peak; None where the peak is not known.
        advice: on the precision of products, where it costs much; None elsewhere.
        peak_flops: the peak behind `seconds`, in words; None where it is not known.

    Example:
        >>> run = sae.short_run("layer_12/resid_post", 64, 100, batch_size=32, l0_target=8)
        >>> estimate = sae.estimate(run, {"layer_12/resid_post": 16})
        >>> estimate.fits, estimate.steps, estimate.tokens
        (True, 100, 3200)
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
    epochs: float | None
    read: int
    checkpoint: int
    flops: float
    seconds: float | None
    advice: str | None = None
    peak_flops: str | None = None

    @property
    def peak(self) -> int:
        """Bytes of a device while the largest step runs."""
        return self.state + self.batches + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether the run fits into a device's memory; True where the memory is not known."""
        return self.refused is None and (self.memory is None or self.peak <= self.memory)

    def check(self) -> None:
        """Raises ValueError, with advice, for a run that does not fit."""
        if self.fits:
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
        return f"Estimate({self.peak / _GIB:.2f}{of} GiB of a device, {self.steps:,} steps, {self.tokens:,} tokens)"

    def __str__(self) -> str:
        gib = {name: getattr(self, name) / _GIB for name in ("state", "batches", "temporaries", "peak")}
        of = "" if self.memory is None else f" of {self.memory / _GIB:.1f}"
        time = "the time is not known, since the peak of this device is not known"
        if self.seconds is not None:
            time = f"at {EXPECTED:.0%} of the peak, {self.peak_flops}: {_duration(self.seconds)}"
        epochs = "" if self.epochs is None else f", {self.epochs:.2f} epochs"
        return (
            f"{self.devices}, mesh {' x '.join(f'{n} {name}' for name, n in self.mesh.items())}\n"
            f"memory of a device: {gib['peak']:.2f}{of} GiB (states {gib['state']:.2f}, batches {gib['batches']:.2f}, "
            f"a step {gib['temporaries']:.2f})\n"
            f"{self.steps:,} steps, {self.tokens:,} tokens{epochs}, {self.read / 1e9:,.1f} GB to read\n"
            f"{self.flops / 1e12:.3f} TFLOP a step and device; {time}"
            + ("" if self.advice is None else f"\n{self.advice}")
        )


def default_mesh() -> Mesh:
    """Returns the mesh that training has by default: all devices along `data`."""
    return Mesh(np.asarray(jax.devices()).reshape(-1, 1), ("data", "latent"))


def estimate(
    runs: Run | Sequence[Run],
    source_or_dims: Source | Mapping[str, int],
    mesh_or_topology: Mesh | str | None = None,
    *,
    latent: int = 1,
    together: str = "side_by_side",
) -> Estimate:
    """Estimates what `sae.train` takes: compiles the steps, trains nothing, reads no row.

    Args:
        runs: one run, or several that are trained in one pass.
        source_or_dims: the store, stream or rows to train on; or, before any exists, the lengths of the activations of
            the runs' sites, {site: A}. Only with a source the number of epochs is known.
        mesh_or_topology: a mesh with the axes `data` and `latent`; or the name of TPUs that this machine need not
            have, such as "v5e:16x16", for which libtpu compiles (pip install 'jax[tpu]'). By default all devices
            along `data`, as for `sae.train`.
        latent: chips along `latent`, with a topology. A mesh has that already.
        together: as for `sae.train`.

    Returns:
        The estimate. `print` shows it; `check()` raises ValueError for runs that do not fit into a device's memory.

    Raises:
        ValueError: for a site that is missing, a mesh over which the runs cannot be split, a topology that libtpu does
            not know, and a topology without libtpu.

    Example:
        >>> run = sae.short_run("layer_12/resid_post", 64, 100, batch_size=32, l0_target=8)
        >>> estimate = sae.estimate(run, {"layer_12/resid_post": 16})
        >>> estimate.steps, estimate.tokens, estimate.read  # 4 bytes of each of 16 numbers a token
        (100, 3200, 204800)
    """
    runs = runs_of(runs, "sae.estimate")
    dims, rows = _dims(runs, source_or_dims)
    mesh = _mesh(mesh_or_topology, latent)
    check_mesh(runs, mesh)
    device = mesh.devices.flat[0]
    first = runs[0]
    state = temporaries = 0
    refused, flops = None, 0.0
    for shape, _ in groups_of(runs, dims, together):
        state += _bytes_of_a_device(shape, mesh)
        try:
            compiled = programs.compiled_step(shape, mesh)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refused = f"and XLA says: {str(error).splitlines()[0][:300]}"
            continue
        # pyrefly: ignore[missing-attribute]  not None here
        temporaries = max(temporaries, compiled.memory_analysis().temp_size_in_bytes)
        flops += _flops(shape, compiled)
    tokens, row, peak = first.steps * first.batch_size, 4 * sum(dims.values()), devices.peak_flops(device)
    return Estimate(
        devices=f"{mesh.size} x {device.device_kind}",
        mesh=dict(mesh.shape),
        state=state,
        batches=READ_AHEAD * row * first.batch_size // mesh.shape["data"],
        temporaries=temporaries,
        memory=devices.memory(device),
        refused=refused,
        steps=first.steps,
        tokens=tokens,
        epochs=None if rows is None else tokens / rows,
        read=row * tokens,
        checkpoint=state_bytes(runs, dims, together),
        flops=flops,
        seconds=None if peak is None else first.steps * flops * devices.passes(first, device) / (EXPECTED * peak),
        advice=devices.precision_advice(runs, device.platform),
        peak_flops=None if peak is None else devices.peak_in_words(peak, device),
    )


def _dims(runs: Sequence[Run], source_or_dims: Source | Mapping[str, int]) -> tuple[dict[str, int], int | None]:
    """Returns {site: A} for the runs' sites, and the number of rows where it is known."""
    sites = dict.fromkeys(site for run in runs for site in run.sites + run.sites_out)
    if isinstance(source_or_dims, Source):
        return {site: source_or_dims.width(site) for site in sites}, source_or_dims.rows
    if not isinstance(source_or_dims, Mapping):
        raise ValueError(
            "sae.estimate takes a store, a stream or rows, or the lengths of activations such as "
            f"{{'layer_12/resid_post': 2304}}; got {showing.kind(source_or_dims)}"
        )
    if missing := [site for site in sites if site not in source_or_dims]:
        raise ValueError(f"the length of {missing[0]!r} is missing, got those of {', '.join(source_or_dims)}")
    for site in sites:
        if isinstance(source_or_dims[site], bool) or not isinstance(source_or_dims[site], int | np.integer):
            raise ValueError(f"the length of {site!r} must be a whole number, got {showing.kind(source_or_dims[site])}")
    return {site: int(source_or_dims[site]) for site in sites}, None


def _mesh(mesh_or_topology: Mesh | str | None, latent: int) -> Mesh:
    if isinstance(mesh_or_topology, str):
        return topologies.mesh(topologies.chips(mesh_or_topology), latent, "latent", mesh_or_topology)
    if latent != 1:
        raise ValueError(f"latent={latent} goes with a topology such as 'v5e:4x4'; a mesh has its axes already")
    if mesh_or_topology is None:
        return default_mesh()
    if not isinstance(mesh_or_topology, Mesh):
        raise ValueError(
            "sae.estimate takes a jax.sharding.Mesh, or a topology such as 'v5e:4x4'; got "
            + showing.kind(mesh_or_topology)
        )
    return mesh_or_topology


def runs_of(runs: Run | Sequence[Run], caller: str) -> list[Run]:
    """Returns one run or several as a list.

    Args:
      runs: one run, or several.
      caller: the name of the function, for the error.

    Raises:
      ValueError: for another object, and for no run.
    """
    several = isinstance(runs, Iterable) and not isinstance(runs, str | Run)
    listed = list(runs) if several else [runs]
    if not listed:
        raise ValueError(f"{caller} needs one run at least, got none")
    if wrong := [run for run in listed if not isinstance(run, Run)]:
        raise ValueError(f"{caller} takes a run, such as sae.short_run makes, or several; got {showing.kind(wrong[0])}")
    return listed


def state_bytes(runs: Sequence[Run], dims: Mapping[str, int], together: str = "side_by_side") -> int:
    """Returns the bytes of the whole states of all runs, which are nearly the bytes of a checkpoint.

    Args:
      runs: the runs.
      dims: {site: A}.
      together: as for `sae.train`.
    """
    return sum(len(members) * _whole_bytes(shape) for shape, members in groups_of(runs, dims, together))


@functools.lru_cache(maxsize=64)
def _whole_bytes(shape: programs.Shape) -> int:
    """Returns the bytes of the state of one run."""
    leaves = jax.tree.leaves(shape.alone().structure_of_state())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def check_mesh(runs: Sequence[Run], mesh: Mesh) -> None:
    """Raises ValueError for a mesh over which some run cannot be split."""
    if set(mesh.axis_names) != {"data", "latent"}:
        raise ValueError(f"the mesh needs the axes 'data' and 'latent', got {mesh.axis_names}")
    data, latent = mesh.shape["data"], mesh.shape["latent"]
    for run in runs:
        if run.batch_size % data:
            raise ValueError(f"a batch of {run.batch_size} cannot be split over {data} devices along 'data'")
        if run.width % latent:
            raise ValueError(f"{run.width} latents cannot be split over {latent} devices along 'latent'")


def _flops(shape: programs.Shape, compiled: jax.stages.Compiled) -> float:
    # pyrefly: ignore[unsupported-operation]  not None here
    counted = compiled.cost_analysis()["flops"]
    # A loop's body is counted once.
    return counted * (shape.stacked if shape.together == "scanned" and shape.stacked else 1)


def _bytes_of_a_device(shape: programs.Shape, mesh: Mesh) -> int:
    leaves = zip(jax.tree.leaves(shape.structure_of_state()), jax.tree.leaves(shape.shardings(mesh)), strict=True)
    return sum(int(np.prod(s.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf, s in leaves)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"
