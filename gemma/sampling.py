"""Text from a model: `generate`, with a cache, batches of unequal prompts, and edits active in every step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gemma import cache, sharding
from gemma.cache import EMPTY
from gemma.model import Model
from mishax_lite import Site, edit

Edit = Callable[[Any, Site], Any]
Edits = Mapping[str, Edit] | Callable[[jax.Array], Mapping[str, Edit]]

_SHORTEST = 16  # prompts are lengthened to this, or the next power of two: lengths share compiled programs


class Generation(NamedTuple):
    """What `generate` returns.

    tokens: [B, max_new_tokens] of int32, what follows each prompt, its stop token included; padding after that.
    texts: of each, without the stop token; None where the model has no tokenizer.
    """

    tokens: np.ndarray
    texts: list[str] | None


def generate(
    model: Model,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_tokens: Sequence[int] | None = None,
    edits: Edits | None = None,
    attention: Literal["plain", "fused"] = "plain",
) -> Generation:
    """Continues each prompt.

    All steps are one compiled program, used again for prompts and `max_new_tokens` of about the same length (both are
    rounded up to powers of two), any temperature above 0, any `top_p`, any seed, and the same edits.

    Args:
      model: as `gemma.load` returns it; where its parameters lie on a mesh, the sequences are spread over `data`.
      prompts: a text or several, which get BOS put before them; or sequences of token ids, taken as they are.
      max_new_tokens: the most tokens that are added to each.
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: only so many of the most likely tokens.
      top_p: of these, only the fewest that have this probability together.
      seed: a prompt's tokens depend on it and on its place among the prompts, not on the other prompts.
      stop_tokens: a sequence ends with the first of these; by default EOS and, where the tokenizer has it,
        `<end_of_turn>`.
      edits: a dict as for `mishax_lite.edit`, or a function of the positions [B, T] of a step's tokens that returns one
        (0 is the first token, BOS; negative ones are padding). They act on the prompt and on each new token. The site
        `logits` has only the last token. A function that is new on each call is compiled on each call; give what
        varies as `jax.tree_util.Partial(function, arrays)`, whose arrays are arguments of the program.
      attention: as for `Model.apply`.

    Raises:
      ValueError: for no prompts, an empty one, a number of them that the mesh's `data` axis does not divide, token ids
        outside the vocabulary, texts without a tokenizer, settings out of range, and edits of sites that are not there.
    """
    config = model.config
    ids = _token_ids(model, prompts)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if top_k is not None and not 1 <= top_k <= config.vocab_size:
        raise ValueError(f"top_k must be between 1 and the vocabulary's {config.vocab_size}, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    stops = _stop_tokens(model) if stop_tokens is None else tuple(int(token) for token in stop_tokens)

    length = _rounded(max(map(len, ids)))
    tokens, positions = np.zeros((len(ids), length), np.int32), np.full((len(ids), length), EMPTY, np.int32)
    for row, prompt in enumerate(ids):  # padding comes first, so that all sequences end at the same place
        tokens[row, length - len(prompt) :] = prompt
        positions[row, length - len(prompt) :] = np.arange(len(prompt))
    mesh = _mesh(model)
    place = None if mesh is None else sharding.batch_sharding(mesh)
    if mesh is not None and len(ids) % mesh.shape.get(sharding.DATA, 1):
        raise ValueError(
            f"{len(ids)} prompts cannot be dealt out evenly over the {mesh.shape[sharding.DATA]} devices along the "
            "mesh's axis data: give a multiple of that"
        )
    new = np.asarray(
        _decode(
            model,
            *jax.device_put((tokens, positions), place),
            jax.random.key(seed),
            jnp.float32(temperature),
            None if top_p is None else jnp.float32(top_p),
            jnp.asarray(stops, jnp.int32),
            jnp.int32(max_new_tokens),
            _as_argument(edits),
            room=_rounded(max_new_tokens),
            top_k=top_k,
            greedy=temperature == 0,
            attention=attention,
            mesh=mesh,
        )
    )[:, :max_new_tokens]
    if model.tokenizer is None:
        return Generation(new, None)
    return Generation(new, [model.tokenizer.decode(_before(row, stops)) for row in new])


@functools.partial(jax.jit, static_argnames=("room", "top_k", "greedy", "attention", "mesh"))
def _decode(
    model, tokens, positions, key, temperature, top_p, stops, wanted, edits, *, room, top_k, greedy, attention, mesh
) -> jax.Array:
    """New tokens [B, room], of which the first `wanted` are computed. tokens, positions [B, T]."""
    B, T = tokens.shape
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(B))

    def step(tokens, positions, cache, number):
        def apply(tokens, positions, cache):
            return model.apply(tokens, positions=positions, cache=cache, attention=attention, last=True)

        chosen = edits.at(positions) if edits else {}
        logits, cache = (edit(apply, chosen) if chosen else apply)(tokens, positions, cache)
        if greedy:
            return jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32), cache
        drawn = jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
        return sample(logits[:, 0], drawn, temperature, top_k, top_p), cache

    def unfinished(state):
        number, _, done, _, _ = state
        return (number < wanted) & ~jnp.all(done)

    def body(state):
        number, token, done, cache, new = state
        token, cache = step(token[:, None], cache.next_positions[:, None], cache, number)
        token = jnp.where(done, 0, token)  # padding
        new = jax.lax.dynamic_update_slice_in_dim(new, token[:, None], number, axis=1)
        return number + 1, token, done | jnp.isin(token, stops), cache, new

    filled = cache.empty(model.config, B, T + room, model.dtype)
    if mesh is not None:
        filled = jax.lax.with_sharding_constraint(filled, sharding.cache_shardings(filled, mesh))
    token, filled = step(tokens, positions, filled, 0)
    new = jnp.zeros((B, room), jnp.int32).at[:, 0].set(token)
    return jax.lax.while_loop(unfinished, body, (1, token, jnp.isin(token, stops), filled, new))[-1]


def sample(
    logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_k: int | None, top_p: jax.Array | None
) -> jax.Array:
    """Draws a token [B] from each row of logits [B, V]; `top_k`, then `top_p`, of the tempered distribution."""
    logits = logits / temperature
    ids = None
    if top_k is not None or top_p is not None:  # from here on, columns are in falling order
        logits, ids = jax.lax.top_k(logits, logits.shape[-1] if top_k is None else top_k)
    if top_p is not None:
        probabilities = jax.nn.softmax(logits, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        first = jnp.arange(logits.shape[-1]) == 0
        logits = jnp.where((before < top_p) | first, logits, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    return (drawn if ids is None else jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]).astype(jnp.int32)


def _token_ids(model: Model, prompts: str | Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("there are no prompts to continue")
    if model.tokenizer is None and any(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{model.config.name} was loaded without a tokenizer: give prompts as lists of token ids")
    ids = [model.tokenizer.encode(p) if isinstance(p, str) else [int(token) for token in p] for p in prompts]
    for row, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(f"prompt {row} is empty: give at least BOS")
        wrong = [token for token in prompt if not 0 <= token < model.config.vocab_size]
        if wrong:
            raise ValueError(f"prompt {row} has token {wrong[0]}, the vocabulary is 0 to {model.config.vocab_size - 1}")
    return ids


def _mesh(model: Model) -> Mesh | None:
    """The mesh that the parameters lie on, if on one."""
    placed = jax.tree.leaves(model.params)[0].sharding
    return placed.mesh if isinstance(placed, NamedSharding) else None


def _stop_tokens(model: Model) -> tuple[int, ...]:
    if model.tokenizer is None:
        return (1,)  # EOS in every Gemma
    end_of_turn = model.tokenizer.find("<end_of_turn>")
    return (model.tokenizer.eos,) if end_of_turn is None else (model.tokenizer.eos, end_of_turn)


def _rounded(length: int) -> int:
    return max(_SHORTEST, 1 << (length - 1).bit_length())


def _as_argument(edits: Edits | None) -> "_Edits | None":
    """Edits as an argument of a jitted function: functions become static, the arrays of a Partial stay arrays."""
    partial = jax.tree_util.Partial
    wrap = lambda f: f if isinstance(f, partial) or not callable(f) else partial(f)  # noqa: E731
    if edits is None:
        return None
    if callable(edits):
        return _Edits((wrap(edits),), None)
    return _Edits(tuple(map(wrap, edits.values())), tuple(edits))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Edits:
    """A dict of edits in its own order, which a dict as an argument would lose; without patterns, the function that
    makes one of positions."""

    functions: tuple[Any, ...]
    patterns: tuple[str, ...] | None = dataclasses.field(metadata={"static": True})

    def at(self, positions: jax.Array) -> Mapping[str, Edit]:
        if self.patterns is None:
            return self.functions[0](positions)
        return dict(zip(self.patterns, self.functions, strict=True))


def _before(tokens: np.ndarray, stops: Sequence[int]) -> np.ndarray:
    """A row's tokens up to its first stop token."""
    ends = np.flatnonzero(np.isin(tokens, stops))
    return tokens[: ends[0]] if ends.size else tokens
