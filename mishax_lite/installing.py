"""What is installed in each module, and going from one set of patches to another, all or nothing."""

from __future__ import annotations

import ast
import dataclasses
import types
import weakref
from typing import Any

import jax

from mishax_lite import display, live
from mishax_lite.members import apply_edit
from mishax_lite.report import Finding, PatchError, Report


@dataclasses.dataclass
class State:
    """A module as it was imported, and what is installed in it.

    `original`: the code of its functions, compiled from the source. `untouched`: what each function that was ever
    changed had before, the object itself. `codes`: by the function's key, the code that is installed now.
    """

    module: types.ModuleType
    filename: str
    text: str
    original: dict[live.Key, list[types.CodeType]]
    codes: dict[live.Key, list[types.CodeType]]
    installed: list[Any] = dataclasses.field(default_factory=list)
    untouched: weakref.WeakKeyDictionary = dataclasses.field(default_factory=weakref.WeakKeyDictionary)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A module with some patches in it: its lines, what was found about each edit, and the code that functions get."""

    lines: list[str]
    findings: list[tuple[Any, Finding]]
    changes: list[tuple[types.FunctionType, types.CodeType]]
    codes: dict[live.Key, list[types.CodeType]]


_states: weakref.WeakKeyDictionary[types.ModuleType, State] = weakref.WeakKeyDictionary()


def state_of(module: types.ModuleType) -> State:
    if module not in _states:
        loader = getattr(module, "__loader__", None)
        text = loader.get_source(module.__name__) if hasattr(loader, "get_source") else None
        filename = getattr(module, "__file__", None)
        if text is None or filename is None:
            raise ValueError(
                f"Patch: module {module.__name__!r} has no source in Python (it is built in, compiled, or was typed "
                "in), so that nothing can be rewritten in it"
            )
        original = live.code_of(ast.parse(text), filename, {})
        _states[module] = State(module, filename, text, original, original)
    return _states[module]


def plan(state: State, patches: list[Any]) -> Plan:
    """What the module would be with these patches, in this order, from its original source."""
    tree = ast.parse(state.text)
    alive = live.live_functions(state.module, state.filename)
    findings = []
    for patch in patches:
        for member, rewrites in patch.edits.items():
            for index, rewrite in enumerate(rewrites):
                names = vars(patch.names)
                found = apply_edit(state.module, state.text, tree, alive, member, index, rewrite, id(patch), names)
                findings.append((patch, found))
    lines = display.patched_lines(state.text, tree)
    codes = live.code_of(tree, state.filename, {id(patch): patch.names for patch in patches})
    problems: dict[live.Key, str] = {}
    for key, original in state.original.items():
        problem = live.incompatible(original, codes.get(key, []))
        if problem:
            problems[key] = problem
    changes = []
    for key, functions in alive.items():
        for function in [] if key in problems else functions:
            try:
                code = live.new_code(function, state.codes.get(key, []), codes.get(key, []))
            except ValueError as error:
                problems[key] = str(error)
                break
            if code is not function.__code__:
                changes.append((function, _untouched(state, function, key, code)))
    for key, problem in problems.items():
        findings += [(patch, _refused(state, patch, key, problem)) for patch in patches]
    return Plan(lines, findings, changes, codes)


def change(state: State, patches: list[Any], cause: Any, problem: str) -> None:
    """Makes `patches` those that are installed, or changes nothing and raises PatchError."""
    new = plan(state, patches)
    raise_failures(cause, new, problem)
    for function, code in new.changes:
        state.untouched.setdefault(function, function.__code__)
        function.__code__ = code
    state.installed, state.codes = patches, new.codes
    display.show(state.filename, new.lines if patches else None)
    if new.changes and not live.is_importing(state.module):
        jax.clear_caches()


def raise_failures(patch: Any, planned: Plan, problem: str) -> None:
    report = Report(tuple(finding for _, finding in planned.findings))
    if not report.ok:
        raise PatchError(f"the patch of {patch.module.__name__} {problem}:", report)


def _untouched(state: State, function: types.FunctionType, key: live.Key, code: types.CodeType) -> types.CodeType:
    """The very code that was there before any patch, if `code` is no other than that."""
    for original in state.original.get(key, []):
        if live.same_code(original, code):
            if function in state.untouched:
                return state.untouched[function]
            for outer in state.untouched.values():  # a closure made while the patch was in
                for inner in live.codes_inside(outer).get(key, []):
                    if live.same_code(inner, code):
                        return inner
    return code


def _refused(state: State, patch: Any, key: live.Key, problem: str) -> Finding:
    return Finding(state.module.__name__, key[0].replace(".<locals>", ""), -1, "refused", problem, (key[1],))
