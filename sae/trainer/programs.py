"""Compiled training steps: one for each shape of run, shared by all runs of that shape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mishax_lite.compiling import compiler_options
from sae.recipes import TrainConfig
from sae.trainer import state as states
from sae.trainer.schedules import Knobs, knobs
from sae.trainer.state import State
from sae.trainer.units import Units

TOGETHER = ("side_by_side", "vmapped", "scanned")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a compiled step depends on: `states.shape_of` a config, the widths of what goes in and out, how many runs
    are stacked (0: one, not stacked) and in which way."""

    config: TrainConfig
    widths: tuple[int, ...]  # of each site that goes in, and, for a transcoder, of what comes out
    stacked: int = 0
    together: str = "side_by_side"

    @property
    def A_in(self) -> int:
        return sum(self.widths[: len(self.config.sites)])

    @property
    def A_out(self) -> int:
        return self.widths[-1] if self.config.transcodes else self.A_in

    @property
    def named_widths(self) -> dict[str, int]:
        """By the names that the config's shape has for its sites."""
        names = self.config.sites + (self.config.sites_out if self.config.transcodes else ())
        return dict(zip(names, self.widths, strict=True))

    def initial(self, key: jax.Array | None = None) -> State:
        return states.initial(self.config, self.A_in, self.A_out, key)

    def structure(self) -> State:
        """Shapes and dtypes of the state."""
        one = jax.eval_shape(lambda: self.initial())
        if not self.stacked:
            return one
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((self.stacked, *leaf.shape), leaf.dtype), one)

    def shardings(self, mesh: Mesh) -> State:
        """How the state lies on a mesh; stacked runs are whole on each device's part."""
        placed = states.shardings(jax.eval_shape(lambda: self.initial()), mesh)
        if not self.stacked:
            return placed
        return jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(None, *s.spec)), placed)


def make_state(shape: Shape, seed: int, mesh: Mesh) -> State:
    """The initial state of one run, made where it will lie, never whole on one device."""
    # As numpy, which all processes of a mesh may give.
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))
    return _initialiser(dataclasses.replace(shape, stacked=0), mesh)(key)


@functools.lru_cache(maxsize=64)
def _initialiser(shape: Shape, mesh: Mesh):
    """One program for the runs of a shape: the seed's key is its argument."""
    return jax.jit(lambda key: shape.initial(jax.random.wrap_key_data(key)), out_shardings=shape.shardings(mesh))


@functools.lru_cache(maxsize=64)
def compiled_step(shape: Shape, mesh: Mesh) -> jax.stages.Compiled:
    """A function of (state, batch, units, knobs) to (state, loss). The batch lies over `data`; the state's buffers are
    reused.

    Raises:
      jax.errors.JaxRuntimeError: when it does not fit into the devices' memory.
    """
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    struct = jax.ShapeDtypeStruct
    B = shape.config.batch_size
    batch = {name: struct((B, A), jnp.float32, sharding=split) for name, A in shape.named_widths.items()}
    units = {
        name: Units(struct((A,), jnp.float32, sharding=everywhere), struct((), jnp.float32, sharding=everywhere))
        for name, A in shape.named_widths.items()
    }
    leading = (shape.stacked,) if shape.stacked else ()
    numbers = Knobs(*(struct(leading, jnp.float32, sharding=everywhere) for _ in Knobs._fields))
    placed = shape.shardings(mesh)
    state = jax.tree.map(lambda leaf, s: struct(leaf.shape, leaf.dtype, sharding=s), shape.structure(), placed)
    jitted = jax.jit(
        _function(shape),
        out_shardings=(placed, everywhere),
        donate_argnums=0,
    )
    platform = _platform(mesh)
    with jax.set_mesh(mesh):
        lowered = jitted.trace(state, batch, units, numbers).lower(lowering_platforms=(platform,))
        return lowered.compile(compiler_options=compiler_options("other", platform))


def _platform(mesh: Mesh) -> str:
    return {"gpu": "cuda"}.get(mesh.devices.flat[0].platform, mesh.devices.flat[0].platform)


def _function(shape: Shape):
    def one(state, batch, units, numbers):
        after = states.step(state, batch, units, numbers, config=shape.config)
        return after, after.tally.loss

    if not shape.stacked:
        return one
    if shape.together == "vmapped":
        return jax.vmap(one, in_axes=(0, None, None, 0))

    def scanned(state, batch, units, numbers):
        return jax.lax.map(lambda run: one(run[0], batch, units, run[1]), (state, numbers))

    return scanned


def stacked_knobs(configs: list[TrainConfig]) -> Knobs:
    return jax.tree.map(lambda *values: jnp.stack(values), *map(knobs, configs))
