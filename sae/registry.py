"""Registries: things that are found by name, of which one file adds one."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name, in the order in which they were registered.

    Args:
        noun: what errors call an entry.

    Example:
        >>> colours = Registry("colour")
        >>> @colours.register("red")
        ... class Red: ...
        >>> colours["red"] is Red, list(colours)
        (True, ['red'])
    """

    def __init__(self, noun: str):
        self.noun = noun
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that adds an entry, and returns it as it is.

        Args:
            name: by which the entry is found.

        Raises:
            ValueError: for a name that is taken, or no name.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a {self.noun} is a text, got {name!r}")
        if name in self._entries:
            raise ValueError(f"there is a {self.noun} {name!r} already: {self._entries[name]!r:.80}")

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def remove(self, name: str) -> T:
        """Takes an entry out, and returns it."""
        entry = self[name]
        del self._entries[name]
        return entry

    def load_all(self, package: str) -> None:
        """Imports every module of a package, each of which may register its entries."""
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")

    def __getitem__(self, name: str) -> T:
        """Raises ValueError, with near names, for an unknown name."""
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(str(name), self._entries, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"unknown {self.noun} {name!r}: {hint}there is {', '.join(self._entries) or 'none'}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str, default=None):
        return self._entries.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.noun}: {', '.join(self._entries)})"
