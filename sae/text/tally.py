"""Counts of the documents that were read and of all that was left out, so that nothing is dropped silently."""

import collections
import dataclasses

SKIP_BAD = "Mend it, or leave such records out with skip_bad=True (--skip_bad)"


class BadRecord(ValueError):
    """The error for a record that is no document. It names the file, the line and the problem."""


class TextWarning(UserWarning):
    """The warning that a part of a text was left out."""


@dataclasses.dataclass
class Tally:
    """Counts documents, and records and parts that were left out.

    Attributes:
        documents: documents that were read.
        blank: documents of white space alone, or empty; left out.
        bad: records that are no documents; left out with `skip_bad`.
        first_bad: the first bad record: file, line, problem.
        parts: {kind ("image", "tool_calls"): the number of parts of messages that are no text}; left out.
        roles: {role: the number of turns} of roles besides the system's, the user's and the model's.
        both: records with text and messages, whose text was read.
        unread: names of a folder's files and folders of other kinds.

    Example:
        >>> tally = Tally(documents=1200, bad=2, first_bad="a.jsonl, line 7: not JSON")
        >>> print(tally)
        1,200 documents; 2 bad records are left out, the first: a.jsonl, line 7: not JSON
    """

    documents: int = 0
    blank: int = 0
    bad: int = 0
    first_bad: str = ""
    parts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    roles: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    both: int = 0
    unread: list[str] = dataclasses.field(default_factory=list)

    def leave_out(self, problem: object) -> None:
        """Counts a bad record."""
        self.bad += 1
        self.first_bad = self.first_bad or str(problem)

    def add(self, other: "Tally") -> None:
        """Adds the counts of another tally."""
        self.first_bad = self.first_bad or other.first_bad
        for field in dataclasses.fields(self):
            if field.name != "first_bad":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def omissions(self) -> list[str]:
        """Sentences on all counts but those of documents and blank documents."""
        lines = []
        if self.bad:
            lines.append(f"{_some(self.bad, 'bad record', 'bad records')} left out, the first: {self.first_bad}")
        if self.parts:
            parts = _some(self.parts.total(), "part of messages", "parts of messages")
            lines.append(f"{parts} left out, being no text ({_kinds(self.parts)})")
        if self.roles:
            turns = _some(self.roles.total(), "turn", "turns")
            lines.append(f"{turns} neither the system's nor the user's nor the model's ({_kinds(self.roles)})")
        if self.both:
            lines.append(f"{_some(self.both, 'record', 'records')} read by the text alone, with messages beside it")
        if self.unread:
            names = ", ".join(self.unread[:3]) + (", …" if len(self.unread) > 3 else "")
            entries = _some(len(self.unread), "entry of the folder", "entries of the folder")
            lines.append(f"{entries} not read ({names})")
        return lines

    def __str__(self) -> str:
        documents = f"{self.documents:,} document{'' if self.documents == 1 else 's'}"
        blank = [f"{_some(self.blank, 'blank document', 'blank documents')} left out"] if self.blank else []
        return "; ".join([documents, *blank, *self.omissions])


def _some(number: int, one: str, several: str) -> str:
    """Returns a number, its noun and the verb: "1 part is", "3 parts are"."""
    return f"1 {one} is" if number == 1 else f"{number:,} {several} are"


def _kinds(numbers: collections.Counter) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(numbers.items()))
