"""How a launch runs: its flags are checked before anything is loaded, and whatever ends it is said in one line.

JAX and `sae` are the launches' own imports, which take seconds; nothing here needs them.
"""

import contextlib
import errno
import logging
import math
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable

from absl import app, flags
from absl import logging as absl_logging

from . import helping, stopping, terminal

# Of flags that are lists or texts, those for which nothing is a value: no text but BOS. Tuples may be empty, too.
MAY_BE_EMPTY = ("prompt",)
_late: dict[str, Callable[[], Iterable[str]]] = {}


def define_late(name: str, define: Callable[[], Iterable[str]]) -> None:
    """Has flags defined once more before the command line is read, for what was registered after the launch's import.

    Args:
      name: of a flag: of the launches that have it.
      define: defines the flags that do not exist yet, and returns the names of all.
    """
    _late[name] = define


def define_registered(module: str) -> None:
    """Defines what `define_late` has asked for, in a launch.

    Args:
      module: of the launch.
    """
    names = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(_called(module))}
    for define in [define for name, define in _late.items() if name in names]:
        for name in set(define()) - names:
            flags.FLAGS.register_key_flag_for_module(_called(module), flags.FLAGS[name])


def run(main: Callable[..., None], check: Callable[[], None] | None = None, arguments: tuple[str, ...] = ()) -> None:
    """Runs a launch: an error of the user's is one line and exit status 1; a flag out of range, exit status 2.

    Args:
      main: the launch.
      check: raises ValueError for flags that contradict one another, from the flags alone. A launch that has it refuses
        flags that its --helpfull does not list, too: another launch's are defined as well, and would do nothing.
      arguments: what the arguments that are no flags are called; `main` is called with them.
    """
    terminal.print_what_it_can()
    if main.__module__ != "__main__":
        _be_main(main.__module__)

    def parse(argv):
        define_registered(main.__module__)
        helping.define(lambda full: _help(main, full))
        try:
            rest = flags.FLAGS(argv)
            if arguments and len(rest) != 1 + len(arguments):
                raise flags.Error(f"{' and '.join(arguments)} are needed, got {' '.join(rest[1:]) or 'neither'}")
            if not arguments and len(rest) > 1:
                raise flags.Error(f"flags only, got {' '.join(rest[1:])!r}")
            check_values()
            if check is not None:
                check_names(main.__module__)
        except flags.Error as error:
            # absl's message may go over several lines; the first has the flag, the last the bound.
            print(f"error: {_without_python(' '.join(str(error).split()))} (--help lists the flags)", file=sys.stderr)
            sys.exit(2)
        return rest

    def guarded(argv):
        # Orbax reports each of its steps at level INFO.
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.getLogger("absl").setLevel(logging.WARNING)
        stopping.watch()
        say_warnings("sae")
        try:
            if check is not None:
                check()
            main(*argv[1:])
            sys.stdout.flush()
        except BaseException as error:
            _end(error)

    app.run(guarded, flags_parser=parse)


def _help(main: Callable[[], None], full: bool) -> str:
    """The help of a launch, whose module may name the flags that it refuses in `REFUSED`."""
    names = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(_called(main.__module__))]
    refused = getattr(sys.modules[main.__module__], "REFUSED", ())
    return helping.text(sys.modules["__main__"].__doc__ or "", names, refused, full)


_CONVERSIONS = {"invalid literal for int": "a whole number", "could not convert string to float": "a number"}


def _without_python(problem: str) -> str:
    """An error of a flag, where absl gives Python's own words, in those of the other flags.

    Example:
      >>> _without_python("flag --steps=abc: invalid literal for int() with base 10: 'abc'")
      "--steps takes a whole number, got 'abc'"
    """
    if match := re.fullmatch(r"flag --([\w.]+)=.*?: (takes .*)", problem):
        return f"--{match[1]} {match[2]}"
    for words, what in _CONVERSIONS.items():
        if match := re.fullmatch(rf"flag --([\w.]+)=(.*): {words}.*", problem):
            return f"--{match[1]} takes {what}, got {match[2]!r}"
    return problem


def say_warnings(package: str) -> None:
    """Has warnings of a package be one sentence on standard error; Python's form names a line of its code, too."""
    usual = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if category.__module__.split(".")[0] != package:
            usual(message, category, filename, lineno, file, line)
            return
        print(f"warning: {message}", file=sys.stderr if file is None else file)

    warnings.showwarning = show


def _end(error: BaseException) -> None:
    """Ends the process as the error wants it; raises it again if it is a fault of the program's."""
    number = stopping.received()
    if isinstance(error, getattr(sys.modules.get("sae"), "Preempted", ())):
        status = 128 + getattr(error, "signal", signal.SIGTERM)
        line = f"stopped: {error}; the same command goes on from there"
    elif isinstance(error, KeyboardInterrupt) or (number is not None and isinstance(error, Exception)):
        # Also if the interrupt came out of somebody's callback as an error of another kind.
        number = signal.SIGINT if number is None else number
        status = 128 + number
        line = f"{stopping.words(number)}: what is finished is kept, and the same command goes on from there"
    elif isinstance(error, BrokenPipeError) and not _has_reader():
        status, line = 128 + signal.SIGPIPE, None  # of `… | head`, which has what it wants
    elif isinstance(error, (ValueError, OSError)):
        text, notes = str(error), " ".join(getattr(error, "__notes__", ()))
        if getattr(error, "errno", None) == errno.ENOSPC:
            text = f"the disk is full ({error}); what is finished is kept, free some and run again to go on"
        status, line = 1, f"error: {' '.join(f'{text} {notes}'.split())}"
    else:
        raise error
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():  # its end tells the other processes
        stopping.ignore()
        print(line or "", file=sys.stderr)
        sys.exit(status)
    stopping.leave(status, line)


def _has_reader() -> bool:
    """Whether somebody reads standard output."""
    import select  # Windows has no poll

    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):  # no descriptor, or none any more
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return True


def check_values() -> None:
    """Raises flags.Error for a flag of ours that has no value or no number: bounds let NaN pass."""
    for name in flags.FLAGS:
        flag, module = flags.FLAGS[name], flags.FLAGS.find_module_defining_flag(name)
        # pyrefly: ignore[missing-attribute]  not None here
        if not flag.present or module.startswith("absl."):
            continue
        values = list(flag.value) if isinstance(flag.value, (list, tuple)) else [flag.value]
        texts = [value.strip() for value in values if isinstance(value, str)]
        if name not in MAY_BE_EMPTY and flag.value != () and (not values or "" in texts):
            what = "is empty" if not any(texts) else f"has an empty entry, got {','.join(texts)!r}"
            raise flags.Error(f"--{name} {what}: give a value, or leave the flag out for its default")
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise flags.Error(f"--{name} takes a finite number, got {flag.value}")


def check_names(module: str) -> None:
    """Raises flags.Error for a flag that has no effect in a launch: those with one are in its --help."""
    listed = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(_called(module))}
    for name in flags.FLAGS:
        defining = flags.FLAGS.find_module_defining_flag(name)
        # pyrefly: ignore[missing-attribute]  not None here
        ours = defining.split(".")[0] == __package__ or defining == _called(module)
        if ours and flags.FLAGS[name].present and name not in listed:
            # pyrefly: ignore[missing-attribute]  not None here
            raise flags.Error(f"--{name} has no effect in this launch; it is a flag of {defining.rsplit('.', 1)[-1]}")


def refuse(names: Iterable[str], why: str) -> None:
    """Raises ValueError for a flag of these that was given: a launch that knows it, and has no use for it this time.

    Args:
      names: of flags.
      why: what a flag stands in vain for.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name} has no effect here: {why}. Leave it out")


def _called(module: str) -> str:
    """absl's name for a module: the main one goes by the program's."""
    return sys.argv[0] if module == "__main__" else module


def _be_main(module: str) -> None:
    """Has absl take a module for the main one, which it looks up for --help: a console command's is a script."""
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    sys.modules["__main__"].__doc__ = as_commands(sys.modules[module].__doc__ or "")


def as_commands(text: str) -> str:
    """A text that names launches as a checkout runs them, for where they are installed.

    Example:
      >>> as_commands("python -m experiments.inspect_store --verify")
      'mishax-inspect-store --verify'
    """
    return re.sub(r"python -m experiments\.(\w+)", lambda found: stopping.COMMAND + found[1].replace("_", "-"), text)
