"""Documents, and how a record becomes one: an object of a JSON file, or a row of a table."""

import dataclasses
import numbers
from collections.abc import Iterable
from pathlib import Path

from sae import showing
from sae.fields import plain
from sae.text.tally import BadRecord, Tally

_USUAL_ROLES = ("system", "user", "model", "assistant")
_TEXT_PARTS = ("text", "input_text", "output_text")
# Fields of a message beside its content, which are no part of its text.
_BESIDE = (
    *("tool_calls", "function_call", "images", "audio", "videos", "reasoning", "reasoning_content", "thinking"),
    "refusal",
)


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a chat.

    Attributes:
        role: "system", "user", or "model", which some call "assistant"; or another role of the chat, such as
            "developer" and "tool" (see `encode_chat`).
        content: the text.

    Example:
        >>> Message("user", "Who are you?").content
        'Who are you?'
    """

    role: str
    content: str

    def __repr__(self) -> str:
        return showing.with_short_texts(self)


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, or one chat, with its own name and the name of its collection.

    Attributes:
        id: name of the document; a whole number becomes its digits.
        source: name of the collection; a whole number becomes its digits.
        text: the text of a document that is no chat.
        messages: the messages of a chat, whose `text` is empty.
        where: the file, and the line or the row, for errors; "" where they are unknown. It is no part of the document.

    Raises:
        ValueError: for both text and messages, and for values of other types.

    Example:
        >>> Document("a", "letters", "Dear reader").characters
        11
    """

    id: str
    source: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    where: str = dataclasses.field(default="", repr=False, compare=False)

    def __post_init__(self):
        # Millions of documents come from files, whose values are texts already; only other values are checked.
        for name in ("id", "source", "text"):
            if type(value := getattr(self, name)) is not str:
                number = isinstance(value, numbers.Integral) and not isinstance(value, bool) and name != "text"
                object.__setattr__(self, name, plain(f"Document: {name}", str(value) if number else value, str))
        if self.text and self.messages:
            raise ValueError(f"document {self.id!r} has both text and messages: give one of them")

    def __repr__(self) -> str:
        return showing.with_short_texts(self)

    @property
    def characters(self) -> int:
        """The number of characters of the text, or of all messages."""
        return len(self.text) + sum(len(message.content) for message in self.messages)

    @property
    def blank(self) -> bool:
        """Whether the document is white space alone, or empty."""
        return not self.text.strip() and not any(message.content.strip() for message in self.messages)


def require_document(value: object) -> None:
    """Raises ValueError for a value that is no document, with the functions that make documents."""
    if not isinstance(value, Document):
        raise ValueError(
            f"expected documents, got {showing.kind(value)} among them: sae.text.read_documents(path) reads a file, "
            "and sae.text.Document(id, source, text) is a text of your own"
        )


def require_documents(values: object) -> None:
    """Raises ValueError for a value that cannot be several documents; the documents themselves are not checked."""
    if isinstance(values, str | Path | Document) or not isinstance(values, Iterable):
        raise ValueError(
            f"expected documents, got {showing.kind(values)}: sae.text.read_documents(path) reads a file, and "
            "[sae.text.Document(id, source, text)] is a list with a text of your own"
        )


def from_record(record: object, *, where: str, name: str, number: int, tally: Tally) -> Document:
    """Returns the document of {"text": ...} or, where the text is missing, null or empty, of {"messages": [{"role":
    ..., "content": ...}, ...]}; with "id" and "source" where the record has them.

    Args:
        record: any value of JSON or of a table.
        where: the file, and the line or the row, with which errors begin.
        name: the name of the collection, which is the source unless the record has its own.
        number: the record's number in the collection, which makes an id where the record has none.
        tally: counts parts of the record that are not in the document.

    Raises:
        BadRecord: for a record without text and messages, with wrong types, or with a lone surrogate, which no
            tokenizer takes.

    Example:
        >>> from_record({"text": "one"}, where="a.jsonl, line 7", name="a", number=7, tally=Tally())
        Document(id='a:7', source='a', text='one', messages=())
    """
    if not isinstance(record, dict) or not ("text" in record or "messages" in record):
        names = ""
        if isinstance(record, dict):
            names = f"an object with {', '.join(map(str, record)) or 'nothing in it'}"
            names += ': call the field with the text "text"' if record else ""
        raise BadRecord(
            f'{where}: expected an object with a string "text", or with "messages", got {names or _short(record)}'
        )
    text, messages = record.get("text"), record.get("messages")
    if not isinstance(text, str | None):
        raise BadRecord(f'{where}: expected a string "text", got {_short(text)}')
    counts = Tally()
    if text and text.strip():
        counts.both += bool(messages)
        messages = ()
    else:
        text, messages = "" if messages else text or "", _messages(messages, where, counts)
        counts.parts["tools"] += bool(messages and record.get("tools"))
    # Names are written down too, in UTF-8.
    id_, source = record.get("id"), record.get("source")
    names = [f"{name}:{number}" if id_ is None else str(id_), name if source is None else str(source)]
    try:
        "".join([text, *names, *(part for message in messages for part in (message.role, message.content))]).encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{where}: a lone surrogate, which is no text, in {_short(record)}") from None
    counts.roles.update(message.role for message in messages if message.role not in _USUAL_ROLES)
    tally.add(counts)  # only now, as a bad record adds nothing
    # pyrefly: ignore[bad-argument-type,bad-argument-count]  as many names as fields
    return Document(*names, text, messages, where)


def _messages(messages: object, where: str, tally: Tally) -> tuple[Message, ...]:
    if messages is None:
        return ()
    if not isinstance(messages, list):
        raise BadRecord(f'{where}: expected "messages" to be a list, got {_short(messages)}')
    return tuple(_message(message, where, tally) for message in messages)


def _message(message: object, where: str, tally: Tally) -> Message:
    fields = message if isinstance(message, dict) else {}
    beside = [name for name in _BESIDE if fields.get(name)]
    content = fields.get("content")
    if content is None and ("content" in fields or beside):
        content = ""  # a turn that calls a tool has no text
    if isinstance(content, list):
        content = "".join(_part(part, where, tally) for part in content)
    if not isinstance(fields.get("role"), str) or not isinstance(content, str):
        raise BadRecord(
            f'{where}: expected a message with a string "role" and a "content" that is a string or a list of parts, '
            f"got {_short(message)}"
        )
    tally.parts.update(beside)
    return Message(fields["role"], content)


def _part(part: object, where: str, tally: Tally) -> str:
    """Returns the text of a part of a message; a part of another kind is counted."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadRecord(f"{where}: expected a part of a message to be a string or an object, got {_short(part)}")
    kind, text = part.get("type"), part.get("text")
    # In a table every part has the fields of all kinds, and those of other kinds are null.
    if kind in _TEXT_PARTS or (kind is None and isinstance(text, str)):
        if not isinstance(text, str):
            raise BadRecord(f'{where}: expected a part of text with a string "text", got {_short(part)}')
        return text
    tally.parts[kind if isinstance(kind, str) else "other"] += 1
    return ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
