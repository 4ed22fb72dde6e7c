"""Reads records of JSON files and of text tables one after another, in memory that does not grow with the file.

All readers yield (number, where, record): the record's number in the file, the file and the line for errors, and an
object, or a `BadRecord` in the place of a record that cannot be read.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.text.json_values import JsonValues, is_record, runs_out
from sae.text.opening import Stream, decode
from sae.text.tally import BadRecord

Records = Iterator[tuple[int, str, Any]]
_SPACE = "\ufeff \t\r\n"  # joined files have byte order marks inside
_decoder = json.JSONDecoder()
_FIELD = 2**27  # the most characters of a table's field: more mean an unclosed quote


def json_records(path: Path, stream: Stream) -> Records:
    """Yields the records of a JSON file under any name: an object in each line, an array of objects, an object with a
    list of them, or objects one after another.

    Raises:
        ValueError: for an array or an object that breaks off, as the rest cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from sae.text.opening import open_text
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = path.write_text('{"version": 1, "data": [{"text": "one"}, {"text": "two"}]}')
        >>> with open_text(path) as stream:
        ...     [record for _, _, record in json_records(path, stream)]
        [{'text': 'one'}, {'text': 'two'}]
    """
    return _lines(path, stream) if _is_lines(path, stream) else JsonValues(path, stream).records()


def holds_records(stream: Stream) -> bool:
    """Returns whether a stream begins with a record in JSON.

    Example:
        >>> import io
        >>> line = b'{"text": "one"}'
        >>> holds_records(Stream(io.BytesIO(line), 0, line, whole=True))
        True
    """
    head = _head(stream)
    head = head.lstrip("[" + _SPACE) if head.startswith("[") else head
    try:
        return head.startswith("{") and is_record(_decoder.raw_decode(head)[0])
    except (ValueError, RecursionError):
        return False


def _is_lines(path: Path, stream: Stream) -> bool:
    """Returns whether every line is a value of its own, by the head of the stream."""
    head = _head(stream)
    if not head.startswith(("{", "[")):
        return True
    if head.startswith("["):
        return False
    line, _, _ = head.partition("\n")
    try:
        value, end = _decoder.raw_decode(head)
    except RecursionError:
        return True
    except ValueError as error:
        # The first line is bad, or begins a value of many lines, which may go on after the head.
        # pyrefly: ignore[bad-argument-type]  a JSONDecodeError, of JSON
        many = ".json" in map(str.lower, path.suffixes) or (not stream.whole and runs_out(error, head))
        return not many
    if not is_record(value) and any(
        isinstance(part, list) and is_record(part[:1] and part[0]) for part in value.values()
    ):
        return False  # an object with a list of records
    return end <= len(line) and not line[end:].strip(_SPACE).startswith("{")


def _head(stream: Stream) -> str:
    return stream.head.decode("utf-8", "replace").lstrip(_SPACE)


def _lines(path: Path, stream: Stream) -> Records:
    start = stream.start
    # Lines of bytes end at a line feed alone; a text would also be split at U+2028, which a JSON string may have.
    for number, line in enumerate(stream.file, start=1):
        where = f"{path}, line {number}"
        try:
            text = decode(path, line, start).strip(_SPACE)
            if text:
                yield number, where, json.loads(text)
        except json.JSONDecodeError as error:
            yield number, where, BadRecord(f"{where}: not JSON ({error.msg})")
        except (ValueError, RecursionError) as error:  # not UTF-8, or numbers and lists beyond Python's limits
            yield number, where, BadRecord(str(error) if str(path) in str(error) else f"{where}: {error}")
        start += len(line)


def table_records(path: Path, stream: Stream, delimiter: str) -> Records:
    """Yields the rows of a table as objects. Commas, tabs, semicolons or bars separate its values; the first line names
    the columns, and one of them is "text". A field in double quotes may have several lines.

    Args:
        path: the file.
        stream: from `open_text`.
        delimiter: the delimiter that the file's name tells. If it gives no column "text", the others are tried.

    Raises:
        ValueError: for a file without such a first line, and for a quote that is never closed.

    Example:
        >>> import pathlib, tempfile
        >>> from sae.text.opening import open_text
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text('id,text\\na,"one, two"\\n')
        >>> with open_text(path) as stream:
        ...     [record for _, _, record in table_records(path, stream, ",")]
        [{'id': 'a', 'text': 'one, two'}]
    """
    # The limit holds for the whole module csv, so it is raised and never lowered.
    csv.field_size_limit(max(_FIELD, csv.field_size_limit()))
    lines = _text_lines(path, stream)
    above, first = next(((number, line) for number, line in enumerate(lines, start=1) if line.strip()), (0, ""))
    columns: list[str] = []
    for candidate in dict.fromkeys((delimiter, ",", "\t", ";", "|")):
        names = [name.strip() for name in next(csv.reader([first], delimiter=candidate), [])]
        if "text" in names:
            columns, delimiter = names, candidate
            break
    if not columns:
        raise ValueError(
            f'{path}: expected a first line that names the columns, "text" among them, got {first.strip()[:80]!r}: '
            'call the column with the text "text"'
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}: expected columns of different names, got {', '.join(columns)}")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while True:
        where, problem, fields = f"{path}, line {above + reader.line_num + 1}", "", []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error) or "field limit" in str(error):
                raise ValueError(f"{where}: a quote is opened and never closed") from None
            problem = "text after a closing quote; a field that has quotes goes into quotes, and its own are doubled"
            if "expected after" not in str(error):
                problem = str(error)
        if not problem and not fields:
            continue  # an empty line
        if not problem and len(fields) != len(columns):
            got = f"{len(fields)} field{'' if len(fields) == 1 else 's'}, the first line {len(columns)}"
            problem = f"has {got}; a field with {delimiter!r} in it goes into quotes"
        number += 1
        yield number, where, BadRecord(f"{where}: {problem}") if problem else dict(zip(columns, fields, strict=True))


def _text_lines(path: Path, stream: Stream) -> Iterator[str]:
    """Yields lines with their ends: a line feed, a carriage return, or both."""
    start = stream.start
    for line in stream.file:
        text = decode(path, line, start)
        start += len(line)
        if "\r" in text.removesuffix("\n").removesuffix("\r"):
            yield from re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)
        else:
            yield text
