"""The pattern language of Rewrite, and what it does to a tree."""

import ast

import pytest

from mishax_lite import Rewrite, match
from mishax_lite.rewriting import apply

SOURCE = '''
def f(x, y, axis=softmax(0)):
    """softmax(x) in a docstring"""
    s = softmax(x + y, axis=-1, where=None)
    t = softmax( x )   # a comment
    if t:
        s = s * 2
        t = s
        return x[..., 0]
    for k in range(3):
        g(k, *y, **s)
    return f"{softmax(y)}", -1, 1.0, True
'''


def function():
    return ast.parse(SOURCE).body[0]


@pytest.mark.parametrize(
    ("pattern", "lines"),
    [
        ("softmax(x)", [5]),
        ("softmax(\n  (x),\n)", [5]),
        ("softmax(...)", [4, 5, 12]),
        ("softmax(..., axis=-1, **...)", [4]),
        ("softmax(..., axis=-1)", []),
        ("softmax($a + $b, ...)", [4]),
        ("softmax($a)", [5, 12]),
        ("softmax(*$a)", [4, 5, 12]),
        ("softmax($a, **$rest)", [4, 5, 12]),
        ("$a + $a", []),
        ("x[..., 0]", [9]),
        ("x[..., 1]", []),
        ("x[$i]", [9]),
        ("g(k, ...)", [11]),
        ("g(*y, ...)", []),
        ("1", [4, 12]),
        ("1.0", [12]),
        ("True", [12]),
        ("s", [7, 8, 11]),  # values only: not where it is assigned
        ("s = softmax(...)", [4]),
        ("s = ...", [4, 7]),
        ("$x = softmax(...)", [4, 5]),
        ("s = s * 2\nt = s", [7]),
        ("s = s * 2\nreturn ...", []),
        ("s = s * 2\n...\nreturn ...", [7]),
        ("if t:\n  ...", [6]),
        ("for $v in range(...):\n    $body", [10]),
        ("'softmax(x) in a docstring'", [3]),
    ],
)
def test_find(pattern, lines):
    found = match.find(match.parse(pattern, "before"), function())
    assert [m.nodes[0].lineno for m in found] == lines


def test_defaults_and_decorators_are_no_part_of_the_body():
    assert match.find(match.parse("softmax(0)", "before"), function()) == []


def rewritten(before, after, names=(), count=1):
    tree = ast.parse(SOURCE)
    rewrite = Rewrite(before, after, count=count)
    for found in match.find(rewrite.patterns()[0], tree.body[0]):
        apply(rewrite, tree, found, 0, names)
    return ast.unparse(tree)


def test_wildcards_carry_over():
    text = rewritten("softmax($a + $b, ...)", "softmax($b - $a, extra, ..., last=1)")
    assert "softmax(y - x, extra, axis=-1, where=None, last=1)" in text
    assert "t = tap('t', softmax(x))" in rewritten("softmax(x)", "tap('t', softmax(x))")
    text = rewritten("s = s * 2\n...\nreturn $r", "before()\ns = s * 2\n...\nreturn tap('r', $r)")
    assert "before()\n        s = s * 2\n        t = s\n        return tap('r', x[..., 0])" in text
    text = rewritten("for $v in range(...):\n    $body", "for $v in range(...):\n    first()\n    $body\n    $body")
    assert "for k in range(3):\n        first()\n        g(k, *y, **s)\n        g(k, *y, **s)" in text
    assert "softmax($" not in rewritten("softmax($x)", "'costs $5', $x", count=2)
    assert "g(s, k, *y, **s)" in rewritten("g($first, **$rest)", "g(s, $first, **$rest)")


def test_dollars_in_strings_and_comments_are_no_wildcards():
    assert match.find(match.parse("'$x'  # $y", "before"), function()) == []
    assert not match.parse('f(\'$x\', """$z""")  # $y', "before").wildcards()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("f(", "g"), "before.*no Python"),
        (("f(a=1, ...)", "g"), r"before.*\*\*\.\.\."),
        (("f", "g("), "after.*no Python"),
        (("", "g"), "before.*empty"),
        (("f($x)", "g($y)"), r"after.*\$y, which `before` lacks"),
        (("f(x)", "g(...)"), r"after.*\.\.\., which `before` lacks"),
        (("...\nx = 1", "x = 2"), "begin or end with a wildcard"),
        ((3, "g"), "before must be source text"),
    ],
)
def test_bad_rewrites_are_refused_when_made(arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Rewrite(*arguments)
    with pytest.raises(ValueError, match="count"):
        Rewrite("f", "g", count=0)


def test_a_wildcard_of_many_arguments_fits_no_single_place():
    with pytest.raises(ValueError, match="stands for 2 arguments"):
        rewritten("softmax($x, **$all)", "softmax($x, $all + 1)")
