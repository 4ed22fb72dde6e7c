"""Tells which source the functions in memory are made of, when a module is loaded again while the program runs.

`importlib.reload`, IPython's autoreload and a notebook's cell that runs again make new functions, or give the old ones
new code, from source that may have changed. Old functions live on where somebody holds them.
"""

from __future__ import annotations

import dataclasses
import types
import weakref

from mishax_lite import codes, sources
from mishax_lite.codes import Codes, Index, Key
from mishax_lite.sources import Source


class Version:
    """A module's source at some time.

    Attributes:
        source: the source.
        index: the code of its functions, compiled here.
        imported: the code objects of its functions that an import made, by their places in the index.
    """

    def __init__(self, module: types.ModuleType, source: Source):
        self.source = source
        self.index = Index(codes.code_of(module, sources.parse(source), source, {}))
        self.imported: dict[tuple[Key, int], types.CodeType] = {}

    def remember(self, code: types.CodeType) -> None:
        """Keeps the code objects that an import made, so that the same objects can be put back."""
        for inner in (code, *codes.walk(code)):
            place = self.index.find(inner, inner.co_qualname)
            if place is not None:
                self.imported.setdefault(place, inner)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a function's code.

    Attributes:
        version: the version of the source.
        key: the key of the code in that version.
        k: the index of the code among the codes of that key.
        count: the number of codes of that key, when the code was patched if it was.
        patched: whether this package made the code.
    """

    version: Version
    key: Key
    k: int
    count: int
    patched: bool


class PatchedCode:
    """Remembers the origin of each code object that patches made, as long as somebody holds the code."""

    def __init__(self):
        self._origins: dict[int, tuple[weakref.ref, Origin]] = {}  # by id: code is equal if it looks alike

    def add(self, version: Version, installed: Codes) -> None:
        """Adds the code that patches of a version made."""
        for key, alike in installed.items():
            for k, code in enumerate(alike):
                number = id(code)
                forget = weakref.ref(code, lambda _, number=number: self._origins.pop(number, None))
                self._origins[number] = forget, Origin(version, key, k, len(alike), True)

    def origin(self, code: types.CodeType) -> Origin | None:
        """Returns the origin of a code object; None if no patch made it."""
        reference, origin = self._origins.get(id(code), (lambda: None, None))
        return origin if reference() is code else None


@dataclasses.dataclass
class Survey:
    """The functions of a module in memory.

    Attributes:
        placed: the functions whose code has an origin, each with that.
        members: the ids of the functions that the module's names lead to.
        unknown: the functions with other code: another tool changed it, or the source changed.
    """

    placed: list[tuple[types.FunctionType, Origin]]
    members: set[int]
    unknown: list[types.FunctionType]

    def unknown_keys(self, present: Version) -> set[Key]:
        """Returns the keys of the present source whose names unknown functions have: an edit would miss these.

        A function that the module's names do not lead to and that has a successor is from before a reload: it does not
        count.
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
    """Returns which version each function is made of. The last version is the module's present one."""
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
    """Returns the origin of a function's code; None if it has none."""
    code, qualname = function.__code__, function.__qualname__
    present = versions[-1]
    origin = patched.origin(code)
    if origin is not None:
        alike = origin.version.index.codes.get(origin.key, [])
        if origin.version is present or len(alike) != origin.count:
            return origin
        # A reload that left a function's source alone makes it a function of the present version.
        place = present.index.find(alike[origin.k], qualname)
        return origin if place is None else _at(present, place, True)
    place = present.index.find(code, qualname)
    if place is not None:
        return _at(present, place, False)
    place = installed.find(code, qualname)  # a copy of a patch's code
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
    """Returns whether the module was loaded from `candidate`, its source on disk, after it was loaded from `present`.

    A change of the source on disk does not show that. The code of the functions does; where it fits both, their lines
    do; and where these are the same too, the fact that the import system loaded the module anew (`imported`) does.
    """
    ours, theirs = _fit(present, members, patched), _fit(candidate, members, patched)
    return theirs > ours or (theirs == ours and imported)


def _fit(version: Version, members: list[types.FunctionType], patched: PatchedCode) -> tuple[int, int]:
    """Returns how many functions have the code of a version, and how many have it on the lines of that version."""
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
