"""Text from a model: `generate`, with a cache, batches of unequal prompts, and edits active in every step."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from gemma import cache, drawing, sharding
from gemma.cache import EMPTY
from gemma.checkpoints import tokenizers
from gemma.drawing import Rules, sample
from gemma.editing import AnyEdits
from gemma.model import Model
from gemma.running import check_concrete, mesh_of, without_tokenizer
from gemma.streams import Growing, Piece
from mishax_lite import Edits
from mishax_lite.compiling import jit_program

__all__ = ["Generation", "Piece", "generate", "sample"]

_SHORTEST = 16  # prompts are lengthened to this, or the next power of two: lengths share compiled programs
_STEPS = 8  # tokens computed between two looks for stop strings
_OTHER_SAMPLES = np.uint32(2**31)  # where the keys of further samples of a prompt lie: beyond any number of a token


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns; also a pair of the first two, `tokens, texts = gemma.generate(...)`.

    Attributes:
      tokens: [B, max_new_tokens] of int32, what follows each prompt, what ended it included; padding after that. With
        several samples a prompt, [B · samples, max_new_tokens], those of one prompt next to each other.
      texts: of each, without what ended it; None where the model has no tokenizer.
      log_probabilities: float32 of the shape of `tokens`, of each token by the model's own distribution (before
        penalty, temperature and the rest), NaN where padding is; None where they were not wanted.
    """

    tokens: Int32[np.ndarray, "B T"]
    texts: list[str] | None
    log_probabilities: Float32[np.ndarray, "B T"] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.tokens, self.texts))

    def __repr__(self) -> str:
        count, length = self.tokens.shape
        first = f": {_first_words(self.texts[0])}" if self.texts else ""
        return f"Generation({count} {'text' if count == 1 else 'texts'} of at most {length} tokens{first})"


def _first_words(text: str, characters: int = 40) -> str:
    return repr(text if len(text) <= characters else f"{text[:characters]}...")


def generate(
    model: Model,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    samples: int = 1,
    stop_tokens: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    log_probabilities: bool = False,
    stream: bool | Callable[[Piece], None] = False,
    edits: AnyEdits | None = None,
    attention: Literal["plain", "fused"] | None = None,
) -> "Generation | Stream":
    """Continues each prompt.

    All steps are one compiled program, used again for prompts and `max_new_tokens` of about the same length (both are
    rounded up to powers of two), any temperature above 0, any `top_p`, `min_p` and penalty, any seed, and the same
    edits. With `stop` it runs some steps at a time, and with `stream` each by itself.

    Args:
      model: as `gemma.load` returns it; where its parameters lie on a mesh, the sequences are spread over `data`.
      prompts: a text or several, which get BOS put before them; or sequences of token ids, taken as they are.
      max_new_tokens: the most tokens that are added to each.
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: only so many of the most likely tokens.
      top_p: of these, only the fewest that have this probability together.
      min_p: of these, only those with at least this part of the most likely token's probability.
      repetition_penalty: tokens of the prompt and of what follows get their positive logits divided by it and their
        negative ones times it, before all else; above 1 they are less likely.
      seed: from 0 to 2^32 - 1. A prompt's tokens depend on it and on its place among the prompts, not on the others.
      samples: how many continuations of each prompt. The first is the one that there is alone.
      stop_tokens: a sequence ends with the first of these; by default those that the checkpoint's
        generation_config.json names, and without one EOS and, where the tokenizer has it, `<end_of_turn>`.
      stop: a text or several; a sequence ends where one of them stands in its text, whatever tokens it is made of.
      log_probabilities: whether each token's is wanted.
      stream: a function that is called with each new `Piece` of a text, a `str` with the attributes `row` and
        `tokens`; or True for an iterator over them. The pieces of a row join to its text.
      edits: as for `mishax_lite.edit`: a dict, `mishax_lite.Edits` such as those of `sae.steer`, or a function of the
        positions [B, T] of a step's tokens that returns either (0 is the first token, BOS; negative ones are padding).
        They act on the prompt and on each new token. The site `logits` has only the last token. A result in a wider
        float than the site's is rounded to it, so that a model in bfloat16 takes edits that compute in float32. The
        arrays in `Edits` and in a `jax.tree_util.Partial(function, arrays)` are arguments of the program: other
        numbers compile nothing. A function that is new on each call is compiled on each call.
      attention: as for `Model.apply`.

    Returns:
      The tokens and their texts; with `stream=True` an iterator, whose `generation` has them at its end.

    Raises:
      ValueError: for no prompts, an empty one, a number of them that the mesh's `data` axis does not divide, token ids
        outside the vocabulary, texts without a tokenizer, settings out of range, edits of sites that do not exist,
        and inside `jax.jit`.

    Example:
      >>> model = gemma.load("gemma2-tiny")
      >>> tokens, texts = gemma.generate(model, "The sea", max_new_tokens=4)
      >>> "".join(gemma.generate(model, "The sea", max_new_tokens=4, stream=True)) == texts[0]
      True
    """
    check_concrete(model, "generate", "call it outside, or write a loop over model.apply with a cache")
    ids = _token_ids(model, prompts)
    max_new_tokens, samples = _integer("max_new_tokens", max_new_tokens), _integer("samples", samples)
    if (seed := _integer("seed", seed, least=0)) >= 2**32:
        raise ValueError(f"seed must be below 2^32, of which JAX would take the lower bits, got {seed}")
    rules = _rules(model, temperature, top_k, top_p, min_p, repetition_penalty)
    stops = tokenizers.ends(model) if stop_tokens is None else _stop_tokens(stop_tokens)
    strings = _stop_strings(model, stop)
    if not (callable(stream) or isinstance(stream, bool)):
        raise ValueError(f"stream is True, for an iterator, or a function of a piece of text; got {stream!r}")

    length = _rounded(max(map(len, ids)))
    tokens, positions = np.zeros((len(ids), length), np.int32), np.full((len(ids), length), EMPTY, np.int32)
    for row, prompt in enumerate(ids):  # padding comes first, so that all sequences end at the same place
        tokens[row, length - len(prompt) :] = prompt
        positions[row, length - len(prompt) :] = np.arange(len(prompt))
    mesh = mesh_of(model)
    place = None if mesh is None else sharding.batch_sharding(mesh)
    if mesh is not None and len(ids) % mesh.shape.get(sharding.DATA, 1):
        raise ValueError(
            f"{len(ids)} prompts cannot be dealt out evenly over the {mesh.shape[sharding.DATA]} devices along the "
            "mesh's axis data: give a multiple of that"
        )
    model = model if attention is None else dataclasses.replace(model, attention=attention)
    program = _Program(model, rules, Edits.of(edits), jax.random.key(seed), jnp.asarray(stops, jnp.int32))
    placed = jax.device_put((tokens, positions), place)
    settings = {
        "room": _rounded(max_new_tokens),
        "samples": samples,
        "scored": log_probabilities,
        "mesh": mesh,
    }
    if not (strings or stream):
        new, scores = jax.device_get(_decode(program, *placed, jnp.int32(max_new_tokens), **settings))
        new = new[:, :max_new_tokens]
        scores = None if scores is None else _masked(scores[:, :max_new_tokens], new, stops)
        decode = model.tokenizer.decode if model.tokenizer is not None else None
        texts = None if decode is None else [decode(_before(row, stops)) for row in new]
        return Generation(new, texts, scores)
    steps = 1 if stream else _STEPS
    flow = Stream(_pieces(program, placed, settings, max_new_tokens, stops, strings, steps))
    if stream is True:
        return flow
    for piece in flow:
        if stream:
            stream(piece)
    return cast(Generation, flow.generation)


class Stream(Iterator[Piece]):
    """The pieces of the texts as they come.

    Attributes:
      generation: all of it, when there are no more pieces; None before.
    """

    def __init__(self, pieces: Iterator[Piece | Generation]):
        self._pieces = pieces
        self.generation: Generation | None = None

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        if isinstance(piece, Generation):
            self.generation = piece
            raise StopIteration
        return piece


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Program:
    """What all steps have in common. `stops` are token ids; what is static is compiled in."""

    model: Model
    rules: Rules
    edits: Edits
    key: jax.Array
    stops: jax.Array

    def keys(self, prompts: int, samples: int) -> jax.Array:
        """A key for each sample: the first one's depends on its prompt's place alone."""
        first = jax.vmap(lambda row: jax.random.fold_in(self.key, row))(jnp.arange(prompts))
        numbers = _OTHER_SAMPLES + jnp.arange(1, samples, dtype=jnp.uint32)
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        return jnp.concatenate([first[:, None], fold(first, numbers)], axis=1).reshape(-1)

    def logits(self, tokens, positions, cache) -> tuple[jax.Array, Any]:
        """The last token's logits [B, V], and the cache with the tokens in it."""

        logits, cache = self.model.apply(tokens, positions=positions, cache=cache, edits=self.edits, last=True)
        return logits[:, 0], cache


class _State(NamedTuple):
    """Between two steps: `number` of them were taken, and the last ones gave `token`.

    done: [B] of bool. new: [B, room] tokens. scores: of these; None where they are not wanted.
    seen: [B, V] of bool, the tokens that the penalty is for; None without one.
    """

    number: jax.Array
    token: jax.Array
    done: jax.Array
    keys: jax.Array
    cache: Any
    new: jax.Array
    scores: jax.Array | None
    seen: jax.Array | None


def _first(program, tokens, positions, *, room, samples, scored, mesh) -> _State:
    """The prompts' tokens, and the first new ones."""
    B, T = tokens.shape
    config = program.model.config
    filled = cache.empty(config, B, T + room, program.model.dtype)
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
    state = _State(
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


def _take(program, state: _State, logits: jax.Array, cache: Any) -> _State:
    """The state after a token is drawn from logits [B, V]."""
    keys = state.keys
    if not program.rules.greedy:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, state.number))(state.keys)
    token = program.rules.draw(logits, keys, state.seen)
    token = jnp.where(state.done, 0, token)  # padding
    put = lambda x, column: jax.lax.dynamic_update_slice_in_dim(x, column[:, None], state.number, axis=1)  # noqa: E731
    scores, seen = state.scores, state.seen
    if scores is not None:
        scores = put(scores, drawing.log_probabilities(logits, token))
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].max(~state.done)
    ended = state.done | jnp.isin(token, program.stops)
    return _State(state.number + 1, token, ended, state.keys, cache, put(state.new, token), scores, seen)


def _advance(program, state: _State, wanted: jax.Array) -> _State:
    """Further steps, until `wanted` were taken or all sequences are done."""

    def unfinished(state):
        return (state.number < wanted) & ~jnp.all(state.done)

    def body(state):
        cache = state.cache
        logits, cache = program.logits(state.token[:, None], cache.next_positions[:, None], cache)
        return _take(program, state, logits, cache)

    return jax.lax.while_loop(unfinished, body, state)


_STATIC = ("room", "samples", "scored", "mesh")


@functools.partial(jit_program, program="other", static_argnames=_STATIC)
def _decode(program, tokens, positions, wanted, **settings) -> tuple[jax.Array, jax.Array | None]:
    """New tokens [B, room], of which the first `wanted` are computed, and their scores. tokens, positions [B, T]."""
    state = _advance(program, _first(program, tokens, positions, **settings), wanted)
    return state.new, state.scores


_first_steps = jit_program(_first, program="other", static_argnames=_STATIC)


@functools.partial(jit_program, program="other", donate_argnames="state")
def _more_steps(program, state, wanted, done) -> _State:
    """`_advance`, where sequences may have ended meanwhile."""
    return _advance(program, state._replace(done=state.done | done), wanted)


def _pieces(
    program: _Program,
    prompts: tuple[jax.Array, jax.Array],
    settings: dict[str, Any],
    max_new_tokens: int,
    stops: Sequence[int],
    strings: Sequence[str],
    steps: int,
) -> Iterator[Piece | Generation]:
    """The pieces of all texts in the order in which they come, and last the whole."""
    tokenizer = program.model.tokenizer
    state = _first_steps(program, *prompts, **settings)
    texts = [Growing(tokenizer, stops, strings) for _ in range(state.token.shape[0])]
    taken = 0
    while True:
        number = int(state.number)
        for column in np.asarray(state.new)[:, taken:number].T.tolist():
            for row, (text, token) in enumerate(zip(texts, column, strict=True)):
                if not text.ended:
                    yield from _piece(row, *text.add(token))
        taken = number
        ended = np.array([text.ended for text in texts])
        if taken >= max_new_tokens or ended.all():
            break
        state = _more_steps(program, state, jnp.int32(min(taken + steps, max_new_tokens)), ended)
    for row, text in enumerate(texts):
        if not text.ended:
            yield from _piece(row, *text.finish())
    new = np.zeros((len(texts), max_new_tokens), np.int32)
    for row, text in zip(new, texts, strict=True):
        row[: len(text.tokens)] = text.tokens
    scores = state.scores
    if scores is not None:
        scores = np.array(scores[:, :max_new_tokens])
        scores = np.pad(scores, ((0, 0), (0, max_new_tokens - scores.shape[1])))
        for row, text in zip(scores, texts, strict=True):
            row[len(text.tokens) :] = np.nan
    yield Generation(new, None if tokenizer is None else [text.text for text in texts], scores)


def _piece(row: int, text: str, tokens: list[int]) -> Iterator[Piece]:
    if text or tokens:
        yield Piece(text, row, tokens)


def _integer(name: str, value: Any, least: int = 1) -> int:
    """Raises ValueError for what is no integer of at least 1, or another number."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _rules(model: Model, temperature, top_k, top_p, min_p, penalty) -> Rules:
    """Raises ValueError for settings out of range."""
    vocab_size = model.config.vocab_size
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if top_k is not None:
        top_k = _integer("top_k", top_k)
        if top_k > vocab_size:
            raise ValueError(f"top_k must be between 1 and the vocabulary's {vocab_size}, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be at least 0 and at most 1, got {min_p}")
    if penalty is not None and not 0 < penalty < float("inf"):
        raise ValueError(f"repetition_penalty must be above 0, got {penalty}")
    number = lambda value: None if value is None else jnp.float32(value)  # noqa: E731
    return Rules(number(temperature), number(top_p), number(min_p or None), number(penalty), top_k, temperature == 0)


def _stop_tokens(tokens: Any) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, tokens))
    except TypeError:
        raise ValueError(f"stop_tokens are several token ids, such as [1]; got {tokens!r}. Texts go to stop=") from None


def _stop_strings(model: Model, stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in strings):
        raise ValueError(f"stop is a text or several, none of them empty; got {stop!r}")
    if strings and model.tokenizer is None:
        raise ValueError(f"stop needs texts, and {without_tokenizer(model)}")
    return strings


def _token_ids(model: Model, prompts: Any) -> list[list[int]]:
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("there are no prompts to continue")
    if any(np.ndim(prompt) == 0 and not isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts are a text, or a list of texts or of lists of token ids; got {prompts!r}"[:200])
    if model.tokenizer is None and any(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{without_tokenizer(model)}: give prompts as lists of token ids")
    # pyrefly: ignore[missing-attribute]  with texts there is one
    ids = [model.tokenizer.encode(p) if isinstance(p, str) else [int(token) for token in p] for p in prompts]
    for row, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(f"prompt {row} is empty: give at least BOS")
        wrong = [token for token in prompt if not 0 <= token < model.config.vocab_size]
        if wrong:
            raise ValueError(f"prompt {row} has token {wrong[0]}, the vocabulary is 0 to {model.config.vocab_size - 1}")
    return ids


def _rounded(length: int) -> int:
    return max(_SHORTEST, 1 << (length - 1).bit_length())


def _before(tokens: np.ndarray, stops: Sequence[int]) -> np.ndarray:
    """A row's tokens up to its first stop token."""
    ends = np.flatnonzero(np.isin(tokens, stops))
    return tokens[: ends[0]] if ends.size else tokens


def _masked(scores: np.ndarray, tokens: np.ndarray, stops: Sequence[int]) -> np.ndarray:
    """Scores with NaN for padding."""
    ends = [min(len(_before(row, stops)) + 1, len(row)) for row in tokens]
    return np.where(np.arange(tokens.shape[1]) < np.array(ends)[:, None], scores, np.float32(np.nan))
