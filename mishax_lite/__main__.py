"""Checks patches from a shell or in CI, so that a stale patch shows before anybody needs it.

    python -m mishax_lite check PACKAGE.MODULE            says of every edit of the module's patches whether it fits
    python -m mishax_lite show PACKAGE.MODULE [MEMBER]    shows what the patches change, as a diff

PACKAGE.MODULE is the module that has the patches: those among its attributes, and those that importing it installs.
The exit status is 0 if all edits fit, 1 if an edit is stale, ambiguous or refused, and 2 if nothing can be checked.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mishax_lite.patching import Patch, check_together, collecting, diff_together


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments (of the shell by default) name, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mishax_lite", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="report on every edit; exit status 1 if one does not fit")
    show = commands.add_parser("show", help="print what the patches change, as a diff")
    for command in (check, show):
        command.add_argument("module", metavar="PACKAGE.MODULE", help="the module that has the patches")
    show.add_argument("member", nargs="?", help="one member of a patched module, like Block.__call__")
    options = parser.parse_args(arguments)
    try:
        patches = find_patches(options.module)
    except ImportError as error:
        print(f"mishax_lite: cannot import {options.module!r}: {error}", file=sys.stderr)
        return 2
    if not patches:
        print(f"mishax_lite: {options.module} has no patches: none of its attributes is a Patch", file=sys.stderr)
        return 2
    report = check_together(patches)
    if options.command == "check":
        print(report)
        return 0 if report.ok else 1
    members = sorted({member for patch in patches for member in patch.edits})
    if options.member is not None and options.member not in members:
        print(f"mishax_lite: no patch edits {options.member!r}; they edit: {', '.join(members)}", file=sys.stderr)
        return 2
    print(diff_together(patches, options.member), end="")
    for failure in report.failures:
        print(failure, file=sys.stderr)
    return 0 if report.ok else 1


def find_patches(name: str) -> list[Patch]:
    """Returns the patches among a module's attributes, and those that importing it installs, without installing them.

    Args:
        name: the module's dotted name.
    """
    with collecting() as collected:
        module = importlib.import_module(name)
    patches = [*collected, *_patches_in(vars(module).values())]
    return list({id(patch): patch for patch in patches}.values())


def _patches_in(values: Iterable[Any]) -> list[Patch]:
    patches = []
    for value in values:
        if isinstance(value, Patch):
            patches.append(value)
        elif isinstance(value, (list, tuple, set, frozenset)):
            patches += [item for item in value if isinstance(item, Patch)]
        elif isinstance(value, dict):
            patches += [item for item in value.values() if isinstance(item, Patch)]
    return patches


if __name__ == "__main__":
    sys.exit(main())
