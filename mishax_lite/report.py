"""The results of `Patch.check`: for each edit, whether and where it fits, and if it does not, the nearest source."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import textwrap
from typing import Any

from mishax_lite.sources import split_lines


@dataclasses.dataclass(frozen=True)
class Finding:
    """The finding about one edit of one member.

    Attributes:
        module: the name of the module.
        member: the name of the member.
        index: the index of the edit among the member's edits.
        status: "ok"; "stale" (the edit was written for another source); "ambiguous" (it matches too often); "refused"
            (it matches, but cannot be installed).
        message: the reason, or the lines where the edit matches.
        lines: the lines where the edit matches.
        pin: the hash of the member's source.
        diff: the nearest source as a diff against `before`; "" where the edit fits or nothing is near.

    Example:
        >>> rewrite = mishax_lite.Rewrite("return (y, $i, $q)", "return (tap('luma', y), $i, $q)")
        >>> print(mishax_lite.Patch("colorsys", {"rgb_to_yiq": [rewrite]}).check().findings[0])
        ok        colorsys:rgb_to_yiq, edit 0: line ... [pin ...]
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
    """The findings of one or more patches; `str(report)` is for people.

    Attributes:
        findings: one for each edit, in order.

    Example:
        >>> rewrite = mishax_lite.Rewrite("return (luma, $i, $q)", "return (tap('luma', luma), $i, $q)")
        >>> report = mishax_lite.Patch("colorsys", {"rgb_to_yiq": [rewrite]}).check()
        >>> report.ok, [finding.status for finding in report.failures]
        (False, ['stale'])
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether all edits fit."""
        return all(finding.status == "ok" for finding in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings about edits that do not fit."""
        return tuple(finding for finding in self.findings if finding.status != "ok")

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


class PatchError(ValueError):
    """The error of a patch that cannot be installed or uninstalled.

    Attributes:
        report: the reasons, edit by edit.

    Example:
        >>> rewrite = mishax_lite.Rewrite("return (luma, $i, $q)", "return (tap('luma', luma), $i, $q)")
        >>> try:
        ...     mishax_lite.Patch("colorsys", {"rgb_to_yiq": [rewrite]}).install()
        ... except mishax_lite.PatchError as error:
        ...     print([finding.status for finding in error.report.failures])
        ['stale']
    """

    def __init__(self, message: str, report: Report):
        super().__init__(f"{message}\n{Report(report.failures)}")
        self.report = report


def nearest(before: Any, root: Any, text: str) -> str:
    """Returns the code in the function `root` that is most like the pattern `before`, as a diff against it; else ""."""
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
