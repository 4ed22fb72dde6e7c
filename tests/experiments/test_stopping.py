"""Ctrl-C, SIGTERM, SIGHUP and terminals that lack characters. No launch here imports JAX, so they are quick."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import terminal
from experiments.running import as_commands

ROOT = Path(__file__).parents[2]
# What `python -m` does before it runs a module: its package is imported while the program's name is "-m".
BEGIN = "import sys, time; sys.argv = ['-m']; import experiments; from experiments import running, stopping"


def start(script: str, before: tuple[str, ...] = (), **about) -> subprocess.Popen:
    command = [*before, sys.executable, "-u", "-c", f"{BEGIN}\n{script}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    return subprocess.Popen(command, cwd=ROOT, **{**pipes, **about})


def stopped(script: str, *signals: signal.Signals, **about) -> tuple[int, str]:
    """The exit status and what a launch prints to standard error, sent some signals once it says that it is ready."""
    process = start(script, **about)
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


SLEEPS = """
def main():
    try:
        print("ready")
        time.sleep(60)
    finally:
        print("closed in order", file=sys.stderr)
running.run(main)
"""


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGHUP, "stopped by SIGHUP")],
)
def test_a_signal_ends_a_launch_in_order_and_with_one_line(number, words):
    line = f"{words}: what is finished is kept, and the same command goes on from there\n"
    assert stopped(SLEEPS, number) == (128 + number, "closed in order\n" + line)


def test_a_second_signal_does_not_wait_until_all_is_closed():
    closes = "finally:\n        print('closing'); time.sleep(60)"
    script = f"def main():\n    try:\n        print('ready'); time.sleep(60)\n    {closes}\nrunning.run(main)"
    process = start(script)
    for line, number in (("ready\n", signal.SIGTERM), ("closing\n", signal.SIGINT)):
        assert process.stdout.readline() == line
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.count("\n") == 1 and errors.startswith("stopped by SIGTERM: ")


def test_nohup_keeps_sighup_ignored():
    script = 'def main():\n    print("ready"); time.sleep(0.5); print("finished", file=sys.stderr)\nrunning.run(main)'
    assert stopped(script, signal.SIGHUP, before=("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")) == (0, "finished\n")


def test_ctrl_c_while_jax_is_imported_is_one_line():
    status, errors = stopped('print("ready"); time.sleep(60)', signal.SIGINT)
    assert (status, errors) == (130, "interrupted: nothing was begun\n")


def test_who_imports_the_package_for_another_end_keeps_the_handler():
    script = "import signal as s; a = s.getsignal(s.SIGINT); import experiments; print(a is s.getsignal(s.SIGINT))"
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "True\n", process.stderr


@pytest.mark.parametrize(
    "swallow",
    [
        "    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        raise RuntimeError('callback')",
        "    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        raise ValueError('x') from None",
        "    try:\n        time.sleep(60)\n    except BaseException:\n        pass\n    stopping.check()",
    ],
)
def test_an_interrupt_that_others_turn_into_an_error_is_still_one(swallow):
    status, errors = stopped(f'def main():\n    print("ready")\n{swallow}\nrunning.run(main)', signal.SIGINT)
    assert status == 130 and errors.count("\n") == 1 and errors.startswith("interrupted: ")


def test_a_reader_that_has_gone_ends_a_launch_without_a_word():
    script = "def main():\n    print('x' * 100_000); print('more' * 100_000)\nrunning.run(main)"
    process = start(script)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 128 + signal.SIGPIPE


def test_a_broken_pipe_of_another_kind_is_an_error():
    process = start("def main():\n    raise BrokenPipeError(32, 'the store has hung up')\nrunning.run(main)")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, "error: [Errno 32] the store has hung up\n")


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", "load ... -> a-b caf\\xe9? e x"),
        ("latin-1", "load ... -> a-b caf\\xe9? \xe9 \xd7"),
        ("utf-8", "load … → a–b caf\\xe9字 é ×"),
    ],
)
def test_a_terminal_prints_what_it_can(encoding, printed):
    # The byte 0xe9 in a file's name is a lone surrogate to Python.
    script = "def main():\n    print('load … → a–b caf\\udce9字 é ×'); print('→', file=sys.stderr)\nrunning.run(main)"
    process = start(script, env=os.environ | {"PYTHONIOENCODING": encoding}, encoding=encoding)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, printed + "\n"), errors
    assert errors == ("→\n" if encoding == "utf-8" else "->\n")


def test_nearest_characters():
    assert terminal.nearest("≥ 3 × “λ” naïve ﬁt") == '>= 3 x "lambda" naive fit'


def test_commands_are_named_as_they_are_installed():
    text = "python -m experiments.inspect_store --store_dir=runs/store\npython -m experiments.scope"
    assert as_commands(text) == "mishax-inspect-store --store_dir=runs/store\nmishax-scope"
