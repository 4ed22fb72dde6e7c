"""How a launch runs: it checks its flags before it loads anything, and says in one line whatever ends it.

Nothing here imports JAX or `sae`, which takes seconds; launches do that themselves.
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

# Flags of lists or texts for which nothing is a value: no text but BOS. Tuples may be empty, too.
MAY_BE_EMPTY = ("prompt",)
_late: dict[str, Callable[[], Iterable[str]]] = {}


def define_late(name: str, define: Callable[[], Iterable[str]]) -> None:
    """Defines flags once more before the command line is read, for kinds that are registered after the launch's import.

    Args:
      name: of a flag; it happens in the launches that have it.
      define: defines the flags that are missing, and returns the names of all.
    """
    _late[name] = define


def define_registered(module: str) -> None:
    """Defines the flags of `define_late` in a launch.

    Args:
      module: the launch's module.
    """
    names = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(_called(module))}
    for define in [define for name, define in _late.items() if name in names]:
        for name in set(define()) - names:
            flags.FLAGS.register_key_flag_for_module(_called(module), flags.FLAGS[name])


def run(main: Callable[..., None], check: Callable[[], None] | None = None, arguments: tuple[str, ...] = ()) -> None:
    """Runs a launch. A user's error is one line and exit status 1; a flag out of its range, exit status 2.

    Args:
      main: the function that does the work.
      check: raises ValueError for flags that contradict one another, from the flags alone. A launch with this function
        also refuses flags that its --helpfull does not list: other launches' flags are defined too, and would do
        nothing.
      arguments: the names of the arguments that are no flags; `main` is called with them.
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
            # absl's message may have several lines; the first has the flag, the last the bound.
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
    """Returns the help of a launch. Its module may have `REFUSED`, the names of flags that it refuses, and `RECORDED`,
    the names of flags whose defaults are what the autoencoders record."""
    names = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(_called(main.__module__))]
    refused, recorded = (getattr(sys.modules[main.__module__], name, ()) for name in ("REFUSED", "RECORDED"))
    return helping.text(sys.modules["__main__"].__doc__ or "", names, refused, full, recorded)


_CONVERSIONS = {"invalid literal for int": "a whole number", "could not convert string to float": "a number"}


def _without_python(problem: str) -> str:
    """Returns an error of a flag in the words of the other flags, where absl gives Python's words.

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
    """Prints warnings of a package as one sentence on standard error; Python's form names a line of code, too."""
    usual = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if category.__module__.split(".")[0] != package:
            usual(message, category, filename, lineno, file, line)
            return
        print(f"warning: {message}", file=sys.stderr if file is None else file)

    warnings.showwarning = show


def _end(error: BaseException) -> None:
    """Ends the process with the error's line and status. Raises an error again that is the program's fault."""
    number = stopping.received()
    if isinstance(error, getattr(sys.modules.get("sae"), "Preempted", ())):
        status = 128 + getattr(error, "signal", signal.SIGTERM)
        line = f"stopped: {error}; the same command goes on from there"
    elif isinstance(error, KeyboardInterrupt) or (number is not None and isinstance(error, Exception)):
        # Also where the interrupt came out of a callback as an error of another kind.
        number = signal.SIGINT if number is None else number
        status = 128 + number
        line = f"{stopping.words(number)}: what is finished is kept, and the same command goes on from there"
    elif isinstance(error, BrokenPipeError) and not _has_reader():
        status, line = 128 + signal.SIGPIPE, None  # `… | head` has what it wants
    elif isinstance(error, (ValueError, OSError)):
        text, notes = str(error), " ".join(getattr(error, "__notes__", ()))
        if getattr(error, "errno", None) == errno.ENOSPC:
            text = f"the disk is full ({error}); what is finished is kept: free some and run again to go on"
        status, line = 1, f"error: {' '.join(f'{text} {notes}'.split())}"
    else:
        raise error
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():  # JAX's end tells the other processes
        stopping.ignore()
        print(line or "", file=sys.stderr)
        sys.exit(status)
    stopping.leave(status, line)


def _has_reader() -> bool:
    """Returns whether a process reads standard output."""
    import select  # Windows has no poll

    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):  # without a descriptor, or with a closed one
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return True


def check_values() -> None:
    """Raises flags.Error for a flag of this package with an empty value or no finite number: bounds let NaN pass."""
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
    """Raises flags.Error for a flag that has no effect in a launch: flags with an effect are in its --help."""
    listed = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(_called(module))}
    for name in flags.FLAGS:
        defining = flags.FLAGS.find_module_defining_flag(name)
        # pyrefly: ignore[missing-attribute]  not None here
        ours = defining.split(".")[0] == __package__ or defining == _called(module)
        if ours and flags.FLAGS[name].present and name not in listed:
            # pyrefly: ignore[missing-attribute]  not None here
            raise flags.Error(f"--{name} has no effect in this launch; it is a flag of {defining.rsplit('.', 1)[-1]}")


def refuse(names: Iterable[str], why: str) -> None:
    """Raises ValueError for a flag that was given and has no use in this call of the launch.

    Args:
      names: the names of such flags.
      why: why they have no use.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name} has no effect here: {why}. Leave it out")


def _called(module: str) -> str:
    """Returns absl's name for a module: the main module has the program's name."""
    return sys.argv[0] if module == "__main__" else module


def _be_main(module: str) -> None:
    """Makes absl take a module for the main one, which it looks up for --help: a console command's main is a script."""
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    sys.modules["__main__"].__doc__ = as_commands(sys.modules[module].__doc__ or "")


def as_commands(text: str) -> str:
    """Returns a text with launches named as installed, in place of as in a checkout.

    Example:
      >>> as_commands("python -m experiments.inspect_store --verify")
      'mishax-inspect-store --verify'
    """
    return re.sub(r"python -m experiments\.(\w+)", lambda match: stopping.COMMAND + match[1].replace("_", "-"), text)
