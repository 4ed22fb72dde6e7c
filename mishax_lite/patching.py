"""`Patch`: edits of a module's functions, installed and uninstalled while the program runs.

The module's source is rewritten as a syntax tree and compiled; then the functions that are alive get the new code. The
functions stay the same objects, so everything that holds them (aliases, subclasses, wrappers, tables) has the patch.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mishax_lite import sources
from mishax_lite.codes import Names
from mishax_lite.installing import change, plan, raise_failures
from mishax_lite.members import lines_of
from mishax_lite.primitive import tap
from mishax_lite.report import Report
from mishax_lite.rewriting import Rewrite
from mishax_lite.states import State, state_of, states_of

# One lock for all patches: installing is rare, and two patches of one module must see each other.
_lock = threading.RLock()


class Patch:
    """Edits of the functions of one module.

    Args:
        module: the module, or its dotted name; also a script (`"__main__"`) or a notebook.
        edits: for each member the edits of its body, in order. A member is a function (`"f"`), a method or property
            (`"Block.__call__"`), a function in a function (`"outer.inner"`), or a lambda by the name that it is
            assigned to (`f = jax.jit(lambda x: x)` is `"f"`, others are `"<lambda>"`). In a notebook, all members of a
            patch must be of one cell.
        names: extra names that the inserted code may use, beside the module's names and `tap`. The module itself gets
            no new name. A variable that the inserted code binds itself wins over an extra name.

    Raises:
        ValueError: for arguments of the wrong kind. `check` and `install` say whether the edits fit the source.

    Example:
        >>> import colorsys
        >>> rewrite = mishax_lite.Rewrite("return (y, $i, $q)", "return (tap('luma', y), $i, $q)")
        >>> with mishax_lite.Patch(colorsys, {"rgb_to_yiq": [rewrite]}):
        ...     out, values = mishax_lite.capture(colorsys.rgb_to_yiq, "luma")(*jnp.eye(3))
        >>> print(values["luma"])
        [0.3  0.59 0.11]

    Several patches of one member compose in order of installation and can be uninstalled in any order. Installing and
    uninstalling clears JAX's caches, so that functions traced before are traced anew, unless the module or its package
    is still being imported. Programs compiled ahead of time (`.lower().compile()`, `jax.export`) do not change.

    Loading the module again (`importlib.reload`, IPython's autoreload, a cell that runs again) takes all its patches
    off; `install` puts this one into the new functions. Old functions that others still hold change when the next patch
    of the module goes in or out: they get the patch too if the new source has the same function, else their own code.

    Functions that cloudpickle sends by value keep their patches; code with extra names cannot be marshalled.

    Threads may install and uninstall at any time, but the change is not one instant for all of them: a running call
    goes on in the old code, and a thread that traces meanwhile may see some members old and some new.
    """

    def __init__(
        self,
        module: types.ModuleType | str,
        edits: Mapping[str, Sequence[Rewrite]],
        names: Mapping[str, Any] | None = None,
    ):
        if isinstance(module, str):
            module = importlib.import_module(module)
        if not isinstance(module, types.ModuleType):
            raise ValueError(f"Patch: expected a module or its name, got {type(module).__name__}")
        self.module = module
        self.edits = {}
        for member, rewrites in dict(edits).items():
            rewrites = [rewrites] if isinstance(rewrites, Rewrite) else list(rewrites)
            for rewrite in rewrites:
                if not isinstance(rewrite, Rewrite):
                    kind = type(rewrite).__name__
                    raise ValueError(f"Patch: the edits of {member!r} must be Rewrites, got {kind}: {rewrite!r:.80}")
            self.edits[member] = tuple(rewrites)
        for name in names or {}:
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
                raise ValueError(
                    f"Patch: an extra name must be an identifier that does not begin with __; got {name!r}"
                )
        self.names = Names({"tap": tap, **(names or {})})
        self._entered = 0
        self._kept = False

    def __repr__(self) -> str:
        return f"Patch({self.module.__name__}, {list(self.edits)})"

    @property
    def installed(self) -> bool:
        """Whether the edits are in the functions that the module has now; a reload takes them off."""
        with _lock:
            return any(self in state.installed for state in states_of(self.module))

    def check(self) -> Report:
        """Returns for every edit whether it fits the source with the patches installed now, and changes nothing.

        Example:
            >>> rewrite = mishax_lite.Rewrite("return (y, $i, $q)", "return (tap('luma', y), $i, $q)")
            >>> mishax_lite.Patch("colorsys", {"rgb_to_yiq": [rewrite]}).check().ok
            True
        """
        with _lock:
            state = self._state()
            patches = state.installed if self in state.installed else [*state.installed, self]
            return Report(tuple(f for patch, f in plan(state, patches).findings if patch is self))

    def install(self) -> None:
        """Installs the edits, all or none; does nothing if they are installed.

        Raises:
            PatchError: a ValueError with the report of `check`, if any edit is stale, ambiguous or impossible.
        """
        with _lock:
            self._put_in()
            self._kept = True

    def uninstall(self) -> None:
        """Uninstalls the edits and leaves those of other patches; does nothing if they are not installed.

        Raises:
            PatchError: if an edit of another patch fits only with this one in place.
        """
        with _lock:
            self._take_out()
            self._kept, self._entered = False, 0

    def __enter__(self) -> Patch:
        with _lock:
            if self._put_in() and not self._entered:
                self._kept = False  # a reload has undone `install`
            self._entered += 1
        return self

    def __exit__(self, *exception: object) -> None:
        with _lock:
            self._entered = max(0, self._entered - 1)
            if not self._entered and not self._kept:
                self._take_out()

    def diff(self) -> str:
        """Returns the patch's changes of the module's source, on top of the other patches, as a unified diff.

        Raises:
            PatchError: if the patch does not fit.
        """
        with _lock:
            state = self._state()
            others = [patch for patch in state.installed if patch is not self]
            old, new = plan(state, others).lines, plan(state, [*others, self])
            raise_failures(self, new, "cannot be shown")
            return _diff(state, old, new.lines)

    def _put_in(self) -> bool:
        """Installs the patch and returns True, or returns False if it is installed already."""
        if _collected is not None:
            _collected.append(self)
            return False
        state = self._state()
        if self in state.installed:
            return False
        change(state, [*state.installed, self], self, "cannot be installed; nothing was changed")
        return True

    def _take_out(self) -> None:
        for state in states_of(self.module):
            if self in state.installed or state.left:
                others = [patch for patch in state.installed if patch is not self]
                change(state, others, self, "cannot be taken out: another patch was written on top of it")

    def _state(self) -> State:
        return state_of(self.module, self.edits)


def check_together(patches: Sequence[Patch]) -> Report:
    """Returns the report of several patches in this order, whatever is installed now, and changes nothing."""
    with _lock:
        findings = []
        for state, group in _by_state(patches):
            findings += [finding for _, finding in plan(state, group).findings]
        return Report(tuple(dict.fromkeys(findings)))


def diff_together(patches: Sequence[Patch], member: str | None = None) -> str:
    """Returns the changes of several patches in the sources of their modules as a unified diff.

    Args:
        patches: the patches, in order.
        member: the member whose changes are shown; None for all.
    """
    with _lock:
        diffs = []
        for state, group in _by_state(patches):
            lines = plan(state, group).lines
            old = sources.split_lines(state.source.text, keepends=True)
            if member is not None:
                kept = set(lines_of(sources.parse(state.source), member))
                lines = [new if k in kept else line for k, (line, new) in enumerate(zip(old, lines, strict=True), 1)]
            diffs.append(_diff(state, old, lines))
        return "".join(diffs)


@contextlib.contextmanager
def collecting() -> Iterator[list[Patch]]:
    """Opens a context in which patches do not install themselves but join a list.

    A module that installs its patches when it is imported can so be checked as a whole. It is not for several threads.
    """
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


_collected: list[Patch] | None = None


def _by_state(patches: Sequence[Patch]) -> list[tuple[State, list[Patch]]]:
    groups: dict[int, tuple[State, list[Patch]]] = {}
    for patch in patches:
        state = state_of(patch.module, patch.edits)
        groups.setdefault(id(state), (state, []))[1].append(patch)
    return list(groups.values())


def _diff(state: State, old: list[str], new: list[str]) -> str:
    return "".join(difflib.unified_diff(old, new, state.source.filename, f"{state.source.filename} (patched)"))
