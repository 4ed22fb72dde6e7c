"""The state of a run: how it begins, one step of it, and how it lies on a mesh."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sae.architectures import Architecture
from sae.inputs import Units
from sae.parts import MOST_TOKENS, Sizes
from sae.sparsity import Now
from sae.trainer.loss import Parts, loss_of
from sae.trainer.tally import Tally


class State(NamedTuple):
    """A pytree; all of it float32 but for counters, also where JAX has 64 bits by default.

    Attributes:
      params: of the architecture.
      kept: what the architecture keeps beside them.
      optimizer: the optimizer's state.
      step: how many updates were made.
      terms: what each sparsity term keeps.
      silent: int32 [Z], the tokens since each latent fired last.
      tally: what is added up between two records of the history.
    """

    params: NamedTuple
    kept: Any
    optimizer: optax.OptState
    step: jax.Array
    terms: tuple
    silent: jax.Array
    tally: Tally


def initial(parts: Parts, dims: tuple[int, int], sizes: Sizes, key: jax.Array) -> State:
    """The state before the first step.

    Args:
      parts: of the run.
      dims: A_in and A_out.
      sizes: of the run.
      key: of the run's seed.
    """
    architecture = parts.autoencoder
    params = architecture.init(jax.random.fold_in(key, 0), dims, sizes, parts.initialisation)
    kept = architecture.state(sizes)
    x = jax.ShapeDtypeStruct((sizes.batch_size, dims[0]), jnp.float32)
    measures = jax.eval_shape(lambda x: architecture.encode(params, x, kept, sizes).measures, x)
    return State(
        params,
        kept,
        parts.optimizer.init(params, architecture, sizes),
        jnp.int32(0),
        tuple(term.init(sizes) for term in parts.sparsity),
        jnp.zeros((sizes.width,), jnp.int32),
        Tally.empty(sizes.width, dims[1], params, measures),
    )


def step(
    state: State,
    batch: Mapping[str, jax.Array],
    units: Mapping[str, Units],
    parts: Parts,
    *,
    sizes: Sizes,
    sites: tuple[str, ...],
    sites_out: tuple[str, ...],
) -> State:
    """One update.

    Args:
      state: before it.
      batch: raw activations [B, A] by site.
      units: scales and centres by site.
      parts: of the run; their numbers are those of this run.
      sizes: of the run; static.
      sites: what goes in; static. sites_out: what comes out; static.

    Returns:
      The state after it; the metrics of the batch, as of before the update, are in its tally.
    """
    architecture = parts.autoencoder
    x = parts.inputs.scaled(batch, units, sites)
    y = parts.inputs.scaled(batch, units, sites_out) if sizes.transcodes else x
    strength = jnp.float32(0.0)
    if parts.sparsity:
        strength = parts.sparsity[0].strength(state.terms[0], state.step, sizes)
    now = Now(state.step, strength, state.silent >= sizes.dead_tokens)
    (loss, values), grads = jax.value_and_grad(
        lambda params: loss_of(params, x, y, parts, state.kept, state.terms, now, sizes), has_aux=True
    )(state.params)
    params, optimizer = parts.optimizer.update(grads, state.optimizer, state.params, state.step, architecture, sizes)
    encoded = values.encoded
    terms = zip(parts.sparsity, state.terms, strict=True)
    return State(
        params,
        architecture.update(state.kept, encoded, state.step, sizes),
        optimizer,
        state.step + 1,
        tuple(term.update(kept, encoded, state.step, sizes) for term, kept in terms),
        jnp.where(encoded.fired > 0, 0, jnp.minimum(state.silent + len(x), MOST_TOKENS)),
        state.tally.add(loss, values, y, grads, strength),
    )


def shardings(state: State, architecture: Architecture, sizes: Sizes, mesh: Mesh) -> State:
    """The sharding of every array of a state (or of its shapes): latents over `latent`, the rest everywhere."""
    kind: Any = type(state.params)

    def place(leaf, name: str = "") -> NamedSharding:
        return NamedSharding(mesh, architecture.spec(name, leaf.shape, sizes))

    def of(node):
        if isinstance(node, kind):
            named = node._asdict().items()
            return kind(**{name: None if leaf is None else place(leaf, name) for name, leaf in named})
        return NamedSharding(mesh, PartitionSpec())

    optimizer, params = (
        jax.tree.map(of, part, is_leaf=lambda node: isinstance(node, kind)) for part in (state.optimizer, state.params)
    )
    everywhere = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)
    latent = NamedSharding(mesh, PartitionSpec("latent"))
    return everywhere._replace(
        params=params,
        kept=jax.tree.map(place, state.kept),
        optimizer=optimizer,
        terms=jax.tree.map(place, state.terms),
        silent=latent,
        tally=everywhere.tally._replace(fired=latent),
    )
