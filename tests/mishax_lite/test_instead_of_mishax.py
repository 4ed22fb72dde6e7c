"""The cases in which Mishax breaks, one by one, as a table of its behaviour has them: here each of them holds."""

import ast
import inspect
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import Patch, PatchError, Rewrite, capture, edit, sites, tap


def test_a_second_patch_on_the_same_class_keeps_the_first(module):
    m = module("class A:\n    def f(self, x):\n        return (x + 1) * 2\n")
    with Patch(m, {"A.f": [Rewrite("x + 1", "tap('one', x + 1)")]}):
        with Patch(m, {"A.f": [Rewrite("(x + 1) * 2", "tap('two', (x + 1) * 2)")]}):
            assert list(sites(m.A().f, 1.0)) == ["one", "two"]
        assert list(sites(m.A().f, 1.0)) == ["one"]


def test_subclasses_aliases_and_tables_have_the_patch(module):
    home = module(
        """
        class A:
            def f(self, x):
                return x + 1
        class Sub(A):
            pass
        def g(x):
            return x + 1
        table = {"a": A, "g": g, "method": A.f}
        """
    )
    alias = module(f"from {home.__name__} import A, g, table\nclass Other(A):\n    kept = staticmethod(g)\n")
    callers = {
        "subclass": home.Sub().f,
        "subclass elsewhere": alias.Other().f,
        "alias": alias.A().f,
        "function": alias.g,
        "table": alias.table["g"],
        "table of methods": lambda x: alias.table["method"](None, x),
        "class attribute": alias.Other.kept,
    }
    edits = {"A.f": [Rewrite("x + 1", "x + 2")], "g": [Rewrite("x + 1", "x + 2")]}
    with Patch(home, edits):
        assert {name: call(0) for name, call in callers.items()} == dict.fromkeys(callers, 2)
    assert {name: call(0) for name, call in callers.items()} == dict.fromkeys(callers, 1)


def test_old_objects_are_instances_of_the_patched_class(module):
    m = module("class A:\n    def f(self):\n        return 1\n")
    old, cls = m.A(), m.A
    with Patch(m, {"A.f": [Rewrite("1", "2")]}):
        assert m.A is cls and isinstance(old, m.A) and old.f() == 2


def test_patched_code_writes_the_real_globals(module):
    m = module("count = 0\n\ndef f():\n    global count\n    count = count + 1\n    return count\n")
    with Patch(m, {"f": [Rewrite("count + 1", "count + 10")]}):
        assert m.f() == 10 and m.count == 10
    assert m.f() == 11 and m.count == 11


def test_future_annotations_are_kept(module):
    m = module(
        """
        from __future__ import annotations

        def f(x: Unknown) -> AlsoUnknown:
            def inner(y: Undefined = 1) -> Undefined:
                return x + y
            return inner()
        """
    )
    with Patch(m, {"f": [Rewrite("x + y", "x + 2 * y")]}):
        assert m.f(1) == 3
        assert m.f.__annotations__ == {"x": "Unknown", "return": "AlsoUnknown"}


def test_string_constants_that_look_like_code_stay(module):
    text = ast.dump(ast.parse("x + 1", mode="eval").body)
    m = module(f"def f(x):\n    note = {text!r}\n    other = 'x + 1'\n    return x + 1, note, other\n")
    with Patch(m, {"f": [Rewrite("x + 1", "x + 2")]}):
        assert m.f(0) == (2, text, "x + 1")


def test_closures_methods_as_keys_and_lists_of_any_length(module):
    m = module(
        """
        class A:
            def f(self, x):
                return x + 1

        def outer(y):
            def inner(x):
                return x + y
            return inner
        """
    )
    closure = m.outer(10)
    three = [Rewrite("x + 1", "x + 2"), Rewrite("x + 2", "x + 3"), Rewrite("x + 3", "x + 4")]
    with Patch(m, {"A.f": three, "outer.inner": [Rewrite("x + y", "x - y")]}):
        assert m.A().f(0) == 4 and closure(0) == -10 and m.outer(1)(0) == -1
    assert m.A().f(0) == 1 and closure(0) == 10
    with pytest.raises(ValueError, match="is a class; name one of its methods"):
        Patch(m, {"A": [Rewrite("x + 1", "x")]}).install()


BROKEN = """
def f(x):
    # a comment
    y = (
        x +
        1
    )
    z = y * 2
    raise KeyError(z)  # the line of the error


def after(x):
    return x
"""


def test_tracebacks_name_the_original_file_and_lines(module):
    m = module(BROKEN)
    line = 1 + BROKEN.splitlines().index("    raise KeyError(z)  # the line of the error")
    edits = [
        Rewrite("x + 1", "check(x + 1)"),
        Rewrite("z = y * 2", "z = y * 2\nz = check(z)\nif z:\n    z = z + 0"),
    ]
    calls = []

    def check(value):
        calls.append(value)
        if value == 13:
            raise ZeroDivisionError
        return value

    with Patch(m, {"f": edits}, names={"check": check}):
        with pytest.raises(KeyError) as caught:
            m.f(1)
        frame = traceback.extract_tb(caught.tb)[-1]
        assert (frame.filename, frame.lineno, frame.line) == (
            m.__file__,
            line,
            "raise KeyError(z)  # the line of the error",
        )
        with pytest.raises(ZeroDivisionError) as caught:
            m.f(12)
        frame = traceback.extract_tb(caught.tb)[1]
        assert (frame.filename, frame.lineno) == (m.__file__, 5) and "check(x + 1" in frame.line
        source = inspect.getsource(m.f)
        assert "check(x + 1\n" in source and "z = check(z)" in source and "raise KeyError(z)" in source
        assert inspect.getsource(m.after) == "def after(x):\n    return x\n"
        collected = m.f
        del caught
    assert inspect.getsource(collected) == BROKEN[1:].split("\n\n\n")[0] + "\n"
    assert calls == [2, 4, 13]


def test_code_already_traced_under_jit_gets_the_patch(module):
    m = module("import jax\n\nf = jax.jit(lambda x: g(x))\n\ndef g(x):\n    return x + 1\n")
    assert m.f(1.0) == 2
    with Patch(m, {"g": [Rewrite("x + 1", "x + 2")]}):
        assert m.f(1.0) == 3
    assert m.f(1.0) == 2


def test_cache_hits_of_jit_checkpoint_and_scan_yield_every_time():
    inner = jax.jit(lambda x: tap("jit", x + 1))
    block = jax.checkpoint(lambda x: tap("remat", x + 1))

    def f(x):
        return lax.scan(lambda c, _: (tap("scan", c + 1), None), block(inner(x)), None, length=2)[0]

    for value in (1.0, 2.0):
        values = capture(f, "*")(jnp.float32(value))[1]
        np.testing.assert_allclose(values["scan"], [value + 3, value + 4])
        assert values["jit"] == value + 1 and values["remat"] == value + 2
    for amount in (10, 20):  # not the first edit again
        add = lambda v, s: v + amount  # noqa: B023, E731
        assert edit(f, {"jit": add, "remat": add, "scan": add})(0.0) == 4 + 4 * amount


def test_uninstall_restores_the_code_objects_themselves(module):
    m = module("def f(x):\n    return x + 1\n")
    function, code = m.f, m.f.__code__
    patch = Patch(m, {"f": [Rewrite("x + 1", "x + 2")]})
    patch.install()
    patch.uninstall()
    assert m.f is function and m.f.__code__ is code


def test_stale_edits_are_found_all_at_once_before_anything_changes(module):
    m = module("def f(x):\n    return jnp.tanh(x) + 1\n\ndef g(x):\n    return x\n")
    patch = Patch(m, {"f": [Rewrite("jnp.tanh(y)", "y"), Rewrite("2 + 3", "4")], "g": [Rewrite("x + x", "x")]})
    report = patch.check()
    assert [f.status for f in report.findings] == ["stale", "stale", "stale"]
    assert "+jnp.tanh(x)" in report.findings[0].diff and "line 2" in report.findings[0].diff
    with pytest.raises(PatchError) as caught:
        patch.install()
    assert len(caught.value.report.failures) == 3


def test_scan_over_layers_needs_no_helper_and_has_a_layer_index():
    def f(x, ws):
        return lax.scan(lambda h, w: (tap("resid", jnp.tanh(h @ w)), None), x, ws)[0]

    x, ws = jnp.ones(2), jnp.stack([jnp.eye(2)] * 4)
    assert capture(f, "resid")(x, ws)[1]["resid"].shape == (4, 2)
    only_two = edit(f, {"resid": lambda v, site: jnp.where(site.loop[0] == 2, 0.0, v)})
    values = capture(only_two, "resid")(x, ws)[1]["resid"]
    assert [bool((row == 0).all()) for row in values] == [False, False, True, True]
