"""The mutants of `make mutation` are a sample of lines, each tried with the tests that enter its function."""

import doctest

from tests.mutation import choosing

TEXT = """X = 1


class A:
    @property
    def f(self):
        def g():
            return lambda: 1

        return g


def h():
    return X
"""


def places(*lines):
    """As many mutants of each line as its number says."""
    return [("a.py", line, 100 * line + i) for line in lines for i in range(line)]


def render(path, line, number):
    return {"path": path, "line": line, "before": "x", "after": str(number)}


def test_each_line_is_as_likely_as_any_other():
    chosen = [choosing.sample(places(1, 9), 1, seed, render)[0]["line"] for seed in range(400)]
    assert 160 < chosen.count(1) < 240  # of the ten mutants one is of line 1


def test_a_sample_follows_from_its_seed_and_has_no_line_twice():
    every = places(*range(1, 30))
    first, second = choosing.sample(every, 20, 7, render), choosing.sample(every[::-1], 20, 7, render)
    assert len({mutant["line"] for mutant in first}) == 20 and first == second
    assert choosing.sample(every, 20, 8, render) != first


def test_mutants_known_to_be_equivalent_are_not_tried():
    equivalent = [{"path": "a.py", "before": "x", "after": after, "reason": "equal"} for after in ("100", "200")]
    chosen = choosing.sample(places(1, 2), 2, 0, render, equivalent)
    assert [mutant["after"] for mutant in chosen] == ["201"]


def test_the_innermost_function_is_found_by_line():
    names = [choosing.enclosing_function(TEXT, line) for line in range(1, 15)]
    g = "A.f.<locals>.g"
    assert names == [None, None, None, None, "A.f", "A.f", g, g, "A.f", "A.f", None, None, "h", "h"]
    assert doctest.testmod(choosing).failed == 0


def test_tests_of_a_function_are_the_fastest_that_enter_it():
    times = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 9.0}
    records = [{"test": name, "seconds": seconds, "functions": [["a.py", "A.f"]]} for name, seconds in times.items()]
    records.append({"test": "e", "seconds": 0.1, "functions": [["a.py", "h"], ["b.py", "A.f"]]})
    tests = [record["test"] for record in choosing.covering(records, "a.py", "A.f", 10, 6)]
    assert tests == ["b", "c", "a"]  # d would end after 15 seconds
    assert [record["test"] for record in choosing.covering(records, "a.py", "A.f", 2, 60)] == ["b", "c"]
    assert [record["test"] for record in choosing.covering(records, "a.py", None, 1, 60)] == ["e"]
    assert [record["test"] for record in choosing.covering(records[3:], "a.py", "A.f", 9, 1)] == ["d"]
