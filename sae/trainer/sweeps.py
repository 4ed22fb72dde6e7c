"""Several runs on the same batches: their states, and an update of all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sae.autoencoder import JumpReLU
from sae.crosscoder import Crosscoder
from sae.inputs import Units
from sae.runs import Run
from sae.trainer import contracts, programs
from sae.trainer.loss import Parts
from sae.trainer.programs import TOGETHER, Shape
from sae.trainer.state import State

T = TypeVar("T")


@dataclasses.dataclass
class Group:
    """Runs that one call updates: one run, or several stacked along a leading axis.

    Attributes:
      members: the numbers of the runs among all runs.
      runs: the runs.
      shape: what they have in common.
      names: the sites of the store, by the names that the shape has for them.
      units: what the compiled step takes, by those names.
      parts: what the compiled step takes; the numbers of several runs are stacked.
      state: of the runs, stacked likewise; None before the start.
    """

    members: tuple[int, ...]
    runs: tuple[Run, ...]
    shape: Shape
    names: dict[str, str]
    units: dict[str, Units]
    parts: Parts
    state: State | None = None


def groups_of(runs: Sequence[Run], dims: Mapping[str, int], together: str) -> list[tuple[Shape, tuple[int, ...]]]:
    """Returns which runs share a call: each has its own side by side, else runs of one shape on the same sites share.

    Args:
      runs: all runs.
      dims: {site: A}.
      together: one of `programs.TOGETHER`.

    Returns:
      The shape of each group, and the numbers of its runs.
    """
    groups: dict[tuple, list[int]] = {}
    for i, run in enumerate(runs):
        alone = i if together == "side_by_side" else None
        groups.setdefault((Shape.of(run, dims), run.sites, run.sites_out, alone), []).append(i)
    return [
        (dataclasses.replace(shape, stacked=len(m), together=together) if len(m) > 1 else shape, tuple(m))
        for (shape, *_), m in groups.items()
    ]


class Sweep:
    """The runs of a sweep, in groups. `begin` or `load` gives them their states."""

    def __init__(
        self,
        runs: Sequence[Run],
        units: Sequence[Mapping[str, Units]],
        dims: Mapping[str, int],
        mesh: Mesh,
        together: str = "side_by_side",
    ):
        if together not in TOGETHER:
            raise ValueError(f"together is one of {', '.join(TOGETHER)}, got {together!r}")
        self.mesh, self._count = mesh, len(runs)
        # On CPU, collectives of steps in flight can starve each other of threads.
        self._in_order = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
        self.groups = []
        for shape, members in groups_of(runs, dims, together):
            alike = tuple(runs[i] for i in members)
            self.groups.append(
                Group(
                    members=members,
                    runs=alike,
                    shape=shape,
                    names=shape.renamed({site: site for site in alike[0].sites + alike[0].sites_out}, alike[0]),
                    units=shape.renamed(units[members[0]], alike[0]),
                    parts=programs.stacked_numbers(alike),
                )
            )

    def update(self, batch: Mapping[str, Any]) -> jax.Array:
        """Updates every run with a batch of the store.

        Args:
          batch: float32 [B, A] by site.

        Returns:
          An array that is ready when the update is made.
        """
        for group in self.groups:
            step = programs.compiled_step(group.shape, self.mesh)
            values = {name: batch[group.names[name]] for name in group.shape.named_dims}
            group.state, finished = step(group.state, values, group.units, group.parts)
            if self._in_order:
                finished.block_until_ready()
        # pyrefly: ignore[unbound-name]  set before it is read
        return finished

    def states(self) -> list[State]:
        """Returns the state of each run, in the order of the runs."""
        return self._ordered(lambda group, state, parts: state)

    def begin(self) -> None:
        """Gives every run its initial state, made where it will lie."""
        for group in self.groups:
            runs = [programs.make_state(group.shape, run, self.mesh) for run in group.runs]
            group.state = self._joined(group.shape, runs)

    def check_releases(self) -> None:
        """Raises ValueError, before any step, for an architecture whose `release` returns what cannot be saved."""
        for group in self.groups:
            state = group.shape.alone().structure_of_state()
            # The runs of a group differ in numbers alone, which no shape depends on.
            contracts.check_release(group.runs[0].autoencoder, state.params, state.kept, group.shape.sizes)

    def structure(self) -> list[State]:
        """Returns shapes, dtypes and shardings of each run's state, in the order of the runs."""
        ordered: list = [None] * self._count
        for group in self.groups:
            alone = group.shape.alone()
            for member in group.members:
                ordered[member] = jax.tree.map(
                    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
                    alone.structure_of_state(),
                    alone.shardings(self.mesh),
                )
        return ordered

    def load(self, runs: Sequence[State]) -> None:
        """Gives every run a state, in the order of the runs."""
        for group in self.groups:
            group.state = self._joined(group.shape, [runs[i] for i in group.members])

    def records(self) -> list[dict]:
        """Fetches what each run's tally says, in the order of the runs, and empties the tallies."""
        summaries = self._ordered(lambda group, *of: programs.summary(group.shape.alone(), self.mesh)(*of))
        self.empty_tallies()
        return jax.device_get(summaries)

    def empty_tallies(self) -> None:
        """Empties the tally of every run."""
        for group in self.groups:
            group.state = programs.emptied(group.shape, self.mesh)(group.state)

    def released(self) -> list[JumpReLU | Crosscoder]:
        """Returns the autoencoders on raw activations, in the order of the runs, on the mesh.

        The states are gone afterwards. Their moments, which take at least as much memory as the parameters, go first:
        where a step had room, the release has room.
        """
        for group in self.groups:
            group.state = group.state._replace(optimizer=None, silent=None, tally=None, terms=None)
        released = self._ordered(
            lambda group, state, parts: programs.release(group.shape.alone())(
                state.params, state.kept, group.units, parts
            )
        )
        for group in self.groups:
            group.state = None
        return released

    def _ordered(self, function: Callable[[Group, State, Parts], T]) -> list[T]:
        """Returns what a function gives for each run's state and parts, in the order of the runs."""
        ordered: list = [None] * self._count
        for group in self.groups:
            for place, member in enumerate(group.members):
                alone = lambda leaf, place=place: leaf[place]  # noqa: E731
                of_group = (group.state, group.parts)
                ordered[member] = function(group, *(jax.tree.map(alone, of_group) if group.shape.stacked else of_group))
        return ordered

    def _joined(self, shape: Shape, runs: Sequence[State]) -> State:
        if not shape.stacked:
            return runs[0]
        stack = jax.jit(
            lambda *each: jax.tree.map(lambda *leaves: jnp.stack(leaves), *each),
            out_shardings=shape.shardings(self.mesh),
        )
        return stack(*runs)
