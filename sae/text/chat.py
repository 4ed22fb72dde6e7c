"""Chats as tokens, in the form that the model was trained on: its tokenizer's own `chat_turns` arranges them.

With Gemma that is

    <start_of_turn>user
    What is ...?<end_of_turn>
    <start_of_turn>model
    It is ...<end_of_turn>

and what the system says stands before the first user's words. Other roles are the template's own affair; where it has
no place for a developer's or a tool's turns, they are the system's and the user's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sae.text.documents import Message

_TOOLS = ("tool", "function", "ipython")


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer.

    Attributes:
      bos: the id that a chat may begin with.
    """

    bos: int

    def chat_turns(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[bool]]:
        """A chat's ids, in which marks that messages spell out are text like any other, and which of them are the
        contents of the model's turns, without marks, role and the white space around them."""


def encode_chat(messages: Sequence[Message], tokenizer: ChatTokenizer, *, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A chat's tokens, without BOS.

    The turns' marks are single ids. Marks that a message spells out are text like any other: else a message could
    speak for the other side.

    A template that refuses a chat with a developer's or a tool's turns gets them as other roles': what a developer says
    at the beginning is the system's, what a tool answers (and a developer says later) is the user's, after a blank line
    where that follows on the same side's words.

    Args:
      messages: an optional one of the system's, then the user's and the model's in turn. The last may be either's.
      tokenizer: the model's.
      name: the document's, for the errors.

    Returns:
      ids: [n] int32.
      model: [n] bool, True at the contents of the model's turns, without marks, role and line feeds.

    Raises:
      ValueError: for a tokenizer without the marks, and what the model's template says is wrong with the chat.

    Example:
      >>> import gemma
      >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
      >>> ids, model = encode_chat([Message("user", "Hi!"), Message("model", "Hello.")], tokenizer, name="a")
      >>> tokenizer.decode(ids[model])
      'Hello.'
    """
    # Templates of models other than Gemma know no role of the name "model".
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
    """A chat without turns of developers and tools: they are part of others' turns."""
    turns, moved_before = [], False
    for turn in chat:
        role = turn["role"]
        if role in _TOOLS or role == "developer":
            role = "system" if role == "developer" and all(t["role"] == "system" for t in turns) else "user"
        moved = role != turn["role"]
        # Two turns of a side in a row are otherwise for the template to refuse.
        if turns and turns[-1]["role"] == role and (moved or moved_before):
            words = [text for text in (turns[-1]["content"], turn["content"]) if text.strip()]
            turns[-1] = {"role": role, "content": "\n\n".join(words)}
        else:
            turns.append({"role": role, "content": turn["content"]})
        moved_before = moved
    return turns
