"""Progress bars, and the words around them: by default only where a person looks at standard error.

A progress is a function of the items to come, and of `total`, `desc` and `initial`. It returns the items, as
`tqdm.tqdm` does. A progress that is a `Telling`, as tqdm is, is also told in words what comes and what the result is. A
`Labelled` result, as a bar of tqdm is, shows the metrics.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from tqdm import tqdm

T = TypeVar("T")
Progress = Callable[..., Iterable]


@runtime_checkable
class Telling(Protocol):
    """A progress that also takes words, such as the class `tqdm`."""

    def write(self, s: str) -> None:
        """Shows a line."""


@runtime_checkable
class Labelled(Protocol):
    """A bar with a text beside it, such as one of tqdm."""

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        """Changes the text, and shows it now or with the next item."""

    def close(self) -> None:
        """Ends the bar after the last item."""


class Bar(tqdm):
    """A bar on standard error that vanishes when it is full, and that does not appear for no items."""

    def __init__(self, items: Iterable | None = None, **about):
        nothing = about.get("total") == about.get("initial", 0)
        usual = {"mininterval": 0.5, "leave": False, "disable": nothing, **_size()}
        # pyrefly: ignore[no-matching-overload]  tqdm's own arguments
        super().__init__(items, **usual | about)

    @classmethod
    def write(cls, s: str, file=None, end: str = "\n", nolock: bool = False) -> None:
        """Writes a line on standard error, above the bar."""
        super().write(s, sys.stderr if file is None else file, end, nolock)


def _size() -> dict:
    """Returns tqdm's arguments for the bar's size. Some terminals in containers claim to have no lines, where tqdm
    would show nothing."""
    try:
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, AttributeError, ValueError):
        return {"dynamic_ncols": True}
    return {"dynamic_ncols": True} if columns and lines else {"ncols": 80, "nrows": 24}


def silent(items: Iterable, **_) -> Iterable:
    """Returns the items and shows nothing."""
    return items


def watched() -> bool:
    """Returns whether a person may be looking: standard error is a terminal, or this is a notebook."""
    try:
        if sys.stderr.isatty():
            return True
    except (AttributeError, ValueError):  # standard error is missing or closed
        return False
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def chosen(progress: Progress | bool | None) -> Progress:
    """Returns the progress of an argument `progress`: None is a bar where a person may be looking, True a bar, False
    none. A function stays as it is.

    Raises:
        ValueError: for another value that cannot be called.

    Example:
        >>> list(chosen(False)([1, 2]))
        [1, 2]
    """
    if callable(progress):
        return progress
    if progress is not None and not isinstance(progress, bool):
        raise ValueError(f"progress is None, True, False, or a function such as tqdm; got {progress!r}")
    return Bar if progress or (progress is None and watched()) else silent


def every(steps: Iterable[T], items: Sequence[T]) -> Iterator[T]:
    """Yields the items that a progress returns, which have to be the items that it was given, in their order.

    Args:
        steps: the items that the progress returned.
        items: the items that it was called with.

    Raises:
        ValueError: where it skips an item, gives another, or ends early: measures would silently be over fewer items.

    Example:
        >>> list(every([1, 2], [1, 2]))
        [1, 2]
    """
    rule = "it has to give every one that it was called with, in their order"
    count = 0
    for item in steps:
        if count >= len(items) or item != items[count]:
            wanted = repr(items[count]) if count < len(items) else "none"
            raise ValueError(f"progress gave {item!r:.60} where {wanted} comes, after {count} of {len(items)}: {rule}")
        count += 1
        yield item
    if count < len(items):
        raise ValueError(f"progress ended after {count} of {len(items)}: {rule}")


def say(progress: Progress, text: str) -> None:
    """Shows a text by a progress that takes words. A terminal that cannot show it does not end the run."""
    if isinstance(progress, Telling):
        with contextlib.suppress(OSError, UnicodeError):
            progress.write(text)
