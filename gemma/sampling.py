"""Text from a model: `generate`, with a cache, batches of unequal prompts, and edits active in every step."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from gemma import generation_arguments, sharding
from gemma.cache import EMPTY
from gemma.checkpoints import tokenizers
from gemma.decoding import Program, decode, first_steps, more_steps
from gemma.drawing import sample
from gemma.editing import AnyEdits
from gemma.model import Model
from gemma.running import check_concrete, mesh_of
from gemma.streams import Growing, Piece
from mishax_lite import Edits

__all__ = ["Generation", "Piece", "generate", "sample"]

_SHORTEST = 16  # prompts are lengthened to this, or the next power of two: lengths share compiled programs
_STEPS = 8  # tokens computed between two looks for stop strings


@dataclasses.dataclass(frozen=True)
class Generation:
    """The result of `generate`; also a pair of the first two attributes, `tokens, texts = gemma.generate(...)`.

    Attributes:
        tokens: int32 [B, max_new_tokens], the tokens after each prompt, with the one that ended the text; padding after
            that. With several samples a prompt, [B · samples, max_new_tokens], those of one prompt next to each other.
        texts: the text of each row without its end; None if the model has no tokenizer.
        log_probabilities: float32 of the shape of `tokens`, the log-probability of each token under the model's own
            distribution (before penalty, temperature and the rest), NaN at padding; None unless `generate` was told to
            return them.

    Example:
        >>> generation = gemma.generate(model, ["The sea"], max_new_tokens=4)
        >>> generation.tokens.shape, len(generation.texts)
        ((1, 4), 1)
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
    edits. With `stop` the program runs some steps at a time, and with `stream` one step at a time.

    Args:
        model: a model, as `gemma.load` returns it; if its parameters lie on a mesh, the sequences are spread over
            `data`.
        prompts: one text, or several, which get BOS put before them; or sequences of token ids, which stay unchanged.
        max_new_tokens: the largest number of tokens to add to each prompt.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: how many of the most likely tokens to draw from.
        top_p: draws from the fewest of these that have this probability together.
        min_p: draws from those of these with at least this part of the most likely token's probability.
        repetition_penalty: the positive logits of tokens of the prompt and of the text so far are divided by it, and
            their negative ones multiplied by it, before all else; above 1 these tokens are less likely.
        seed: from 0 to 2^32 - 1. A prompt's tokens depend on it and on the prompt's place, not on the other prompts.
        samples: how many continuations of each prompt. The first is the same for every number of samples.
        stop_tokens: a sequence ends with the first of these; by default those that the checkpoint's
            generation_config.json names, and without one EOS and, if the tokenizer has it, `<end_of_turn>`.
        stop: one text or several; a sequence ends where one of them stands in its text, whatever its tokens are.
        log_probabilities: whether to return the log-probability of each token.
        stream: a function that is called with each new `Piece` of a text, a `str` with the attributes `row` and
            `tokens`; or True for an iterator over the pieces. The pieces of a row join to its text.
        edits: as for `mishax_lite.edit`: a dict, `mishax_lite.Edits` such as those of `sae.steer`, or a function of the
            positions [B, T] of a step's tokens that returns either (0 is the first token, BOS; negative ones are
            padding). They act on the prompt and on each new token. The site `logits` has only the last token. A result
            in a wider float than the site's is rounded to the site's, so a model in bfloat16 takes edits that compute
            in float32. The arrays in `Edits` and in a `jax.tree_util.Partial(function, arrays)` are arguments of the
            program: other numbers compile nothing. A function that is new on each call is compiled on each call.
        attention: as for `Model.apply`.

    Returns:
        The tokens and their texts; with `stream=True` an iterator, whose `generation` has them at its end.

    Raises:
        ValueError: for no prompts, an empty one, a number of them that the mesh's `data` axis does not divide, token
            ids outside the vocabulary, texts without a tokenizer, settings out of range, edits of sites that do not
            exist, and inside `jax.jit`.

    Example:
        >>> model = gemma.load("gemma2-tiny")
        >>> tokens, texts = gemma.generate(model, "The sea", max_new_tokens=4)
        >>> "".join(gemma.generate(model, "The sea", max_new_tokens=4, stream=True)) == texts[0]
        True
    """
    check_concrete(model, "generate", "call it outside, or write a loop over model.apply with a cache")
    checked = generation_arguments
    ids = checked.token_ids(model, prompts)
    max_new_tokens, samples = checked.integer("max_new_tokens", max_new_tokens), checked.integer("samples", samples)
    if (seed := checked.integer("seed", seed, least=0)) >= 2**32:
        raise ValueError(f"seed must be below 2^32, since JAX would take the lower bits alone, got {seed}")
    rules = checked.rules(model, temperature, top_k, top_p, min_p, repetition_penalty)
    stops = tokenizers.ends(model) if stop_tokens is None else checked.stop_tokens(stop_tokens)
    strings = checked.stop_strings(model, stop)
    if not (callable(stream) or isinstance(stream, bool)):
        raise ValueError(f"stream is True, for an iterator, or a function of a piece of text; got {stream!r}")

    mesh = mesh_of(model)
    placed = _placed(ids, mesh)
    model = model if attention is None else dataclasses.replace(model, attention=attention)
    program = Program(model, rules, Edits.of(edits), jax.random.key(seed), jnp.asarray(stops, jnp.int32))
    settings = {
        "room": _rounded(max_new_tokens),
        "samples": samples,
        "scored": log_probabilities,
        "mesh": mesh,
    }
    if not (strings or stream):
        new, scores = jax.device_get(decode(program, *placed, jnp.int32(max_new_tokens), **settings))
        new = new[:, :max_new_tokens]
        scores = None if scores is None else _masked(scores[:, :max_new_tokens], new, stops)
        tokenizer = model.tokenizer
        texts = None if tokenizer is None else [tokenizer.decode(_before(row, stops)) for row in new]
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
        generation: the whole result, after the last piece; None before.
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


def _placed(ids: Sequence[Sequence[int]], mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """Returns prompts and their positions [B, T] on the devices; raises ValueError if a mesh does not divide them."""
    length = _rounded(max(map(len, ids)))
    tokens, positions = np.zeros((len(ids), length), np.int32), np.full((len(ids), length), EMPTY, np.int32)
    for row, prompt in enumerate(ids):  # padding comes first, so that all sequences end at the same place
        tokens[row, length - len(prompt) :] = prompt
        positions[row, length - len(prompt) :] = np.arange(len(prompt))
    if mesh is not None and len(ids) % mesh.shape.get(sharding.DATA, 1):
        raise ValueError(
            f"{len(ids)} prompts cannot be dealt out evenly over the {mesh.shape[sharding.DATA]} devices along the "
            "mesh's axis data: give a multiple of that"
        )
    return jax.device_put((tokens, positions), None if mesh is None else sharding.batch_sharding(mesh))


def _pieces(
    program: Program,
    prompts: tuple[jax.Array, jax.Array],
    settings: dict[str, Any],
    max_new_tokens: int,
    stops: Sequence[int],
    strings: Sequence[str],
    steps: int,
) -> Iterator[Piece | Generation]:
    """Yields the pieces of all texts in the order in which they come, and last the whole result."""
    tokenizer = program.model.tokenizer
    state = first_steps(program, *prompts, **settings)
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
        state = more_steps(program, state, jnp.int32(min(taken + steps, max_new_tokens)), ended)
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


def _rounded(length: int) -> int:
    return max(_SHORTEST, 1 << (length - 1).bit_length())


def _before(tokens: np.ndarray, stops: Sequence[int]) -> np.ndarray:
    """Returns a row's tokens up to its first stop token."""
    ends = np.flatnonzero(np.isin(tokens, stops))
    return tokens[: ends[0]] if ends.size else tokens


def _masked(scores: np.ndarray, tokens: np.ndarray, stops: Sequence[int]) -> np.ndarray:
    """Returns scores with NaN at padding."""
    ends = [min(len(_before(row, stops)) + 1, len(row)) for row in tokens]
    return np.where(np.arange(tokens.shape[1]) < np.array(ends)[:, None], scores, np.float32(np.nan))
