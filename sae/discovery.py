"""Finds the modules of a package, so that a file which registers something is all that it takes to add it."""

import functools
import importlib
import pkgutil


@functools.cache
def import_all(package: str) -> None:
    """Imports every module of a package, once.

    Args:
        package: its name, such as `sae.formats`.

    Example:
        >>> import_all("sae.formats")
    """
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
