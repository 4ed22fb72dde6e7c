"""Imports all modules of a package, so that one file which registers itself is enough to add something."""

import functools
import importlib
import pkgutil


@functools.cache
def import_all(package: str) -> None:
    """Imports every module of a package, once.

    Args:
        package: the package's name, such as `sae.formats`.

    Example:
        >>> import_all("sae.formats")
    """
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
