"""Registries: architectures, sparsity terms, objectives, file formats or codecs by name. One file adds one.

A registry knows nothing of its entries.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A mapping of names to types or functions, which a decorator fills.

    Attributes:
        noun: what errors call an entry, such as "architecture".

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("circle")
        ... class Circle:
        ...     pass
        >>> shapes["circle"] is Circle, shapes.name_of(Circle), list(shapes)
        (True, 'circle', ['circle'])
    """

    def __init__(self, noun: str):
        self.noun = noun
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers a type or a function under a name, and returns it unchanged.

        Args:
            name: the name in files, flags and messages.

        Raises:
            ValueError: for a name that another entry has, or an entry that has another name. An entry with the module
                and the qualified name of an old one replaces it, as when a notebook's cell or a module runs again.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a registered {self.noun} is a text, got {name!r}")

        def decorate(entry: T) -> T:
            before = self._entries.get(name)
            if before is not None and _place(before) != _place(entry):
                raise ValueError(
                    f"there is a {self.noun} named {name!r} already, {'.'.join(_place(before))}: choose another name"
                )
            for other, value in self._entries.items():
                if value is entry and other != name:
                    entry_name = getattr(entry, "__qualname__", entry)
                    raise ValueError(f"{entry_name} is the {self.noun} {other!r} already: register it once")
            self._entries[name] = entry
            return entry

        return decorate

    def remove(self, name: str) -> None:
        """Removes an entry, such as one that a test or a notebook has added.

        Raises:
            UnknownName: for a name that no entry has.
        """
        del self._entries[self._checked(name)]

    def name_of(self, entry: T) -> str:
        """Returns the name of an entry.

        Raises:
            ValueError: for an entry that is not registered.
        """
        for name, value in self._entries.items():
            if value is entry:
                return name
        raise ValueError(
            f"{getattr(entry, '__qualname__', entry)} is no registered {self.noun}: give it a name with the decorator "
            "`register(name)` of its registry"
        )

    def __getitem__(self, name: str) -> T:
        """Returns the entry of a name.

        Raises:
            UnknownName: a ValueError and a KeyError, for a name that no entry has; it offers near names.
        """
        return self._entries[self._checked(name)]

    def _checked(self, name: str) -> str:
        try:
            self._entries[name]
            return name
        except (KeyError, TypeError):
            near = difflib.get_close_matches(str(name), self._entries, n=3) or list(self._entries) or ["none yet"]
            raise UnknownName(f"no {self.noun} is named {name!r}: did you mean {', '.join(near)}?") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.noun}: {', '.join(self._entries) or 'empty'})"


class UnknownName(ValueError, KeyError):
    """The error for a name that no entry has. As text it is the message alone, which a KeyError would put in quotes."""

    __str__ = ValueError.__str__


def _place(entry) -> tuple[str, str]:
    return getattr(entry, "__module__", ""), getattr(entry, "__qualname__", repr(entry))
