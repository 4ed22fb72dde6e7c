"""Progress bars, and the words around them: by default where a person looks at standard error, else nothing.

A progress is called with the items to come, and `total`, `desc` and `initial`, and returns them, as `tqdm.tqdm` does.
Where it is a `Telling`, as tqdm is, it is told in words what is to come and what came out; where what it returns is
`Labelled`, as a bar of tqdm is, that gets the metrics.
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
    """A progress that takes words, as the class `tqdm` does."""

    def write(self, s: str) -> None:
        """Shows a line."""


@runtime_checkable
class Labelled(Protocol):
    """A bar that has a text beside it, as one of tqdm."""

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        """Changes the text, and shows it now or with the next item."""

    def close(self) -> None:
        """Called when nothing more comes."""


class Bar(tqdm):
    """A bar on standard error that is gone when it is full; none where there is nothing to do."""

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
    """Of the bar, for tqdm. Some terminals, in containers, say that they have no lines: tqdm would show nothing."""
    try:
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, AttributeError, ValueError):
        return {"dynamic_ncols": True}
    return {"dynamic_ncols": True} if columns and lines else {"ncols": 80, "nrows": 24}


def silent(items: Iterable, **_) -> Iterable:
    """No progress at all."""
    return items


def watched() -> bool:
    """Whether somebody is looking: standard error is a terminal, or this is a notebook."""
    try:
        if sys.stderr.isatty():
            return True
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def chosen(progress: Progress | bool | None) -> Progress:
    """What an argument `progress` asks for: None a bar where somebody is looking, True a bar, False none.

    Raises:
      ValueError: for anything else that cannot be called.

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
    """Yields what a progress gives back of some items, which has to be each of them in their order.

    Args:
      steps: what the progress returned.
      items: what it was called with.

    Raises:
      ValueError: where it skips one, gives another, or ends early: figures would be over a part, and not say so.

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
    """Tells a progress something in words, if it takes them. A terminal that cannot show them ends no run."""
    if isinstance(progress, Telling):
        with contextlib.suppress(OSError, UnicodeError):
            progress.write(text)
