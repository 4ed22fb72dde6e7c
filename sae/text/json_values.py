"""Reads JSON values of a stream one by one, without the whole in memory: elements of an array, or objects one after
another."""

import codecs
import json
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from sae.text.opening import Stream, not_utf8

_CHUNK = 2**20
_SPACE = "\ufeff \t\r\n"
_decoder = json.JSONDecoder()


def runs_out(error: JSONDecodeError, text: str) -> bool:
    """Returns whether an error may come from a text that goes on: the value ends within a string, a number or a word,
    or where more has to follow."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - 12


class JsonValues:
    """Reads a stream of JSON whose values are not one to a line.

    Args:
        path: the file, for errors.
        stream: from `open_text`.
    """

    def __init__(self, path: Path, stream: Stream):
        self._path, self._stream = path, stream
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._read = stream.start  # bytes read so far, for errors
        self._text, self._at, self._ended = "", 0, False
        self._line, self._counted = 1, 0  # the line at `_counted` in the text

    def records(self) -> Iterator[tuple[int, str, Any]]:
        """Yields (number, where, value) of every element of an array or of an object's list of records, and of every
        other object."""
        for number, (line, value) in enumerate(self._values(), start=1):
            yield number, f"{self._path}, record {number} (line {line})", value

    def _values(self) -> Iterator[tuple[int, Any]]:
        while mark := self._next():
            if mark == "[":
                yield from self._elements()
            elif mark == "{":
                yield from self._object()
            else:
                line = self._place()
                yield line, self._value()

    def _elements(self) -> Iterator[tuple[int, Any]]:
        """Yields the elements of the array that begins here."""
        self._at += 1
        if self._next() == "]":
            self._at += 1
            return
        while True:
            self._next()
            line = self._place()
            yield line, self._value()
            if self._expect(",]", "an array") == "]":
                return

    def _object(self) -> Iterator[tuple[int, Any]]:
        """Yields the records of the list in the object that begins here, or the object itself where it has no list."""
        line, fields, container = self._place(), {}, None
        self._at += 1
        if self._next() == "}":
            self._at += 1
            yield line, fields
            return
        while True:
            if self._next() != '"':
                self._broken("expected a name in quotes")
            name = self._value()
            self._expect(":", "an object")
            if self._next() == "[" and name != "messages":
                elements = self._elements()
                first = next(elements, None)
                if is_record(first and first[1]) and not is_record(fields):
                    if container is not None:
                        self._broken(f"the object has two lists of records, {container!r} and {name!r}: expected one")
                    container = name
                    # pyrefly: ignore[invalid-yield]  not None here
                    yield first
                    yield from elements
                else:
                    fields[name] = [value for _, value in ([first] if first else [])] + [v for _, v in elements]
            else:
                fields[name] = self._value()
            if container is not None:
                if is_record(fields):
                    self._broken(f"the object has a text of its own, and the list {container!r} of records")
                fields.clear()  # fields beside a list of records are not kept
            if self._expect(",}", "an object") == "}":
                break
        if container is None:
            yield line, fields

    def _next(self) -> str:
        """Returns the next character that is no white space, without taking it; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more()

    def _expect(self, marks: str, within: str) -> str:
        mark = self._next()
        if not mark or mark not in marks:
            self._broken(f"{within} breaks off" if not mark else f"expected one of {' '.join(marks)}, got {mark!r}")
        self._at += 1
        return mark

    def _value(self) -> Any:
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
            except JSONDecodeError as error:
                if self._ended or not runs_out(error, self._text):
                    self._broken(error.msg)
            except (ValueError, RecursionError) as error:  # beyond Python's limits
                self._broken(str(error))
            else:
                # A number near the end of the text may go on: 1 may become 1e+22.
                if self._ended or len(self._text) - end > 2 or self._text[end - 1] in '"]}':
                    self._at = end
                    return value
            self._read_more()

    def _read_more(self) -> None:
        """Reads on, as much again as the text has, so that a long value takes no more than a few readings."""
        self._place()
        self._text, self._at, self._counted = self._text[self._at :], 0, 0
        content = self._stream.file.read(max(_CHUNK, len(self._text)))
        pending = len(self._decode.getstate()[0])
        try:
            self._text += self._decode.decode(content, final=not content)
        except UnicodeDecodeError as error:
            raise not_utf8(self._path, error.object[error.start], self._read - pending + error.start) from None
        self._read += len(content)
        self._ended = not content

    def _place(self) -> int:
        """Returns the number of the current line."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _broken(self, problem: str) -> None:
        raise ValueError(
            f"{self._path}, line {self._place()}: not JSON ({problem}). The rest cannot be read, so correct this"
        ) from None


def is_record(value: object) -> bool:
    """Returns whether a value of JSON is an object with a text or with messages.

    Example:
        >>> is_record({"text": "one"}), is_record({"txt": "one"})
        (True, False)
    """
    return isinstance(value, dict) and ("text" in value or "messages" in value)
