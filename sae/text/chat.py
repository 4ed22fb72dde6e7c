"""Chats as tokens, in the form that the model was trained on: its tokenizer's own `chat_turns` arranges them.

Gemma's form is

    <start_of_turn>user
    What is ...?<end_of_turn>
    <start_of_turn>model
    It is ...<end_of_turn>

with the system's words before the first user's words. The template decides about other roles; where it has no place for
a developer's or a tool's turns, they become the system's and the user's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sae.text.documents import Message

_TOOLS = ("tool", "function", "ipython")


class ChatTokenizer(Protocol):
    """A tokenizer that arranges chats.

    Attributes:
        bos: the id with which a chat may begin.
    """

    bos: int

    def chat_turns(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[bool]]:
        """Returns a chat's ids, and for each id whether it is in the contents of the model's turns (without marks, role
        and the white space around them). Marks that a message spells out are text like any other."""


def encode_chat(messages: Sequence[Message], tokenizer: ChatTokenizer, *, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a chat's tokens, without BOS.

    The turns' marks are single ids. Marks that a message spells out are text like any other: otherwise a message could
    speak for the other side.

    Where a template refuses a chat with a developer's or a tool's turns, they change roles: a developer's turns at the
    beginning become the system's; a tool's turns, and a developer's later ones, become the user's. Words that follow on
    words of the same side come after a blank line.

    Args:
        messages: an optional message of the system, then the user's and the model's in turn. The last may be of either.
        tokenizer: the model's.
        name: the document's name, for errors.

    Returns:
        ids: int32 [n]. model: bool [n], True at the contents of the model's turns, without marks, role and line feeds.

    Raises:
        ValueError: for a tokenizer without the marks, and for a chat that the model's template refuses.

    Example:
        >>> import gemma
        >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
        >>> ids, model = encode_chat([Message("user", "Hi!"), Message("model", "Hello.")], tokenizer, name="a")
        >>> tokenizer.decode(ids[model])
        'Hello.'
    """
    # Templates of models other than Gemma know no role "model".
    roles = ["assistant" if message.role == "model" else message.role for message in messages]
    chat = [{"role": role, "content": message.content} for role, message in zip(roles, messages, strict=True)]
    try:
        try:
            ids, model = tokenizer.chat_turns(chat)
        except ValueError:
            if not set(roles) & {"developer", *_TOOLS}:
                raise
            ids, model = tokenizer.chat_turns(_usual_roles(chat))
    except ValueError as error:
        raise ValueError(f"document {name!r} is a chat, and {error}") from error
    start = int(ids[:1] == [tokenizer.bos])
    return np.asarray(ids[start:], np.int32), np.asarray(model[start:], bool)


def _usual_roles(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns a chat without turns of developers and tools, which become parts of others' turns."""
    turns, moved_before = [], False
    for turn in chat:
        role = turn["role"]
        if role in _TOOLS or role == "developer":
            role = "system" if role == "developer" and all(t["role"] == "system" for t in turns) else "user"
        moved = role != turn["role"]
        # Other pairs of turns of one side stay, so that the template refuses them.
        if turns and turns[-1]["role"] == role and (moved or moved_before):
            words = [text for text in (turns[-1]["content"], turn["content"]) if text.strip()]
            turns[-1] = {"role": role, "content": "\n\n".join(words)}
        else:
            turns.append({"role": role, "content": turn["content"]})
        moved_before = moved
    return turns
