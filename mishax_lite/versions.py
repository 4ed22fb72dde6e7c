"""Which source the functions in memory are made of, when a module is loaded again while the program runs.

`importlib.reload`, IPython's autoreload and a notebook's cell that runs again make new functions, or give the old ones
new code, from source that may have changed. Functions from before stay with whoever holds them.
"""

from __future__ import annotations

import dataclasses
import types
import weakref

from mishax_lite import codes, sources
from mishax_lite.codes import Codes, Index, Key
from mishax_lite.sources import Source


class Version:
    """A module's source at some time. `index`: the code of its functions; `imported`: that code as it was imported."""

    def __init__(self, module: types.ModuleType, source: Source):
        self.source = source
        self.index = Index(codes.code_of(module, sources.parse(source), source, {}))
        self.imported: dict[tuple[Key, int], types.CodeType] = {}

    def remember(self, code: types.CodeType) -> None:
        """Keeps code objects that an import made, so that the very same can be put back."""
        for inner in (code, *codes.walk(code)):
            place = self.index.find(inner, inner.co_qualname)
            if place is not None:
                self.imported.setdefault(place, inner)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a function's code is: the `k`-th of the `count` codes that `version` has, or had when patched, under `key`.

    `patched`: whether this package put it there.
    """

    version: Version
    key: Key
    k: int
    count: int
    patched: bool


class PatchedCode:
    """Remembers of each code object that patches made what it stands for, as long as somebody has it."""

    def __init__(self):
        self._origins: dict[int, tuple[weakref.ref, Origin]] = {}  # by id: code is equal if it looks alike

    def add(self, version: Version, installed: Codes) -> None:
        for key, alike in installed.items():
            for k, code in enumerate(alike):
                number = id(code)
                forget = weakref.ref(code, lambda _, number=number: self._origins.pop(number, None))
                self._origins[number] = forget, Origin(version, key, k, len(alike), True)

    def origin(self, code: types.CodeType) -> Origin | None:
        reference, origin = self._origins.get(id(code), (lambda: None, None))
        return origin if reference() is code else None


@dataclasses.dataclass
class Survey:
    """The functions of a module in memory.

    Attributes:
        placed: each function whose code is known, with its origin.
        members: the ids of those that the module's names lead to.
        unknown: functions with code that nobody knows: another tool changed it, or the source did.
    """

    placed: list[tuple[types.FunctionType, Origin]]
    members: set[int]
    unknown: list[types.FunctionType]

    def unknown_keys(self, present: Version) -> set[Key]:
        """The keys of the present source that an unknown function has the name of, so that an edit would miss it.

        A function that the module does not lead to and that has a successor is from before a reload: it stays as it is.
        """
        placed = {origin.key for _, origin in self.placed if origin.version is present}
        by_name: dict[str, list[Key]] = {}
        for key in present.index.codes:
            by_name.setdefault(key[0], []).append(key)
        keys: set[Key] = set()
        for function in self.unknown:
            if function.__code__.co_filename == present.source.filename:
                named = by_name.get(function.__code__.co_qualname, [])
                is_member = id(function) in self.members
                keys.update(key for key in named if is_member or key not in placed)
        return keys


def survey(
    functions: list[types.FunctionType],
    members: list[types.FunctionType],
    versions: list[Version],
    patched: PatchedCode,
    installed: Index,
) -> Survey:
    """Says of each function which of the versions it is made of. The last version is the module's present one."""
    placed, unknown = [], []
    for function in functions:
        origin = find_origin(function, versions, patched, installed)
        if origin is None:
            unknown.append(function)
        else:
            placed.append((function, origin))
    return Survey(placed, set(map(id, members)), unknown)


def find_origin(
    function: types.FunctionType, versions: list[Version], patched: PatchedCode, installed: Index
) -> Origin | None:
    code, qualname = function.__code__, function.__qualname__
    present = versions[-1]
    origin = patched.origin(code)
    if origin is not None:
        alike = origin.version.index.codes.get(origin.key, [])
        if origin.version is present or len(alike) != origin.count:
            return origin
        # A function from before a reload that left its source alone is one of the present version.
        place = present.index.find(alike[origin.k], qualname)
        return origin if place is None else _at(present, place, True)
    place = present.index.find(code, qualname)
    if place is not None:
        return _at(present, place, False)
    place = installed.find(code, qualname)  # a copy of what a patch made
    if place is not None:
        key, k = place
        return Origin(present, key, k, len(installed.codes[key]), True)
    for version in reversed(versions[:-1]):
        place = version.index.find(code, qualname)
        if place is not None:
            return _at(version, place, False)
    return None


def was_loaded(
    candidate: Version, present: Version, members: list[types.FunctionType], patched: PatchedCode, imported: bool
) -> bool:
    """Whether the module was loaded from `candidate`, its source on disk, after it was from `present`.

    That the source changed on disk does not say so. The code of the functions does; where it fits both, their lines;
    and where these are the same too, whether the import system loaded the module anew (`imported`).
    """
    ours, theirs = _fit(present, members, patched), _fit(candidate, members, patched)
    return theirs > ours or (theirs == ours and imported)


def _fit(version: Version, members: list[types.FunctionType], patched: PatchedCode) -> tuple[int, int]:
    """How many functions have the code of a version, and how many have it on the lines of that version."""
    fitting = exact = 0
    for function in members:
        origin = patched.origin(function.__code__)
        if origin is not None:
            key = origin.key if origin.version is version else None
        else:
            place = version.index.find(function.__code__, function.__qualname__)
            key = None if place is None else place[0]
        if key is not None:
            fitting += 1
            exact += key[1] == function.__code__.co_firstlineno
    return fitting, exact


def _at(version: Version, place: tuple[Key, int], patched: bool) -> Origin:
    key, k = place
    return Origin(version, key, k, len(version.index.codes[key]), patched)
