"""What inserted code means: the variables that it binds, what it assigns to, and when it is no program."""

import re

import jax.numpy as jnp
import pytest

from mishax_lite import Patch, PatchError, Rewrite, sites


@pytest.mark.parametrize(
    ("after", "value"),
    [
        ("scale = x * 2\ny = x * scale", 18),
        ("y = [scale + 1 for scale in [x]][0]", 4),
        ("y = [scale for scale in [scale]][0]", 99),  # the first iterable is evaluated outside
        ("y = {scale: t for scale in [x] for t in [scale + 1]}[x]", 4),
        ("y = next(scale for scale in [x] if scale)", 3),
        ("y = {scale + 1 for _ in [x] if (scale := x)}.pop() + scale", 7),  # bound in the function
        ("for scale in [x]:\n    y = scale", 3),
        ("for i, (scale, *rest) in [(0, (x, 1, 2))]:\n    y = scale + rest[1]", 5),
        ("y = (scale := x) + scale", 6),
        ("if (scale := x) > 2:\n    y = scale", 3),
        ("y = (lambda scale: scale + 1)(x)", 4),
        ("y = (lambda scale=scale: scale + 1)()", 100),
        ("y = (lambda *scale, **k: scale[0])(x)", 3),
        ("y = (lambda v: v + scale)(x)", 102),
        ("def g(scale):\n    return scale\ny = g(x) + scale", 102),
        ("def g():\n    return scale + 1\nscale = x\ny = g()", 4),
        ("def g(v=scale):\n    scale = 1\n    return v + scale\ny = g()", 100),
        ("def scale(v):\n    return v + 1\ny = scale(x)", 4),
        ("class scale:\n    v = 5\ny = scale.v", 5),
        ("class C:\n    scale = 5\n    v = scale\n    def m(self):\n        return scale\ny = C.v + C().m()", 104),
        ("from math import floor as scale\ny = scale(x)", 3),
        ("import math as scale\ny = scale.floor(x)", 3),
        ("with open_(x) as scale:\n    y = scale", 3),
        ("try:\n    raise ValueError(x)\nexcept ValueError as scale:\n    y = scale.args[0]", 3),
        ("match x:\n    case scale:\n        y = scale", 3),
        ("match [1, x]:\n    case [_, *scale]:\n        y = scale[0]", 3),
        ("match {'a': 1, 'b': x}:\n    case {'a': 1, **scale}:\n        y = scale['b']", 3),
        ("scale = x\nscale += 1\ny = scale", 4),
        ("scale: int = x\ny = scale", 3),
        ("global scale\ny = scale", 7),
        ("y = scale", 99),
        ("y = x\ny = y + scale", 102),
        ("y = f'{scale}'", "99"),
    ],
)
def test_a_variable_of_the_inserted_code_wins_over_an_extra_name(module, after, value):
    m = module("import contextlib\nscale = 7\nopen_ = contextlib.nullcontext\ndef f(x):\n    y = x\n    return y\n")
    with Patch(m, {"f": [Rewrite("y = x", after)]}, names={"scale": 99}):
        assert m.f(3) == value
    assert m.f(3) == 3 and m.scale == 7


def test_what_after_repeats_of_before_is_its_own_too(module):
    m = module("def f(x):\n    scale = x\n    return scale\n")
    repeated = Rewrite("scale = x", "scale = x\nscale = scale + 1")
    read = Rewrite("scale = x", "scale = x\nscale = [scale][0]")
    for rewrite, value in ((repeated, 4), (read, 3)):
        with Patch(m, {"f": [rewrite]}, names={"scale": 99}):
            assert m.f(3) == value
    with Patch(m, {"f": [Rewrite("$t = x", "$t = x\nother = scale\n$t = other")]}, names={"scale": 99}):
        assert m.f(3) == 99  # it is the function's variable, which an extra name may shadow
    with Patch(m, {"f": [Rewrite("x", "(x := x + 1) + x")]}, names={"x": 99}):
        assert m.f(3) == 8


def test_the_edits_of_a_member_share_their_variables_and_patches_do_not(module):
    m = module("def f(x):\n    y = x\n    def g():\n        return y\n    return g()\n")
    edits = {"f": [Rewrite("return g()", "return g() + scale"), Rewrite("y = x", "scale = 1\ny = x")]}
    with Patch(m, edits, names={"scale": 99}):
        assert m.f(3) == 4
    reader = Patch(m, {"f": [Rewrite("return g()", "return g() + scale")]}, names={"scale": 1000})
    with Patch(m, {"f": [Rewrite("y = x", "scale = 1\ny = x + scale")]}, names={"scale": 99}), reader:
        assert m.f(3) == 1004
    in_g = {"f.g": [Rewrite("return y", "scale = 5\nreturn y + scale")], "f": [Rewrite("g()", "g() + scale")]}
    with Patch(m, in_g, names={"scale": 99}):
        assert m.f(3) == 107


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ("$y = x + 1", "$y = x + 1\n$y = tap('n', $y)", 2),
        ("$y = x + 1", "$y = x + 1\n$y += $y", 4),
        ("$y = $v + 1", "print($y) if False else None\n$y = $v + 1", 2),
        ("$t = x + 1", "for $t in [$t, 5] if False else [1, 5]:\n    pass", 5),
        ("$t = x + 1", "$t: int = x + 1", 2),
        ("$t = x + 1", "($t, other) = (x + 1, 0)\n$t = ($t, other)[0] * 2", 4),
        ("$t = x + 1", "$t = 0\ndel $t\n$t = x + 5", 6),
        ("$t = x + 1", "with open_(x + 5) as $t:\n    $t = $t * 2", 12),
        ("x + $k", "(x := x + $k)", 2),
        ("x", "(x := x + 1)", 3),
    ],
)
def test_what_was_assigned_to_is_read_and_the_other_way_round(module, before, after, value):
    m = module("import contextlib\nopen_ = contextlib.nullcontext\ndef f(x):\n    y = x + 1\n    return y\n")
    patch = Patch(m, {"f": [Rewrite(before, after)]})
    assert patch.check().ok, patch.check()
    with patch:
        assert m.f(1) == value
    assert m.f(1) == 2


@pytest.mark.parametrize(
    ("target", "result"), [("a.b", "a.b"), ("d['k']", "d['k']"), ("(p, *q)", "(p, *q)"), ("[p, [q, r]]", "[p, [q, r]]")]
)
def test_targets_of_every_kind(module, target, result):
    value = {"(": "(1, 2, 3)", "[": "[1, [2, 3]]"}.get(target[0], "1")
    m = module(f"class a: b = 0\nd = {{}}\ndef f():\n    {target} = {value}\n    return {result}\n")
    bare = m.f()
    with Patch(m, {"f": [Rewrite("$t = $v", "$t = $v\nkept = $t\n$t = tap('n', $t)\n$t = kept")]}):
        assert m.f() == bare and sites(lambda: m.f() and 0)


def test_an_earlier_edit_inside_of_a_target_is_kept(module):
    m = module("d = [0]\ndef f(i):\n    d[i.ndim] = 5\n    return d[0]\n")
    first = Patch(m, {"f": [Rewrite("d[i.ndim] = $v", "d[tap('i', i).ndim] = $v")]})
    with first, Patch(m, {"f": [Rewrite("$t = 5", "$t = 5\n$t = $t + 1")]}):
        assert m.f(jnp.float32(0)) == 6 and "i#0" in sites(m.f, 0)


def test_what_cannot_be_assigned_to_is_refused(module):
    m = module("def f(x):\n    y = abs(x + 1)\n    return y\n")
    report = Patch(m, {"f": [Rewrite("y = $v", "$v = y")]}).check()
    assert report.findings[0].status == "refused"
    assert "assigns to 'abs(x + 1)'" in report.findings[0].message


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ("y = x + 1\nbreak", "'break' outside loop"),
        ("y = x + 1\ncontinue", "'continue' not properly in loop"),
        ("y = await x", "'await' outside async function"),
        ("nonlocal y\ny = x + 1", "nonlocal"),
        ("y = x + 1\nglobal y", "assigned to before global"),
        ("from __future__ import annotations\ny = x + 1", "from __future__"),
        ("y = [(yield x) for _ in x]", "'yield' inside list comprehension"),
        ("x: int = 1\nglobal x", "parameter and global|annotated name 'x'"),
        ("from math import *\ny = x", "import \\* only allowed at module level"),
    ],
)
def test_inserted_code_that_does_not_compile_is_reported_with_all_other_edits(module, after, reason):
    m = module("def f(x):\n    y = x + 1\n    return y\n\ndef g(x):\n    return x\n")
    edits = {
        "f": [Rewrite("x + 9", "x"), Rewrite("y = x + 1", after), Rewrite("return y", "return tap('y', y)")],
        "g": [Rewrite("return x", "return tap('x', x)"), Rewrite("tap($n, x)", "x\nbreak")],
    }
    findings = Patch(m, edits).check().findings
    assert [finding.status for finding in findings] == ["stale", "refused", "ok", "ok", "stale"]
    assert re.search(reason, findings[1].message), findings[1].message
    with pytest.raises(PatchError, match="does not compile the function with it"):
        Patch(m, {"f": edits["f"][1:2]}).install()
    assert m.f(1) == 2


def test_two_edits_that_do_not_compile_are_both_named_and_a_good_patch_goes_on(module):
    m = module("def f(x):\n    y = x + 1\n    return y\n")
    good = Patch(m, {"f": [Rewrite("x + 1", "x + 100")]})
    bad = Patch(m, {"f": [Rewrite("y = $v", "y = $v\nbreak"), Rewrite("return y", "continue\nreturn y")]})
    with good:
        assert [finding.status for finding in bad.check().findings] == ["refused", "refused"]
        with pytest.raises(PatchError):
            bad.install()
        assert m.f(1) == 101 and good.installed and not bad.installed
    assert m.f(1) == 2


LAMBDAS = """
import functools, jax
f = lambda x: x + 1
g: object = lambda x, y=2 + 1: x + y
h = jax.jit(lambda x: x + 1)
k = functools.partial(jax.jit(lambda x, y: x + y), y=1)
first = second = lambda x: x + 1
table = {"a": lambda x: x + 1}
if True:
    chosen = (lambda x: x + 1) if f else (lambda x: x - 1)

class Block:
    act = lambda self, x: x + 1
    other = staticmethod(lambda x: x + 1)

def outer(v):
    inner = lambda x: x + v
    return inner, (lambda x: x + v + 0)

def keyed(values, key=lambda v: v + 1):
    return sorted(values, key=key), key(1)
"""


@pytest.mark.parametrize(
    ("member", "run"),
    [
        ("f", lambda m: m.f(1)),
        ("g", lambda m: m.g(0, 2)),
        ("h", lambda m: m.h(1)),
        ("k", lambda m: m.k(1)),
        ("second", lambda m: m.first(1)),
        ("chosen", lambda m: m.chosen(1)),
        ("Block.act", lambda m: m.Block().act(1)),
        ("Block.other", lambda m: m.Block.other(1)),
        ("outer.inner", lambda m: m.outer(1)[0](1)),
    ],
)
def test_lambdas_are_members_by_the_name_that_they_are_assigned_to(module, member, run):
    m = module(LAMBDAS)
    assert run(m) == 2
    with Patch(m, {member: [Rewrite("$a + $b", "tap('y', $a + $b + 100)")]}):
        assert run(m) == 102
    assert run(m) == 2


def test_other_lambdas_are_members_as_python_names_them(module):
    m = module(LAMBDAS)
    with Patch(m, {"<lambda>": [Rewrite("x + 1", "x + 100")]}):
        assert m.table["a"](1) == 101 and m.f(1) == 2
    with Patch(m, {"outer.<lambda>": [Rewrite("x + v", "x + v + 100")]}):
        assert [function(1) for function in m.outer(1)] == [2, 102]
    with Patch(m, {"<lambda>": [Rewrite("v + 1", "v + 100")]}):  # the default value of a parameter
        assert m.keyed([2, 1]) == ([1, 2], 101)
    finding = Patch(m, {"f": [Rewrite("return x + 1", "return x")]}).check().findings[0]
    assert finding.status == "stale" and "a lambda has one expression and no statements" in finding.message
    finding = Patch(m, {"chosen": [Rewrite("x", "y")]}).check().findings[0]
    assert finding.status == "ambiguous"
