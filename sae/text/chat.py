"""Chats in the form that Gemma's instruction-tuned models were trained on.

    <start_of_turn>user
    What is ...?<end_of_turn>
    <start_of_turn>model
    It is ...<end_of_turn>

It is the template that comes with the models (https://ai.google.dev/gemma/docs/core/prompt-structure): roles are `user`
and `model`, contents are stripped of white space around them, and what the system says stands before the first user's
words.
"""

import re
from collections.abc import Sequence

import numpy as np

from gemma import Tokenizer
from sae.text.documents import Message

START, END = "<start_of_turn>", "<end_of_turn>"
_WITHIN_SPELLED_OUT = re.compile(r"(?<=<)(?=(?:start|end)_of_(?:turn|image)>)")


def encode_chat(messages: Sequence[Message], tokenizer: Tokenizer, *, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A chat's tokens, without BOS.

    The turns' marks are single ids. Marks that a message spells out are text like any other, whether the tokenizer
    would take them for marks (where its model has them as user-defined pieces) or not (where they are control pieces,
    as in GGUF files): else a message could speak for the other side.

    Args:
      messages: a system's, if it likes, then the user's and the model's in turn. The last may be either's.
      tokenizer: one that has the marks.
      name: the document's, for the errors.

    Returns:
      ids: [n] int32.
      model: [n] bool, True at the contents of the model's turns, without marks, role and line feeds.

    Raises:
      ValueError: for a tokenizer without the marks, or roles that are unknown or do not alternate.
    """
    marks = tokenizer.find(START), tokenizer.find(END)
    if None in marks:
        raise ValueError(
            f"document {name!r} is a chat, and this tokenizer has no {START} and {END}: take a model whose tokenizer "
            "has them, gemma3-270m for example, or give plain text"
        )
    start, end = marks
    line_feed = tokenizer.encode("\n", add_bos=False)
    ids: list[int] = []
    model: list[bool] = []
    for role, content in _turns(messages, name):
        head = tokenizer.encode(f"{role}\n", add_bos=False)
        body = _plain(content, tokenizer)
        ids += [start, *head, *body, end, *line_feed]
        model += [False] * (1 + len(head)) + [role == "model"] * len(body) + [False] * (1 + len(line_feed))
    return np.asarray(ids, np.int32), np.asarray(model, bool)


def _turns(messages: Sequence[Message], name: str) -> list[tuple[str, str]]:
    """(role, content) of the turns: the system's words at the head of the user's, the model by its one name."""
    system = f"{messages[0].content}\n\n" if messages and messages[0].role == "system" else ""
    turns = []
    for message in messages[1:] if system else messages:
        role = "model" if message.role == "assistant" else message.role
        expected = "model" if len(turns) % 2 else "user"
        if role != expected:
            raise ValueError(
                f"document {name!r}: turn {len(turns) + 1} is of {message.role!r}, expected {expected!r}: user and "
                "model (or assistant) take turns, beginning with the user, after a system message at most"
            )
        turns.append((role, ("" if turns else system) + message.content.strip()))
    if not turns:
        raise ValueError(f"document {name!r}: a chat needs a user's message")
    return turns


def _plain(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text in which marks stand for themselves.

    A mark that is spelled out is encoded in two parts, "<" and the rest, so that no piece can span it. Nothing is lost:
    Gemma's tokenizers change nothing at the ends of what they encode.
    """
    return [id_ for part in _WITHIN_SPELLED_OUT.split(text) for id_ in tokenizer.encode(part, add_bos=False)]
