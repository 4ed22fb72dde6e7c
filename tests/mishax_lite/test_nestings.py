"""All nestings of jit, scan, while, cond, remat, vmap, custom rules and shard_map around a tapped function.

Names, shapes, values and derivatives against the unrolled program. A nesting is skipped only where JAX itself refuses
the same program without taps; the reason is printed.
"""

import pytest

from tests.mishax_lite.fuzz.cases import Skip
from tests.mishax_lite.fuzz.checks import check
from tests.mishax_lite.fuzz.failing import fail, reset_now_and_then  # noqa: F401
from tests.mishax_lite.fuzz.nestings import nest, nestings


def compare(nesting) -> None:
    program = nest(nesting)
    try:
        failures = check(program)
    except Skip as reason:
        pytest.skip(f"JAX without hooks: {reason}")
    fail("-".join(nesting), program, 0, failures)


def named(nesting) -> str:
    return "-".join(nesting)


@pytest.mark.parametrize("nesting", nestings(1) + nestings(2), ids=named)
def test_nesting(nesting):
    compare(nesting)


@pytest.mark.fuzz
@pytest.mark.parametrize("nesting", nestings(3), ids=named)
def test_nesting_of_three(nesting):
    compare(nesting)


@pytest.mark.fuzz
@pytest.mark.parametrize("nesting", nestings(4, 2000), ids=named)
def test_nesting_of_four(nesting):
    compare(nesting)
