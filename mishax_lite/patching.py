"""`Patch`: edits of a module's functions, put in and taken off while the program runs.

The module's source is rewritten as a syntax tree and compiled; then the functions that are alive get the new code. The
functions stay the same objects, so whatever holds them (aliases, subclasses, wrappers, tables) has the patch.
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
            assigned to (`f = jax.jit(lambda x: x)` is `"f"`, others are `"<lambda>"`). Of a notebook, all members of a
            patch are of one cell.
        names: what the inserted code may use by name, beside what the module knows, and `tap`. The module gets no new
            name from it. A variable that the inserted code binds itself wins over a name here.

    Raises:
        ValueError: for arguments of the wrong kind. Whether the edits fit the source is said by `check` and `install`.

    Example:
        >>> patch = Patch(flax.linen.attention, {"dot_product_attention_weights": [
        ...     Rewrite("jax.nn.softmax($s)", 'tap("attn_pattern", jax.nn.softmax($s))')]})
        >>> with patch:
        ...     out, values = mishax_lite.capture(model.apply, "attn_pattern")(params, x)

    Several patches of one member compose in order of installation and can be taken off in any order. Installing and
    taking off clears JAX's caches, so that functions traced before are traced anew, unless the module or its package is
    still being imported. What was compiled ahead of time (`.lower().compile()`, `jax.export`) stays as it is.

    Loading the module again (`importlib.reload`, IPython's autoreload, a cell that runs again) takes all its patches
    off; `install` puts this one into the new functions. Functions from before that others still hold get back what they
    had when the next patch of the module goes in or out, or the patch too, where the new source has the same function.

    Functions that go by value, with cloudpickle, keep what was in them; code with extra names cannot be marshalled.

    Threads may install and take off at any time, but it is not one instant for all of them: a call that is running goes
    on in the old code, and a thread that traces meanwhile may see some members old and some new.
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
        """A dry run: for every edit, whether it fits the source as it is with the patches installed now."""
        with _lock:
            state = self._state()
            patches = state.installed if self in state.installed else [*state.installed, self]
            return Report(tuple(f for patch, f in plan(state, patches).findings if patch is self))

    def install(self) -> None:
        """Puts the edits in, all or none; does nothing if they are in.

        Raises:
            PatchError: a ValueError with the report of `check`, if any edit is stale, ambiguous or impossible.
        """
        with _lock:
            self._put_in()
            self._kept = True

    def uninstall(self) -> None:
        """Takes the edits out and leaves those of other patches; does nothing if they are not in.

        Raises:
            PatchError: if an edit of another patch fits only with this one in place.
        """
        with _lock:
            self._take_out()
            self._kept, self._entered = False, 0

    def __enter__(self) -> Patch:
        with _lock:
            if self._put_in() and not self._entered:
                self._kept = False  # a reload had taken off what `install` put in
            self._entered += 1
        return self

    def __exit__(self, *exception: object) -> None:
        with _lock:
            self._entered = max(0, self._entered - 1)
            if not self._entered and not self._kept:
                self._take_out()

    def diff(self) -> str:
        """What the patch changes in the module's source, beside the other patches, as a unified diff.

        Raises:
            PatchError: if it does not fit.
        """
        with _lock:
            state = self._state()
            others = [patch for patch in state.installed if patch is not self]
            old, new = plan(state, others).lines, plan(state, [*others, self])
            raise_failures(self, new, "cannot be shown")
            return _diff(state, old, new.lines)

    def _put_in(self) -> bool:
        """Installs the patch and returns True, or returns False if it is in already."""
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
    """A dry run of several patches in this order, whatever is installed now."""
    with _lock:
        findings = []
        for state, group in _by_state(patches):
            findings += [finding for _, finding in plan(state, group).findings]
        return Report(tuple(dict.fromkeys(findings)))


def diff_together(patches: Sequence[Patch], member: str | None = None) -> str:
    """What several patches change in the sources of their modules, or in one member only, as a unified diff."""
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
    """A context in which patches that are told to install themselves are put into a list instead.

    So that a module that installs its patches when it is imported can be checked as a whole. Not for several threads.
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
