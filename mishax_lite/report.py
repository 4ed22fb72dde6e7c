"""What `Patch.check` found: for each edit, whether and where it applies, and if not, what is nearest to it."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import textwrap
from typing import Any

from mishax_lite.sources import split_lines


@dataclasses.dataclass(frozen=True)
class Finding:
    """One edit of one member.

    `status`: "ok"; "stale" (the source is not what the edit was written for); "ambiguous" (it matches too often);
    "refused" (it matches, but cannot be put in). `lines`: where it matches. `pin`: the hash of the member's source.
    """

    module: str
    member: str
    index: int
    status: str
    message: str
    lines: tuple[int, ...] = ()
    pin: str = ""
    diff: str = ""

    def __str__(self) -> str:
        place = f"{self.module}:{self.member}, edit {self.index}"
        text = f"{self.status:9} {place}: {self.message}"
        if self.pin:
            text += f" [pin {self.pin}]"
        return text + ("\n" + textwrap.indent(self.diff, "    ") if self.diff else "")


@dataclasses.dataclass(frozen=True)
class Report:
    """The findings of one or more patches. `str(report)` is meant to be read."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.status == "ok" for finding in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status != "ok")

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


class PatchError(ValueError):
    """A patch cannot be installed or taken off. `report` says why, edit by edit."""

    def __init__(self, message: str, report: Report):
        super().__init__(f"{message}\n{Report(report.failures)}")
        self.report = report


def nearest(before: Any, root: Any, text: str) -> str:
    """The code in the function `root` that is most like the pattern `before`, as a diff against it ("" if none is)."""
    wanted = ast.unparse(before if isinstance(before, ast.expr) else ast.Module(before, []))
    lines = split_lines(text)
    best, best_score = None, 0.3  # less alike than this is of no help
    for nodes in _candidates(before, root):
        code = "\n".join(ast.unparse(node) for node in nodes)
        matcher = difflib.SequenceMatcher(None, wanted, code, autojunk=False)
        if matcher.real_quick_ratio() > best_score and matcher.quick_ratio() > best_score:
            score = matcher.ratio()
            if score > best_score:
                best, best_score = nodes, score
    if best is None:
        return ""
    first, last = best[0].lineno, best[-1].end_lineno
    code = "\n".join(ast.unparse(node) for node in best)
    ours, theirs = "before, as the edit has it", f"line {first} of the source"
    rows = difflib.unified_diff(split_lines(wanted), split_lines(code), ours, theirs, lineterm="", n=2)
    source = textwrap.dedent("\n".join(lines[first - 1 : last]))
    where = f"line {first}" if first == last else f"lines {first} to {last}"
    return "\n".join([f"nearest source, {where}:", textwrap.indent(source, "  "), *rows])


def _candidates(before: Any, root: Any):
    if isinstance(before, ast.expr):
        for statement in root.body if isinstance(root.body, list) else [root.body]:
            for node in ast.walk(statement):
                if isinstance(node, ast.expr) and not isinstance(node, (ast.Constant, ast.Name)):
                    yield [node]
        return
    size = len(before)
    for node in ast.walk(root):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and statements and isinstance(statements[0], ast.stmt):
                for k in range(max(1, len(statements) - size + 1)):
                    yield statements[k : k + size]
