"""Checks the arguments of `gemma.generate` before anything is computed."""

import operator
from typing import Any

import jax.numpy as jnp
import numpy as np

from gemma.drawing import Rules
from gemma.model import Model
from gemma.running import without_tokenizer


def integer(name: str, value: Any, least: int = 1) -> int:
    """Returns a value as an integer; raises ValueError if it is none, or is below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def rules(
    model: Model,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float | None,
) -> Rules:
    """Returns the rules for drawing a token; raises ValueError for settings out of range."""
    vocab_size = model.config.vocab_size
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if top_k is not None:
        top_k = integer("top_k", top_k)
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


def stop_tokens(tokens: Any) -> tuple[int, ...]:
    """Returns stop tokens as integers; raises ValueError for anything but several ids."""
    try:
        return tuple(map(operator.index, tokens))
    except TypeError:
        raise ValueError(f"stop_tokens are several token ids, such as [1]; got {tokens!r}. Texts go to stop=") from None


def stop_strings(model: Model, stop: Any) -> tuple[str, ...]:
    """Returns one stop text, or several, as a tuple; raises ValueError if the model has no texts."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in strings):
        raise ValueError(f"stop is a text or several, none of them empty; got {stop!r}")
    if strings and model.tokenizer is None:
        raise ValueError(f"stop needs texts, and {without_tokenizer(model)}")
    return strings


def token_ids(model: Model, prompts: Any) -> list[list[int]]:
    """Returns the token ids of each prompt.

    Args:
        model: the model, whose tokenizer encodes texts.
        prompts: as for `gemma.generate`.

    Raises:
        ValueError: for no prompts, an empty one, ids outside the vocabulary, and texts without a tokenizer.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("got no prompts: give at least one text or list of token ids")
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
