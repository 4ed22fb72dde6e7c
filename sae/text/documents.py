"""What a document is, and how one is made of a record: an object of a JSON line, a row of a table."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Message:
    """What one side of a chat said. `role` is "system", "user", or "model", which some call "assistant"."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, or one chat, with a name of its own and the name of the collection that it is from.

    Attributes:
      id, source: the two names.
      text: of a document that is no chat.
      messages: of a chat; its `text` is empty.

    Raises:
      ValueError: with both text and messages.
    """

    id: str
    source: str
    text: str = ""
    messages: tuple[Message, ...] = ()

    def __post_init__(self):
        if self.text and self.messages:
            raise ValueError(f"document {self.id!r} has both text and messages: it is one or the other")

    @property
    def characters(self) -> int:
        """How many there are of them, those of all messages together."""
        return len(self.text) + sum(len(message.content) for message in self.messages)

    @property
    def blank(self) -> bool:
        """Whether it is white space alone, or nothing."""
        return not self.text.strip() and not any(message.content.strip() for message in self.messages)


def from_record(record: object, *, where: str, name: str, number: int) -> Document:
    """A document of {"text": ...} or, where there is no text, {"messages": [{"role": ..., "content": ...}, ...]}, with
    "id" and "source" if it likes.

    Args:
      record: anything that JSON or a table may hold.
      where: begins the errors: the file, and the line or the row.
      name: of the collection: the source unless the record says otherwise.
      number: of the record in it, for an id where it has none.

    Raises:
      ValueError: for a record without either, or with a lone surrogate in it, which no tokenizer takes.
    """
    fields = record if isinstance(record, dict) else {}
    text, messages = fields.get("text"), ()
    if text is None and fields.get("messages") is not None:
        text, messages = "", _messages(fields["messages"], where)
    if not isinstance(text, str):
        raise ValueError(f'{where}: expected an object with a string "text", or with "messages", got {_short(record)}')
    try:
        "".join([text, *(message.content for message in messages)]).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where}: a lone surrogate, which is no text, in {_short(record)}") from None
    id_, source = fields.get("id"), fields.get("source")
    return Document(
        f"{name}:{number}" if id_ is None else str(id_), name if source is None else str(source), text, messages
    )


def _messages(messages: object, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list):
        raise ValueError(f'{where}: expected "messages" to be a list, got {_short(messages)}')
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(
                f'{where}: expected a message with a string "role" and a string "content", got {_short(message)}'
            )
    return tuple(Message(message["role"], message["content"]) for message in messages)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
