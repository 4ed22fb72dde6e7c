"""Replaces the set of patches in a module by another set, all or nothing."""

from __future__ import annotations

import ast
import copy
import dataclasses
import types
from typing import Any

import jax

from mishax_lite import codes, display, live, sources, versions
from mishax_lite.codes import Codes, Index, Key
from mishax_lite.members import apply_edit
from mishax_lite.report import Finding, PatchError, Report
from mishax_lite.states import State, own
from mishax_lite.versions import Origin, Version


@dataclasses.dataclass(frozen=True)
class Plan:
    """A module with some patches in it.

    Attributes:
        lines: the module's lines with the patches.
        findings: for each edit its patch and its finding.
        changes: each function that gets other code, that code, and the version that the function is of.
        codes: the code of every function of the source.
        versions: the versions of the source that functions in memory are of.
    """

    lines: list[str]
    findings: list[tuple[Any, Finding]]
    changes: list[tuple[types.FunctionType, types.CodeType, Version]]
    codes: Codes
    versions: list[Version]


def plan(state: State, patches: list[Any]) -> Plan:
    """Returns the module with these patches, in this order, from its source; changes nothing."""
    present = state.present
    functions = own(state, live.functions_of(state.module))
    survey = versions.survey(functions, live.members_of(state.module), state.versions, state.patched, state.codes)
    unknown = survey.unknown_keys(present)
    alive = {*(origin.key for _, origin in survey.placed if origin.version is present), *unknown}
    lines, findings, new = _edited(state, patches, alive)
    problems: dict[Key, str] = {}
    for key, original in present.index.codes.items():
        alike = new.get(key, [])
        problem = codes.incompatible(original, alike)
        if not problem and key in unknown and not codes.all_same(original, alike):
            problem = (
                "the code in memory is not that of the source file: the file changed after it was imported, or "
                "another tool (a tracer, an import hook) changed the code; import the module afresh, without that tool"
            )
        if problem:
            problems[key] = problem
    changes = []
    for function, origin in survey.placed:
        # Functions from before a reload get their own code back: the patches are written for the present source.
        after = new if origin.version is present else origin.version.index.codes
        try:
            code = function.__code__ if origin.key in problems else _new_code(state, function, origin, after)
        except ValueError as error:
            problems[origin.key] = str(error)
            continue
        if code is not function.__code__:
            changes.append((function, code, origin.version))
    for key, problem in problems.items():
        findings += [(patch, _refused(state, key, problem)) for patch in patches]
    in_use = {id(origin.version) for _, origin in survey.placed}
    kept = [version for version in state.versions if version is present or id(version) in in_use]
    return Plan(lines, findings, changes, new, kept)


def _edited(state: State, patches: list[Any], alive: set[Key]) -> tuple[list[str], list[tuple[Any, Finding]], Codes]:
    """Returns the present source with the edits that fit: its lines, a finding for each edit, and its code.

    All edits are compiled together; only if that fails, one after the other, to say which ones make no program.
    """
    try:
        tree, findings = _edited_tree(state, patches, alive)
        lines = display.patched_lines(state.source.text, tree)
        return lines, findings, codes.code_of(state.module, tree, state.source, _namespaces(patches))
    except codes.COMPILE_ERRORS:
        tree, findings = _edited_tree(state, patches, alive, compile_each=True)
        lines = display.patched_lines(state.source.text, tree)
        return lines, findings, codes.code_of(state.module, tree, state.source, _namespaces(patches))


def _edited_tree(
    state: State, patches: list[Any], alive: set[Key], compile_each: bool = False
) -> tuple[ast.Module, list[tuple[Any, Finding]]]:
    tree = sources.parse(state.source)
    findings: list[tuple[Any, Finding]] = []
    for patch in patches:
        for member, rewrites in patch.edits.items():
            for index, rewrite in enumerate(rewrites):
                former = copy.deepcopy(tree) if compile_each else tree
                finding = apply_edit(
                    state.module, state.source.text, tree, alive, member, index, rewrite, id(patch), vars(patch.names)
                )
                if compile_each and finding.status == "ok":
                    try:
                        codes.code_of(state.module, copy.deepcopy(tree), state.source, _namespaces(patches))
                    except codes.COMPILE_ERRORS as error:
                        message = f"Python does not compile the function with it: {getattr(error, 'msg', error)}"
                        finding = dataclasses.replace(finding, status="refused", message=message)
                        tree = former
                elif compile_each:
                    tree = former  # the edit was refused halfway
                findings.append((patch, finding))
    return tree, findings


def _namespaces(patches: list[Any]) -> dict[int, codes.Names]:
    return {id(patch): patch.names for patch in patches}


def change(state: State, patches: list[Any], cause: Any, problem: str) -> None:
    """Makes `patches` the installed ones, or changes nothing and raises PatchError."""
    new = plan(state, patches)
    raise_failures(cause, new, problem)
    _assign(state, new.changes)
    state.patched.add(state.present, new.codes)
    state.installed, state.codes, state.versions, state.left = patches, Index(new.codes), new.versions, False
    display.show(state.source, new.lines if patches else None)
    if new.changes and not live.is_importing(state.module):
        jax.clear_caches()


def _assign(state: State, changes: list[tuple[types.FunctionType, types.CodeType, Version]]) -> None:
    former = [(function, function.__code__) for function, _, _ in changes]
    for function, _, version in changes:
        if state.patched.origin(function.__code__) is None:
            state.before[function] = function.__code__
            version.remember(function.__code__)
    try:
        for function, code, _ in changes:
            function.__code__ = code
    except BaseException:
        for function, code in former:
            function.__code__ = code
        raise


def _new_code(state: State, function: types.FunctionType, origin: Origin, new: Codes) -> types.CodeType:
    """Returns the code of `new` that a living function gets: where it does the same, the object that an import made.

    Raises:
        ValueError: if nobody can say which of several is its code.
    """
    alike = new.get(origin.key, [])
    if not alike:  # an edit removed or inserted the inner function; the living one goes on unchanged
        return function.__code__
    if len(alike) != origin.count:
        raise ValueError("several functions begin on this line, and the edit changes how many; edit them apart")
    code = alike[origin.k]
    if codes.same_code(code, function.__code__):
        return function.__code__
    original = origin.version.index.codes.get(origin.key, [])
    if len(original) == len(alike) and codes.same_code(original[origin.k], code):
        before = state.before.get(function)
        if before is not None and codes.same_code(before, code):
            return before
        return origin.version.imported.get((origin.key, origin.k), code)
    return code


def raise_failures(patch: Any, planned: Plan, problem: str) -> None:
    """Raises PatchError with the failures of a plan; does nothing if it has none."""
    report = Report(tuple(finding for _, finding in planned.findings))
    if not report.ok:
        raise PatchError(f"the patch of {patch.module.__name__} {problem}:", report)


def _refused(state: State, key: Key, problem: str) -> Finding:
    return Finding(state.module.__name__, key[0].replace(".<locals>", ""), -1, "refused", problem, (key[1],))
