"""Compiled training steps: one for each shape of run, shared by all runs of that shape."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mishax_lite.compiling import compiler_options, jit_program
from sae.inputs import Units
from sae.parts import Sizes, numbers_of
from sae.runs import Run
from sae.trainer import diagnostics
from sae.trainer import state as states
from sae.trainer.loss import Parts
from sae.trainer.state import State

TOGETHER = ("side_by_side", "vmapped", "scanned")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a compiled step depends on. Runs that differ in their sites, seeds and numbers alone have the same shape.

    Attributes:
      structure: of the run's `Parts`: everything but their numbers.
      sizes: of the run.
      site_dims: A of each site that goes in and, for a transcoder, of the site that comes out.
      stacked: how many runs are stacked; 0 for one that is not stacked.
      together: how they are stacked, one of `TOGETHER`.
    """

    structure: jax.tree_util.PyTreeDef
    sizes: Sizes
    site_dims: tuple[int, ...]
    stacked: int = 0
    together: str = "side_by_side"

    @classmethod
    def of(cls, run: Run, dims: Mapping[str, int]) -> "Shape":
        """Returns the shape of one run, not stacked.

        Args:
          run: the run.
          dims: {site: A}.
        """
        sites = run.sites + (run.sites_out if run.transcodes else ())
        return cls(jax.tree.structure(Parts.of(run)), run.sizes, tuple(dims[site] for site in sites))

    @property
    def sites(self) -> tuple[str, ...]:
        """The names that compiled programs have for the sites that go in."""
        return tuple(f"in_{i}" for i in range(self.sizes.sites))

    @property
    def sites_out(self) -> tuple[str, ...]:
        """The names that compiled programs have for the sites that come out."""
        return ("out",) if self.sizes.transcodes else self.sites

    @property
    def dims(self) -> tuple[int, int]:
        """A_in and A_out."""
        A_in = sum(self.site_dims[: self.sizes.sites])
        return A_in, self.site_dims[-1] if self.sizes.transcodes else A_in

    @property
    def named_dims(self) -> dict[str, int]:
        """{name: A}, by the names that compiled programs have for the sites."""
        names = self.sites + (self.sites_out if self.sizes.transcodes else ())
        return dict(zip(names, self.site_dims, strict=True))

    def alone(self) -> "Shape":
        """Returns the shape of one of the stacked runs."""
        return dataclasses.replace(self, stacked=0, together="side_by_side")

    def renamed(self, values: Mapping[str, object], run: Run) -> dict:
        """Returns values by the names that compiled programs have for the sites.

        Args:
          values: by the sites of the run.
          run: a run of this shape.
        """
        names = dict(zip(run.sites + run.sites_out, self.sites + self.sites_out, strict=True))
        return {names[site]: values[site] for site in names}

    def numbers(self, sharding: NamedSharding | None = None) -> Parts:
        """Returns the parts with `jax.ShapeDtypeStruct`s in the place of their numbers."""
        leading = (self.stacked,) if self.stacked else ()
        number = jax.ShapeDtypeStruct(leading, jnp.float32, sharding=sharding)
        return jax.tree.unflatten(self.structure, [number] * self.structure.num_leaves)

    def structure_of_state(self) -> State:
        """Returns the shapes and dtypes of the state."""
        one = _structure(self.alone())
        if not self.stacked:
            return one
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((self.stacked, *leaf.shape), leaf.dtype), one)

    def shardings(self, mesh: Mesh) -> State:
        """Returns how the state lies on a mesh. The axis of stacked runs is not split."""
        architecture = self.alone().numbers().autoencoder
        placed = states.shardings(_structure(self.alone()), architecture, self.sizes, mesh)
        if not self.stacked:
            return placed
        return jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(None, *s.spec)), placed)


@functools.lru_cache(maxsize=64)
def _structure(shape: Shape) -> State:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key, parts: states.initial(parts, shape.dims, shape.sizes, key), key, shape.numbers())


def make_state(shape: Shape, run: Run, mesh: Mesh) -> State:
    """Returns the initial state of one run, made where it will lie, and never whole on one device."""
    # A numpy array, which all processes of a mesh may give.
    key = np.asarray(jax.random.key_data(jax.random.key(run.seed)))
    return _initialiser(shape.alone(), mesh)(key, jax.tree.map(np.float32, Parts.of(run)))


@functools.lru_cache(maxsize=64)
def _initialiser(shape: Shape, mesh: Mesh):
    """Returns one program for all runs of a shape: the seed's key and the numbers are its arguments."""

    def initial(key, parts):
        return states.initial(parts, shape.dims, shape.sizes, jax.random.wrap_key_data(key))

    return jax.jit(initial, out_shardings=shape.shardings(mesh))


@functools.lru_cache(maxsize=64)
def compiled_step(shape: Shape, mesh: Mesh) -> jax.stages.Compiled:
    """Returns a program of (state, batch, units, parts) to (state, loss). The batch is split over `data`; the buffers
    of the state are reused.

    Raises:
      jax.errors.JaxRuntimeError: for a step that does not fit into the devices' memory.
    """
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    struct = jax.ShapeDtypeStruct
    B = shape.sizes.batch_size
    batch = {name: struct((B, A), jnp.float32, sharding=split) for name, A in shape.named_dims.items()}
    units = {
        name: Units(struct((A,), jnp.float32, sharding=everywhere), struct((), jnp.float32, sharding=everywhere))
        for name, A in shape.named_dims.items()
    }
    placed = shape.shardings(mesh)
    state = jax.tree.map(lambda leaf, s: struct(leaf.shape, leaf.dtype, sharding=s), shape.structure_of_state(), placed)
    jitted = jax.jit(
        _function(shape),
        out_shardings=(placed, everywhere),
        donate_argnums=0,
    )
    platform = _platform(mesh)
    with jax.set_mesh(mesh):
        lowered = jitted.trace(state, batch, units, shape.numbers(everywhere)).lower(lowering_platforms=(platform,))
        return lowered.compile(compiler_options=compiler_options("other", platform))


def _platform(mesh: Mesh) -> str:
    return {"gpu": "cuda"}.get(mesh.devices.flat[0].platform, mesh.devices.flat[0].platform)


def _function(shape: Shape):
    def one(state, batch, units, parts):
        after = states.step(state, batch, units, parts, sizes=shape.sizes, sites=shape.sites, sites_out=shape.sites_out)
        return after, after.tally.loss

    if not shape.stacked:
        return one
    if shape.together == "vmapped":
        return jax.vmap(one, in_axes=(0, None, None, 0))

    def scanned(state, batch, units, parts):
        return jax.lax.map(lambda run: one(run[0], batch, units, run[1]), (state, parts))

    return scanned


def stacked_numbers(runs: Sequence[Run]) -> Parts:
    """Returns the parts of runs of one shape with their numbers stacked, or those of one run as they are."""
    parts = [numbers_of(Parts.of(run)) for run in runs]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *values: jnp.stack(values), *parts)


@functools.lru_cache(maxsize=64)
def summary(shape: Shape, mesh: Mesh):
    """Returns a program of (state, parts) to the record of one run."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda state, parts: diagnostics.summary(state, parts, shape.sizes), out_shardings=everywhere)


@functools.lru_cache(maxsize=64)
def emptied(shape: Shape, mesh: Mesh):
    """Returns a program of a state to the state with an empty tally."""
    return jax.jit(diagnostics.emptied, out_shardings=shape.shardings(mesh), donate_argnums=0)


@functools.lru_cache(maxsize=64)
def release(shape: Shape):
    """Returns a program of (params, kept, units, parts) to the autoencoder on raw activations, without `info`."""

    def released(params, kept, units, parts):
        with jax.default_matmul_precision("highest"):
            autoencoder = parts.objective.release(parts.autoencoder.release(params, kept, shape.sizes))
            return parts.inputs.fold(autoencoder, units, shape.sites, shape.sites_out)

    return jit_program(released, program="other")
