"""Keeps which patches are installed in each module, and notices when the module is loaded again."""

from __future__ import annotations

import dataclasses
import types
import weakref
from collections.abc import Iterable
from typing import Any

from mishax_lite import codes, display, live, sources, versions
from mishax_lite.codes import Index
from mishax_lite.sources import Source
from mishax_lite.versions import Version


@dataclasses.dataclass
class State:
    """A source of a module, and the patches installed in its functions.

    Attributes:
        module: the module.
        versions: the source at each time that it was loaded; the last is the present one. Earlier ones are kept while
            functions in memory are made of them.
        codes: the code that is installed now.
        installed: the installed patches, in order.
        patched: all code that patches made.
        before: the original code object of each function that was ever changed.
        candidate: the source on disk, if it differs from the present version's and nobody has loaded it yet.
        spec: the module's `__spec__` at the last look.
        left: whether functions from before a reload may still have patches in them.
    """

    module: types.ModuleType
    versions: list[Version]
    codes: Index
    installed: list[Any] = dataclasses.field(default_factory=list)
    patched: versions.PatchedCode = dataclasses.field(default_factory=versions.PatchedCode)
    before: weakref.WeakKeyDictionary = dataclasses.field(default_factory=weakref.WeakKeyDictionary)
    candidate: tuple[Source | None, Version | None] = (None, None)
    spec: Any = None
    left: bool = False

    @property
    def present(self) -> Version:
        """The present version of the source."""
        return self.versions[-1]

    @property
    def source(self) -> Source:
        """The present source."""
        return self.present.source


# By module, and in it by filename: a notebook's `__main__` has a source for each cell. Others have one, under "".
_states: weakref.WeakKeyDictionary[types.ModuleType, dict[str, State]] = weakref.WeakKeyDictionary()


def states_of(module: types.ModuleType) -> list[State]:
    """Returns the states of a module that was patched before, brought up to date; none if it never was."""
    states = list(_states.get(module, {}).values())
    for state in states:
        _refresh(state)
    return states


def state_of(module: types.ModuleType, members: Iterable[str]) -> State:
    """Returns the state of the source that defines `members`, brought up to date.

    Raises:
        ValueError: if the module has no source, or `members` were typed into several cells.
    """
    states = _states.get(module, {})
    if "" not in states:  # else the file on disk may be no Python by now: `_refresh` looks at it
        source = sources.read_module(module) or _cell_of(module, members)
        if source is None:
            typed_in = "" if getattr(module, "__spec__", None) else f", or has no function {', '.join(members)}"
            raise ValueError(
                f"Patch: module {module.__name__!r} has no source in Python (it is built in or compiled, or nobody "
                f"kept the text that was typed in{typed_in}), so nothing can be rewritten in it"
            )
        name = source.filename if source.cell else ""
        if name not in states:
            try:
                version = Version(module, source)
            except codes.COMPILE_ERRORS as error:
                raise ValueError(
                    f"Patch: the source of module {module.__name__!r} does not compile ({error}), so it changed after "
                    "the import; mend it and import the module afresh"
                ) from error
            spec = getattr(module, "__spec__", None)
            _states.setdefault(module, states)[name] = State(module, [version], version.index, spec=spec)
    # pyrefly: ignore[unbound-name]  whatever has no state by the name "" has been read above
    state = states.get("") or states[name]
    _refresh(state)
    return state


def _cell_of(module: types.ModuleType, members: Iterable[str]) -> Source | None:
    """Returns the source of the cell that defines members of a typed-in module; None if nobody kept it."""
    if getattr(module, "__file__", None) is not None:
        return None
    cells: dict[str, tuple[str, types.CodeType]] = {}
    for name in {member.split(".")[0] for member in members}:
        for function in live.members_of(module, [name]):
            code = function.__code__
            if code.co_qualname.split(".")[0] in (name, "<lambda>"):  # a decorator may come from another cell
                cells[code.co_filename] = name, code
    if len(cells) > 1:
        names = ", ".join(sorted(name for name, _ in cells.values()))
        raise ValueError(
            f"Patch: {names} of {module.__name__!r} were typed into {len(cells)} cells; make a Patch for each cell"
        )
    return next((sources.read_cell(module, code) for _, code in cells.values()), None)


def _refresh(state: State) -> None:
    """Notices reloads: after one, the module's functions are new or have new code, and no patch is in them."""
    members = own(state, live.members_of(state.module))
    spec = getattr(state.module, "__spec__", None)
    source = None if state.source.cell else sources.read_module(state.module)
    if source is not None and source != state.source:
        if state.candidate[0] != source:
            try:
                state.candidate = source, Version(state.module, source)
            except codes.COMPILE_ERRORS:  # somebody is writing to the file
                state.candidate = source, None
        version = state.candidate[1]
        imported = spec is not state.spec
        if version is not None and versions.was_loaded(version, state.present, members, state.patched, imported):
            display.show(state.source, None)
            state.versions.append(version)
            _forget_installed(state)
    state.spec = spec
    if state.installed and _lost_patches(state, members):
        _forget_installed(state)


def own(state: State, functions: list[types.FunctionType]) -> list[types.FunctionType]:
    """Returns the functions of a module that belong to the state: in a notebook, those of its cell."""
    if not state.source.cell:
        return functions
    return [function for function in functions if function.__code__.co_filename == state.source.filename]


def _lost_patches(state: State, members: list[types.FunctionType]) -> bool:
    """Returns whether a function of the module itself has its original code although installed patches changed it.

    A cell that ran again may have another filename: then none of the module's functions has the patches.
    """
    patched = False
    for function in members:
        origin = versions.find_origin(function, [state.present], state.patched, state.codes)
        patched = patched or (origin is not None and origin.patched)
        # A function that another one makes may come from a call that ran in the old code.
        if origin is not None and not origin.patched and "<locals>" not in function.__code__.co_qualname:
            new = state.codes.codes.get(origin.key, [])
            if len(new) != origin.count or not codes.same_code(new[origin.k], function.__code__):
                return True
    return state.source.cell and not patched


def _forget_installed(state: State) -> None:
    state.left = state.left or bool(state.installed)
    state.installed, state.codes = [], state.present.index
    display.show(state.source, None)
