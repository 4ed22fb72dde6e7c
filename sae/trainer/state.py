"""The state of a run: its start, one step, and how it lies on a mesh."""

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
    """The state of a run, a pytree. All of it is float32 but for counters, also where JAX has 64 bits by default.

    Attributes:
      params: the architecture's parameters.
      kept: what the architecture keeps from step to step beside them.
      optimizer: the optimizer's state.
      step: how many updates were made.
      terms: what each sparsity term keeps.
      silent: int32 [Z], how many tokens ago each latent fired last.
      tally: sums over the batches since the last record of the history.
    """

    params: NamedTuple
    kept: Any
    optimizer: optax.OptState
    step: jax.Array
    terms: tuple
    silent: jax.Array
    tally: Tally


def initial(parts: Parts, dims: tuple[int, int], sizes: Sizes, key: jax.Array) -> State:
    """Returns the state before the first step.

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
    """Makes one update.

    Args:
      state: before the update.
      batch: raw activations [B, A] by site.
      units: scales and centres by site.
      parts: of the run, with its numbers.
      sizes: of the run; static.
      sites: what goes in; static.
      sites_out: what comes out; static.

    Returns:
      The state after the update. Its tally has the metrics of the batch, as of before the update.
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
    """Returns the sharding of every array of a state: latents over `latent`, the rest whole on every device.

    Args:
      state: or its shapes.
      architecture: says how its parameters lie.
      sizes: of the run.
      mesh: with the axes `data` and `latent`.
    """
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
