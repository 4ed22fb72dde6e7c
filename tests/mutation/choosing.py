"""Which mutants are tried, and with which tests."""

import ast
import random
from collections.abc import Callable, Iterable


def sample(
    places: list[tuple[str, int, int]],
    count: int,
    seed: int,
    render: Callable[..., dict],
    equivalent: Iterable[dict] = (),
) -> list[dict]:
    """Returns `count` mutants of as many lines, or one of each line if there are fewer.

    A line with ten mutants is as likely as a line with one. Mutants known to be equivalent are left out.

    Args:
        places: The path, the line and the number, within its file, of each mutant.
        count: The number of mutants.
        seed: What the sample follows from.
        render: Returns a mutant, with "path", "before" and "after", by its path, line and number.
        equivalent: Mutants that are equivalent to the lines that they replace, which are left out.
    """
    left_out = {(each["path"], each["before"], each["after"]) for each in equivalent}
    by_line: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
    for place in sorted(places):
        by_line.setdefault(place[:2], []).append(place)
    generator = random.Random(seed)
    lines = sorted(by_line)
    generator.shuffle(lines)
    mutants: list[dict] = []
    for line in lines:
        if len(mutants) == count:
            break
        for place in generator.sample(by_line[line], len(by_line[line])):
            mutant = render(*place)
            if (mutant["path"], mutant["before"], mutant["after"]) not in left_out:
                mutants.append(mutant)
                break
    return mutants


def enclosing_function(text: str, line: int) -> str | None:
    """Returns the qualified name, as `code.co_qualname`, of the innermost function around a line; None outside of any.

    Example:
        >>> enclosing_function("class A:\\n    def f(self):\\n        def g():\\n            return 1\\n", 4)
        'A.f.<locals>.g'
    """
    name, scope = None, ast.parse(text)
    prefix = ""
    inside = True
    while inside:
        inside = False
        for node in ast.walk(scope):
            if node is scope or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first <= line <= (node.end_lineno or line):
                is_class = isinstance(node, ast.ClassDef)
                name = name if is_class else prefix + node.name
                prefix += node.name + ("." if is_class else ".<locals>.")
                scope, inside = node, True
                break
    return name


def covering(records: list[dict], path: str, function: str | None, limit: int, seconds: float) -> list[dict]:
    """Returns the records of the tests that enter a function (or any function of its file), the fastest first.

    Args:
        records: What tests.mutation.entered wrote: a test, its seconds, its functions.
        path: The file.
        function: Its qualified name; None for any function of the file.
        limit: The greatest number of tests.
        seconds: The tests' joint time; at least one test is returned if any enters the function.
    """
    entering = [
        record
        for record in records
        if any(file == path and function in (None, name) for file, name in record["functions"])
    ]
    chosen, total = [], 0.0
    for record in sorted(entering, key=lambda record: record["seconds"])[:limit]:
        total += record["seconds"]
        if chosen and total > seconds:
            break
        chosen.append(record)
    return chosen
