"""What `--help` and `--helpfull` print: the flags that are set often, or all that have an effect.

It knows no flag by itself: the modules that define flags say which are set seldom, and which have a text of their own.
"""

import sys
import textwrap
from collections.abc import Callable, Collection, Iterable

from absl import flags

_seldom: set[str] = set()
_sections: dict[str, tuple[Callable[[], str], Callable[[], Collection[str]]]] = {}
WIDTH = 100
# What absl adds to the meaning of flags that may be given several times.
_ADDITIONS = (";\n    repeat this option to specify a list of values",)


def seldom(*names: str) -> None:
    """Leaves flags out of `--help`; `--helpfull` lists them.

    Args:
      *names: of flags.
    """
    _seldom.update(names)


def section(name: str, text: Callable[[], str], covered: Callable[[], Collection[str]]) -> None:
    """Adds a text to the `--helpfull` of every launch with a flag.

    Args:
      name: the name of the flag.
      text: returns the text, when it is printed.
      covered: returns the names of flags that the text explains, and that the list therefore leaves out.
    """
    _sections[name] = text, covered


def listed(names: Iterable[str], refused: Collection[str], full: bool) -> list[str]:
    """Returns the names of the flags that a help lists, in order.

    Args:
      names: the names of the launch's flags.
      refused: the names of flags that the launch refuses.
      full: whether it also lists flags that are set seldom.
    """
    return sorted({name for name in names if name not in refused and (full or name not in _seldom)})


def text(doc: str, names: Iterable[str], refused: Collection[str], full: bool, recorded: Collection[str] = ()) -> str:
    """Returns the help of a launch.

    Args:
      doc: what the launch does.
      names: as for `listed`.
      refused: as for `listed`.
      full: as for `listed`.
      recorded: the names of flags whose defaults are what the autoencoders record.
    """
    names = set(names)
    sections = [_sections[name] for name in sorted(names & set(_sections))] if full else []
    covered = {name for _, several in sections for name in several()}
    lines = [doc.strip(), "", "flags:"]
    for name in listed(names - covered, refused, full):
        lines += _entry(flags.FLAGS[name], name in recorded)
    if not full:
        return "\n".join([*lines, "", "--helpfull lists all flags."])
    for section, _ in sections:
        lines += ["", section()]
    return "\n".join(lines)


def _entry(flag: flags.Flag, recorded: bool) -> list[str]:
    """Returns a flag in lines: its name, its meaning, and its default where the meaning has none."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    words = flag.help
    for addition in _ADDITIONS:
        words = words.removesuffix(addition)
    meaning = f"{name}: {words}"  # where values are few, absl puts them before the meaning
    if flag.default is not None and "efault" not in words:
        # pyrefly: ignore[missing-attribute]  not None here
        default = flag.default_as_str.strip("'")
        meaning += f" Default: {default}."
    if recorded:
        meaning, _, default = meaning.partition(" Default: ")
        meaning += f" Default: the record's{f'; without one, {default}' if default else '.'}"
    return textwrap.wrap(meaning, WIDTH, initial_indent="  ", subsequent_indent="      ", break_long_words=False)


class _HelpFlag(flags.BooleanFlag):
    """Prints a help and ends the process with status 0; absl's own flag ends it with 1."""

    def __init__(self, name: str, short_name: str | None, show: Callable[[], str]):
        super().__init__(name, False, "Show help.", short_name=short_name, allow_override=True)
        self._show = show

    def parse(self, argument) -> None:
        if self._parse(argument):
            print(self._show(), flush=True)
            sys.exit(0)


def define(show: Callable[[bool], str]) -> None:
    """Replaces absl's flags `--help`, `-?`, `--helpshort` and `--helpfull`.

    Args:
      show: takes whether the help is the full one, and returns it.
    """
    for name, short_name, full in (("help", "?", False), ("helpshort", None, False), ("helpfull", None, True)):
        flags.DEFINE_flag(_HelpFlag(name, short_name, lambda full=full: show(full)), module_name="absl.app")
