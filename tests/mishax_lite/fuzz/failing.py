"""How a disagreement is told, and what the tests of programs share."""

from __future__ import annotations

import os

import jax
import pytest

from tests.mishax_lite.fuzz.cases import Failure
from tests.mishax_lite.fuzz.checks import shrink
from tests.mishax_lite.fuzz.programs import Program
from tests.mishax_lite.fuzz.rendering import render

WITHOUT = frozenset(filter(None, os.environ.get("FUZZ_WITHOUT", "").split(",")))
# How many smaller programs are tried for each disagreement; 0 shows programs as they were generated.
TRIES = int(os.environ.get("FUZZ_SHRINK", "150"))

_runs = 0


@pytest.fixture(autouse=True)
def reset_now_and_then():
    """JAX keeps what it traced and compiled: some hundred programs would fill the memory."""
    global _runs
    yield
    _runs += 1
    if _runs % 40 == 0:
        jax.clear_caches()


def fail(label: str, program: Program, seed: int, failures: list[Failure]) -> None:
    """Fails the test if there are failures, with a small program for the first of each kind."""
    if not failures:
        return
    lines = [f"{label}: {len(failures)} of its checks differ"]
    lines += [f"({label}, {f.check!r}, got {f.got}, wanted {f.wanted})" for f in failures]
    small, failure = shrink(program, seed, failures[0], TRIES)
    lines += [f"made smaller for {failure.check!r} (got {failure.got}, wanted {failure.wanted}):", render(small)]
    lines += [f"that is {small!r}"]
    pytest.fail("\n".join(lines), pytrace=False)
