"""Kinds that a test registers are there for it alone: all test modules are imported before the first test runs."""

import contextlib
from collections.abc import Iterator

from sae.registry import Registry


@contextlib.contextmanager
def registered(*entries: tuple[Registry, str, type]) -> Iterator[None]:
    """Adds (registry, name, kind), each, and takes them out again."""
    with contextlib.ExitStack() as stack:
        for registry, name, kind in entries:
            registry.register(name)(kind)
            stack.callback(registry.remove, name)
        yield
