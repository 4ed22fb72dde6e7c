"""What is compared for one program: names, shapes, values and derivatives, against the program unrolled.

A check that goes wrong gives a `Failure`. The program without taps runs first: a program that JAX itself refuses is
skipped, with JAX's reason.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

from tests.mishax_lite.fuzz.cases import Case, Different, Failure, Skip, X, all_close, close, run_bare
from tests.mishax_lite.fuzz.derivative_checks import COMPILED_DERIVATIVE_CHECKS, DERIVATIVE_CHECKS
from tests.mishax_lite.fuzz.plain_checks import CHECKS, COMPILED_CHECKS
from tests.mishax_lite.fuzz.programs import Program
from tests.mishax_lite.fuzz.rendering import build


def check_without_hooks(case: Case) -> None:
    """The oracle against JAX: the program without taps, and its derivative.

    Raises:
        Skip: JAX refuses the program, or differentiating it.
    """
    bare = build(case.program, taps=False)
    out = run_bare(bare, X)
    close(out, case.oracle(hooks=False).out.value, "without taps: out")
    if case.way:
        result = run_bare(case.derivative(bare), X, "differentiated: ")
        wanted = case.expected_derivative(case.oracle(differentiated=True, hooks=False).out)
        all_close(result, wanted, ("without taps: loss", "without taps: derivative"))


def check(program: Program, seed: int = 0, compiled: bool = False, only: Sequence[str] | None = None) -> list[Failure]:
    """Returns where mishax_lite and the unrolled program differ.

    Args:
        program: what to check.
        seed: chooses the edits.
        compiled: with the checks that compile, or run outside jit.
        only: names of checks; all by default.

    Raises:
        Skip: JAX itself refuses the program.
        Different: the oracle and the program without taps differ, so that the oracle is wrong.
    """
    case = Case(program, seed)
    check_without_hooks(case)
    checks = {**CHECKS, **(DERIVATIVE_CHECKS if case.way else {})}
    if compiled:
        checks |= {**COMPILED_CHECKS, **(COMPILED_DERIVATIVE_CHECKS if case.way else {})}
    failures = []
    for name, function in checks.items():
        if only is not None and name not in only:
            continue
        case.random = random.Random(f"{seed} {name}")
        try:
            function(case)
        except Skip as reason:
            warnings.warn(f"{name}: JAX without hooks: {reason}", stacklevel=1)
        except Different as difference:
            failures.append(Failure(name, difference.got, difference.wanted))
        except Exception as error:
            # JAX puts a note on frames that it hides into errors.
            notes = [n for n in getattr(error, "__notes__", ()) if "removed its internal frames" not in n]
            text = " ".join(" ".join([str(error), *notes]).split())
            failures.append(Failure(name, f"{type(error).__name__}: {text[:300]}", "no error"))
    return failures


def shrink(program: Program, seed: int, failure: Failure, tries: int = 200) -> tuple[Program, Failure]:
    """Makes a program smaller as long as the same check goes wrong in the same manner."""
    from tests.mishax_lite.fuzz.programs import smaller

    compiled = failure.check in {**COMPILED_CHECKS, **COMPILED_DERIVATIVE_CHECKS}
    while tries > 0:
        for candidate in smaller(program):
            tries -= 1
            if tries <= 0:
                break
            try:
                failures = check(candidate, seed, compiled, only=[failure.check])
            except (Skip, Different):
                continue
            same = [f for f in failures if f.kind == failure.kind]
            if same:
                program, failure = candidate, same[0]
                break
        else:
            break
    return program, failure
