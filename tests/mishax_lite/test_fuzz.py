"""Random programs: hooks on them against the same programs unrolled in plain Python and numpy.

`make fuzz` runs many. `FUZZ_SEEDS=1200:2000 make fuzz` goes on from a seed, `FUZZ_WITHOUT=remat,again` leaves features
out (`programs.FEATURES` lists them). A failure prints its seed, the check, both values, and a small program with it.
"""

import os

import pytest

from tests.mishax_lite.fuzz.cases import Skip
from tests.mishax_lite.fuzz.checks import check
from tests.mishax_lite.fuzz.failing import WITHOUT, fail, reset_now_and_then  # noqa: F401
from tests.mishax_lite.fuzz.programs import generate

SEEDS = range(*map(int, os.environ.get("FUZZ_SEEDS", "0:2000").split(":")))


def compare(seed: int, compiled: bool) -> None:
    program = generate(seed, WITHOUT)
    try:
        failures = check(program, seed, compiled)
    except Skip as reason:
        pytest.skip(f"JAX without hooks: {reason}")
    fail(f"seed {seed}", program, seed, failures)


@pytest.mark.parametrize("seed", range(100))
def test_random_program(seed):
    compare(seed, compiled=seed % 20 == 0)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", SEEDS)
def test_many_random_programs(seed):
    compare(seed, compiled=seed % 5 == 0)
