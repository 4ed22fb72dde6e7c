"""The compiled programs of `gemma.generate`: they read the prompts, then decode token after token with a cache."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemma import drawing, sharding
from gemma.cache import Cache, empty
from gemma.drawing import Rules
from gemma.model import Model
from mishax_lite import Edits
from mishax_lite.compiling import jit_program

_OTHER_SAMPLES = np.uint32(2**31)  # where the keys of further samples of a prompt begin: beyond any token's number


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Program:
    """The arguments that all steps have in common; static ones are compiled in.

    Attributes:
        model: the model.
        rules: how a token is drawn.
        edits: the edits of every step.
        key: the random key.
        stops: ids [S] of the stop tokens.
    """

    model: Model
    rules: Rules
    edits: Edits
    key: jax.Array
    stops: jax.Array

    def keys(self, prompts: int, samples: int) -> jax.Array:
        """Returns a key for each sample: the first sample's depends on its prompt's place alone."""
        first = jax.vmap(lambda row: jax.random.fold_in(self.key, row))(jnp.arange(prompts))
        numbers = _OTHER_SAMPLES + jnp.arange(1, samples, dtype=jnp.uint32)
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        return jnp.concatenate([first[:, None], fold(first, numbers)], axis=1).reshape(-1)

    def logits(self, tokens: jax.Array, positions: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Returns the last token's logits [B, V], and the cache with the tokens in it."""
        logits, cache = self.model.apply(tokens, positions=positions, cache=cache, edits=self.edits, last=True)
        return logits[:, 0], cache


class State(NamedTuple):
    """The state between two steps.

    Attributes:
        number: how many steps were taken.
        token: [B], the tokens of the last step.
        ended: bool [B], whether a sequence has ended.
        keys: a random key for each sequence.
        cache: the cache with all tokens but the last.
        new: [B, room], the new tokens.
        scores: float32 [B, room], their log-probabilities; None if nobody wants them.
        seen: bool [B, V], the tokens that the penalty is for; None without a penalty.
    """

    number: jax.Array
    token: jax.Array
    ended: jax.Array
    keys: jax.Array
    cache: Cache
    new: jax.Array
    scores: jax.Array | None
    seen: jax.Array | None


def _first(program: Program, tokens: jax.Array, positions: jax.Array, *, room, samples, scored, mesh) -> State:
    """Reads the prompts, and draws the first new tokens.

    Args:
        program: the program's arguments.
        tokens: the prompts [B, T], padding first.
        positions: [B, T], negative for padding.
        room: how many new tokens there is room for.
        samples: how many continuations each prompt gets.
        scored: whether to compute log-probabilities.
        mesh: the mesh that the parameters lie on, or None.
    """
    B, T = tokens.shape
    config = program.model.config
    filled = empty(config, B, T + room, program.model.dtype)
    if mesh is not None:
        filled = jax.lax.with_sharding_constraint(filled, sharding.cache_shardings(filled, mesh))
    logits, filled = program.logits(tokens, positions, filled)
    seen = None
    if program.rules.penalty is not None:
        seen = jnp.zeros((B, config.vocab_size), bool)
        seen = seen.at[jnp.arange(B)[:, None], tokens].max(positions >= 0)
    if samples > 1:
        logits, filled, seen = jax.tree.map(
            lambda x: jnp.repeat(x, samples, axis=0) if x.ndim else x, (logits, filled, seen)
        )
    rows = B * samples
    state = State(
        jnp.int32(0),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows, bool),
        program.keys(B, samples),
        filled,
        jnp.zeros((rows, room), jnp.int32),
        jnp.zeros((rows, room), jnp.float32) if scored else None,
        seen,
    )
    return _take(program, state, logits, filled)


def _take(program: Program, state: State, logits: jax.Array, cache: Cache) -> State:
    """Returns the state after a token is drawn from logits [B, V]."""
    keys = state.keys
    if not program.rules.greedy:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, state.number))(state.keys)
    token = program.rules.draw(logits, keys, state.seen)
    token = jnp.where(state.ended, 0, token)  # padding
    put = lambda x, column: jax.lax.dynamic_update_slice_in_dim(x, column[:, None], state.number, axis=1)  # noqa: E731
    scores, seen = state.scores, state.seen
    if scores is not None:
        scores = put(scores, drawing.log_probabilities(logits, token))
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].max(~state.ended)
    ended = state.ended | jnp.isin(token, program.stops)
    return State(state.number + 1, token, ended, state.keys, cache, put(state.new, token), scores, seen)


def _advance(program: Program, state: State, wanted: jax.Array) -> State:
    """Takes further steps until `wanted` steps were taken or all sequences have ended."""

    def unfinished(state):
        return (state.number < wanted) & ~jnp.all(state.ended)

    def body(state):
        cache = state.cache
        logits, cache = program.logits(state.token[:, None], cache.next_positions[:, None], cache)
        return _take(program, state, logits, cache)

    return jax.lax.while_loop(unfinished, body, state)


_STATIC = ("room", "samples", "scored", "mesh")


@functools.partial(jit_program, program="other", static_argnames=_STATIC)
def decode(program, tokens, positions, wanted, **settings) -> tuple[jax.Array, jax.Array | None]:
    """Decodes in one program.

    Args:
        program: the program's arguments.
        tokens: as for `first_steps`.
        positions: as for `first_steps`.
        wanted: how many tokens to compute.
        **settings: as for `first_steps`.

    Returns:
        New tokens [B, room], of which the first `wanted` are computed, and their log-probabilities or None.
    """
    state = _advance(program, _first(program, tokens, positions, **settings), wanted)
    return state.new, state.scores


first_steps = jit_program(_first, program="other", static_argnames=_STATIC)


@functools.partial(jit_program, program="other", donate_argnames="state")
def more_steps(program, state, wanted, ended) -> State:
    """Takes further steps until `wanted` steps were taken; sequences that `ended` meanwhile take none."""
    return _advance(program, state._replace(ended=state.ended | ended), wanted)
