"""Several runs on the same batches: their states, and one update of all."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mishax_lite.compiling import jit_program
from sae.autoencoder import JumpReLU
from sae.crosscoder import Crosscoder
from sae.recipes import TrainConfig
from sae.trainer import diagnostics, programs, releasing
from sae.trainer import state as states
from sae.trainer.programs import TOGETHER, Shape
from sae.trainer.schedules import Knobs, knobs
from sae.trainer.state import State
from sae.trainer.units import Units

T = TypeVar("T")


@dataclasses.dataclass
class Group:
    """Runs that are updated by one call: one, or several stacked along a leading axis.

    Attributes:
      members: their numbers among all runs. configs: theirs. shape: what they have in common.
      names: the sites of the store, by the names that the shape has for them.
      units, knobs: what the compiled step takes. state: theirs, stacked if they are several; None before the start.
    """

    members: tuple[int, ...]
    configs: tuple[TrainConfig, ...]
    shape: Shape
    names: dict[str, str]
    units: dict[str, Units]
    knobs: Knobs
    state: State | None = None


def groups_of(
    configs: Sequence[TrainConfig], widths: Mapping[str, int], together: str
) -> list[tuple[Shape, tuple[int, ...]]]:
    """Which runs share a call: each its own when side by side, else those of one shape on the same sites."""
    found: dict[tuple, list[int]] = {}
    for i, config in enumerate(configs):
        alone = i if together == "side_by_side" else None
        found.setdefault((states.shape_of(config), config.sites, config.sites_out, alone), []).append(i)
    return [
        (
            Shape(
                shape,
                tuple(widths[s] for s in sites + (sites_out if sites_out != sites else ())),
                stacked=len(members) if len(members) > 1 else 0,
                together=together if len(members) > 1 else "side_by_side",
            ),
            tuple(members),
        )
        for (shape, sites, sites_out, _), members in found.items()
    ]


class Sweep:
    """The runs, in groups. `begin` or `load` gives them their states."""

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        units: Sequence[Mapping[str, Units]],
        widths: Mapping[str, int],
        mesh: Mesh,
        together: str = "side_by_side",
    ):
        if together not in TOGETHER:
            raise ValueError(f"together is one of {', '.join(TOGETHER)}, got {together!r}")
        configs = [config.resolve() for config in configs]
        self.mesh, self._count = mesh, len(configs)
        # On CPU, collectives of steps in flight can starve each other of threads.
        self._in_order = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
        self.groups = []
        for shape, members in groups_of(configs, widths, together):
            own = tuple(configs[i] for i in members)
            self.groups.append(
                Group(
                    members=members,
                    configs=own,
                    shape=shape,
                    names=states.renamed({site: site for site in own[0].sites + own[0].sites_out}, own[0]),
                    units=states.renamed(units[members[0]], own[0]),
                    knobs=programs.stacked_knobs(list(own)) if shape.stacked else knobs(own[0]),
                )
            )

    def update(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """One update of every run on a batch of the store. Returns something to wait for."""
        for group in self.groups:
            step = programs.compiled_step(group.shape, self.mesh)
            own = {name: batch[group.names[name]] for name in group.shape.named_widths}
            group.state, done = step(group.state, own, group.units, group.knobs)
            if self._in_order:
                done.block_until_ready()
        return done

    def states(self) -> list[State]:
        """Of each run, in the order of the configs."""
        return self._ordered(lambda group, state: state)

    def begin(self) -> None:
        """Gives every run its initial state, made where it will lie."""
        for group in self.groups:
            runs = [programs.make_state(group.shape, config.seed, self.mesh) for config in group.configs]
            group.state = self._joined(group.shape, runs)

    def structure(self) -> list[State]:
        """Shapes, dtypes and shardings of each run's state, in the order of the configs."""
        ordered: list = [None] * self._count
        for group in self.groups:
            alone = dataclasses.replace(group.shape, stacked=0)
            for member in group.members:
                ordered[member] = jax.tree.map(
                    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
                    alone.structure(),
                    alone.shardings(self.mesh),
                )
        return ordered

    def load(self, runs: Sequence[State]) -> None:
        """Gives every run a state."""
        for group in self.groups:
            group.state = self._joined(group.shape, [runs[i] for i in group.members])

    def records(self) -> list[dict]:
        """What each run's tally says, in the order of the configs, fetched; the tallies are empty afterwards."""
        found = self._ordered(lambda group, state: _summary(group.shape, self.mesh)(state))
        for group in self.groups:
            group.state = _emptied(group.shape, self.mesh)(group.state)
        return jax.device_get(found)

    def released(self) -> list[JumpReLU | Crosscoder]:
        """The autoencoders of raw activations, in the order of the configs, on the mesh.

        The states are gone afterwards. Their moments, which take at least as much memory as the parameters, go first:
        where a step had room, so has this.
        """
        for group in self.groups:
            group.state = group.state._replace(optimizer=None, silent=None, tally=None)
        released = self._ordered(lambda group, state: _release(group.shape)(state.params, group.units))
        for group in self.groups:
            group.state = None
        return released

    def _ordered(self, function: Callable[[Group, State], T]) -> list[T]:
        """What a function gives for each run's state, in the order of the configs."""
        ordered: list = [None] * self._count
        for group in self.groups:
            for place, member in enumerate(group.members):
                alone = lambda leaf, place=place: leaf[place]  # noqa: E731
                state = jax.tree.map(alone, group.state) if group.shape.stacked else group.state
                ordered[member] = function(group, state)
        return ordered

    def _joined(self, shape: Shape, runs: Sequence[State]) -> State:
        if not shape.stacked:
            return runs[0]
        stack = jax.jit(
            lambda *each: jax.tree.map(lambda *leaves: jnp.stack(leaves), *each),
            out_shardings=shape.shardings(self.mesh),
        )
        return stack(*runs)


@functools.lru_cache(maxsize=64)
def _summary(shape: Shape, mesh: Mesh):
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda state: diagnostics.summary(state, shape.config), out_shardings=everywhere)


@functools.lru_cache(maxsize=64)
def _emptied(shape: Shape, mesh: Mesh):
    return jax.jit(diagnostics.emptied, out_shardings=shape.shardings(mesh), donate_argnums=0)


@functools.lru_cache(maxsize=64)
def _release(shape: Shape):
    return jit_program(lambda params, units: releasing.release(params, shape.config, units), program="other")
