"""Functions that a patch must find and give back wherever they are, and the code that they get."""

import functools
import gc
import pickle
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import pytest

import mishax_lite
from mishax_lite import Patch, Rewrite, capture, sites

cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed: pip install cloudpickle")

SOURCE = """
import functools

def f(x):
    return x + 1

def make(k):
    def inner(x):
        return x + k
    return inner

def decorate(g):
    def wrapper(*args):
        return g(*args)
    return wrapper

@decorate
def hidden(x):
    return x + 1

def stream():
    def local(x):
        return x + 1
    while True:
        yield local(1)

class Block:
    @property
    def value(self):
        return 1 + 1

    @functools.cached_property
    def cached(self):
        return 1 + 1

    def method(self, x):
        return x + 1
"""


@pytest.fixture
def frozen():
    """A function that freezes what the collector knows; the end of the test unfreezes it."""
    yield gc.freeze
    gc.unfreeze()


def plus_100(*members):
    return {member: [Rewrite("$a + $b", "$a + $b + 100")] for member in members}


PLACES = {
    "f": lambda m: m.f(1),
    "make.inner": lambda m: m.make(1)(1),
    "hidden": lambda m: m.hidden(1),
    "stream.local": lambda m: next(m.stream()),
    "Block.value": lambda m: m.Block().value,
    "Block.cached": lambda m: m.Block().cached,
    "Block.method": lambda m: m.Block().method(1),
}


@pytest.mark.parametrize("when", ["before", "between", "both"])
def test_frozen_functions_are_patched_and_given_back(module, frozen, when):
    m = module(SOURCE)
    if when != "between":
        frozen()
    patch = Patch(m, plus_100(*PLACES))
    patch.install()
    assert [run(m) for run in PLACES.values()] == [102] * 7
    if when != "before":
        frozen()
    patch.uninstall()
    assert [run(m) for run in PLACES.values()] == [2] * 7 and not patch.installed


def test_frozen_functions_that_only_other_objects_hold(module, frozen):
    m = module(SOURCE)
    holders = [m.make(1)], {"a": m.make(1)}, functools.partial(m.make(1)), jax.jit(m.make(1)), m.stream()
    local, bound = m.make(1), m.Block().method
    calls = [*(h[0] for h in holders[:1]), holders[1]["a"], *holders[2:4], lambda _: next(holders[4]), local, bound]
    next(holders[4])
    del m.f
    frozen()
    patch = Patch(m, plus_100("make.inner", "stream.local", "Block.method"))
    with patch:
        made_meanwhile = m.make(1)
        assert [int(call(1)) for call in calls] == [102] * 7
        gc.freeze()
    assert [int(call(1)) for call in calls] == [2] * 7 and made_meanwhile(1) == 2


def test_frozen_functions_in_the_variables_of_another_thread(module, frozen):
    m, ready, go, results = module(SOURCE), threading.Event(), threading.Event(), []

    def work():
        closure = m.make(1)
        ready.set()
        go.wait()
        results.append(closure(1))

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    frozen()
    with Patch(m, plus_100("make.inner")):
        go.set()
        thread.join()
    assert results == [102]


def test_a_search_of_frozen_objects_leaves_nothing_behind(module, frozen):
    m = module(SOURCE)
    frozen()
    patch = Patch(m, plus_100("f"))
    with patch:
        pass
    gc.collect()
    before, count = len(gc.get_objects()), gc.get_freeze_count()
    with patch:
        pass
    gc.collect()
    assert len(gc.get_objects()) - before < 100 and gc.get_freeze_count() <= count


def test_a_closure_of_code_that_ran_while_its_patch_was_taken_off_is_no_stranger(module):
    m = module("def outer(k):\n    yield\n    def inner(x):\n        return x + k\n    yield inner\n")
    patch = Patch(m, plus_100("outer.inner"))
    with patch:
        running = m.outer(1)
        next(running)
    inner = next(running)  # of the patched code, which goes on
    assert inner(1) == 102
    with patch:
        assert inner(1) == 102
    assert inner(1) == 2


def test_patched_code_can_be_hashed_whatever_the_extra_names_are(module):
    m = module(SOURCE)
    names = {"array": jnp.ones(3), "table": {"a": [1]}}
    with Patch(m, {"f": [Rewrite("x + 1", "x + array.sum() + table['a'][0]")]}, names=names):
        assert {m.f.__code__: "f"}[m.f.__code__] == "f" and m.f(1) == 5
        lines = {}  # as debuggers and profilers count
        sys.settrace(lambda frame, event, _: lines.update({(frame.f_code, frame.f_lineno): event}))
        m.f(1)
        sys.settrace(None)
        assert (m.f.__code__, 4) in lines


def test_functions_made_by_a_patched_one_are_pickled_by_value(module):
    m = module(SOURCE)
    with Patch(m, {"make.inner": [Rewrite("x + k", "tap('y', x + k) * scale")]}, names={"scale": 3}):
        by_value = cloudpickle.dumps(m.make(1))
    assert m.make(1)(1) == 2
    copy = cloudpickle.loads(by_value)
    assert list(sites(copy, 1.0)) == ["y"] and copy(1) == 6  # a copy is nobody's function: it keeps the patch
    with Patch(m, plus_100("make.inner")):
        assert copy(1) == 6


@pytest.mark.parametrize("member", ["f", "Block.method", "Block.value", "stream.local"])
def test_modules_that_are_pickled_by_value(module, member):
    m = module(SOURCE)
    del m.Block.cached  # Python 3.11 keeps a lock in it
    cloudpickle.register_pickle_by_value(m)
    try:
        names = {"factor": lambda v: v * 10, "array": jnp.arange(3.0)}
        with Patch(m, {member: [Rewrite("$a + 1", "factor($a + 1) + array[1]")]}, names=names):
            text = cloudpickle.dumps(vars(m)[member.split(".")[0]])
    finally:
        cloudpickle.unregister_pickle_by_value(m)
    assert PLACES[member](m) == 2
    thing = cloudpickle.loads(text)
    assert PLACES[member](types.SimpleNamespace(**{member.split(".")[0]: thing})) == 21


def test_a_pickled_function_works_in_another_process(module, tmp_path):
    m = module(SOURCE)
    with Patch(m, {"make.inner": [Rewrite("x + k", "tap('y', x + k) * 3")]}):
        (tmp_path / "function").write_bytes(cloudpickle.dumps(m.make(1)))
    code = (
        "import pickle, sys, mishax_lite\n"
        "inner = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(inner(1), *mishax_lite.sites(inner, 1.0))"
    )
    folder = mishax_lite.__path__[0].removesuffix("mishax_lite")
    command = [sys.executable, "-c", code, str(tmp_path / "function")]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert process.stdout.split() == ["6", "y"], process.stderr


def test_pickling_by_reference_is_as_before(module):
    m = module(SOURCE)
    with Patch(m, {"f": [Rewrite("x + 1", "tap('y', x + 1)")]}):
        text = pickle.dumps(m.f)
        assert pickle.loads(text) is m.f
        assert list(capture(pickle.loads(text), "y")(1.0)[1]) == ["y"]
