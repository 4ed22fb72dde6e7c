"""What can be patched, and how patches live."""

import asyncio
import functools
import inspect
import threading

import jax
import jax.numpy as jnp
import pytest

from mishax_lite import Patch, PatchError, Rewrite, capture, sites, tap

TARGETS = """
import functools

def decorated(f):
    @functools.wraps(f)
    def wrapper(*args):
        return f(*args)
    return wrapper

def plain(x, scale=2):
    return x * scale

@decorated
@decorated
def wrapped(x):
    return x * 2

def generator(n):
    for k in range(n):
        yield k * 2

async def coroutine(x):
    return x * 2

async def asynchronous(n):
    for k in range(n):
        yield k * 2

def outer(y):
    def inner(x):
        return x * 2 + y
    return inner

made_already = outer(10)
double = lambda x: [v * 2 for v in x]

if len("x") == 2:
    def chosen(x):
        return x * 2
else:
    def chosen(x):
        return x * 2 + 1

class Base:
    factor = 2

    def method(self, x):
        return x * 2

    @property
    def value(self):
        return self.factor * 2

    @value.setter
    def value(self, new):
        self.factor = new

    @staticmethod
    def static(x):
        return x * 2

    @classmethod
    def of_class(cls, x):
        return x * 2

    @functools.cached_property
    def cached(self):
        return self.factor * 2

    def __private(self, x):
        return x * 2

    def calls_private(self, x):
        return self.__private(x)

class Derived(Base):
    def method(self, x):
        return super().method(x) * 2

table = {"method": Base.method, "plain": plain, "class": Base}
"""


async def collect(stream):
    return [item async for item in stream]


@pytest.mark.parametrize(
    ("member", "run", "before", "after"),
    [
        ("plain", lambda m: m.plain(1), 2, 3),
        ("wrapped", lambda m: m.wrapped(1), 2, 3),
        ("generator", lambda m: list(m.generator(2)), [0, 2], [0, 3]),
        ("coroutine", lambda m: asyncio.run(m.coroutine(1)), 2, 3),
        ("asynchronous", lambda m: asyncio.run(collect(m.asynchronous(2))), [0, 2], [0, 3]),
        ("outer.inner", lambda m: (m.outer(5)(1), m.made_already(1)), (7, 12), (8, 13)),
        ("outer", lambda m: (m.outer(5)(1), m.made_already(1)), (7, 12), (8, 13)),
        ("chosen", lambda m: m.chosen(1), 3, 4),
        ("Base.method", lambda m: (m.Base().method(1), m.Derived().method(1)), (2, 4), (3, 6)),
        ("Derived.method", lambda m: m.Derived().method(1), 4, 6),
        ("Base.value", lambda m: m.Base().value, 4, 6),
        ("Base.static", lambda m: (m.Base.static(1), m.Derived().static(1)), (2, 2), (3, 3)),
        ("Base.of_class", lambda m: m.Derived.of_class(1), 2, 3),
        ("Base.cached", lambda m: m.Base().cached, 4, 6),
        ("Base.__private", lambda m: m.Derived().calls_private(1), 2, 3),
    ],
)
def test_targets(module, member, run, before, after):
    m = module(TARGETS)
    function = inspect.unwrap(m.plain)
    code = function.__code__
    scale = "scale" if member == "plain" else "2"
    patch = Patch(m, {member: [Rewrite(f"$x * {scale}", "$x * (THREE + 0)")]}, names={"THREE": 3})
    assert run(m) == before
    with patch:
        assert run(m) == after
        assert "THREE" not in vars(m) and "tap" not in vars(m)
    assert run(m) == before
    assert function.__code__ is code


def test_defaults_annotations_and_code_objects_come_back_exactly(module):
    m = module(TARGETS)
    codes = {name: f.__code__ for name, f in vars(m).items() if inspect.isfunction(f)}
    inner = m.made_already.__code__
    patch = Patch(m, {"plain": [Rewrite("x * scale", "tap('y', x * scale)")], "outer.inner": [Rewrite("y", "y + 1")]})
    patch.install()
    assert m.plain.__defaults__ == (2,) and m.plain.__code__ is not codes["plain"]
    made_meanwhile = m.outer(1)
    patch.uninstall()
    assert {name: f.__code__ for name, f in vars(m).items() if inspect.isfunction(f)} == codes
    assert all(vars(m)[name].__code__ is code for name, code in codes.items())
    assert m.made_already.__code__ is inner and made_meanwhile.__code__ is inner
    assert made_meanwhile(1) == 3


def test_extra_names_may_shadow_and_do_not_leak(module):
    m = module("tap = 'mine'\ndef f(x, helper=1):\n    return x, tap, helper\n")
    with Patch(m, {"f": [Rewrite("x, $a, $b", "helper(x), $a, $b")]}, names={"helper": lambda x: x + 1}):
        assert m.f(1) == (2, "mine", 1)
    with pytest.raises(ValueError, match="identifier"):
        Patch(m, {}, names={"not a name": 1})


def test_statements_closures_and_taps(module):
    m = module(
        """
        import jax.numpy as jnp

        def model(x):
            hidden = jnp.sin(x)
            for _ in range(2):
                hidden = hidden * 2
            return hidden
        """
    )
    patch = Patch(
        m,
        {
            "model": [
                Rewrite("hidden = jnp.sin(x)", "hidden = jnp.sin(x)\nif x.ndim:\n    hidden = tap('sin', hidden)"),
                Rewrite("hidden = hidden * 2", "hidden = tap('twice', hidden * 2)"),
            ]
        },
    )
    with patch:
        assert list(sites(m.model, jnp.ones(2))) == ["sin", "twice#0", "twice#1"]
    assert sites(m.model, jnp.ones(2)) == {}


@pytest.mark.parametrize("order", ["first", "second"])
def test_patches_of_one_member_compose_and_leave_in_any_order(module, order):
    m = module("def f(x, y):\n    return abs(x + y)\n")
    inner = Patch(m, {"f": [Rewrite("x + y", "tap('sum', x + y)")]})
    outer = Patch(m, {"f": [Rewrite("abs($v)", "tap('abs', abs($v))")]})
    whole = Patch(m, {"f": [Rewrite("abs(x + y)", "note(abs(x + y))")]}, names={"note": lambda v: v})
    inner.install()
    outer.install()
    whole.install()
    x = jnp.float32(-3.0)
    assert list(sites(m.f, x, x)) == ["sum", "abs"]
    for patch, left in {"first": [(inner, ["abs"]), (outer, [])], "second": [(outer, ["sum"]), (inner, [])]}[order]:
        patch.uninstall()
        assert list(sites(m.f, x, x)) == left
    whole.uninstall()
    assert m.f(1, 2) == 3 and not whole.installed


def test_an_edit_that_would_drop_another_is_refused(module):
    m = module("def f(x, y):\n    return abs(x + y)\n")
    with Patch(m, {"f": [Rewrite("x + y", "tap('sum', x + y)")]}):
        greedy = Patch(m, {"f": [Rewrite("abs(x + y)", "abs(y)")]})
        with pytest.raises(PatchError, match="drop what an earlier edit inserted"):
            greedy.install()
        assert list(sites(m.f, 1.0, 2.0)) == ["sum"]


def test_a_patch_on_top_of_another_holds_it(module):
    m = module("def f(x):\n    return x + 1\n")
    below = Patch(m, {"f": [Rewrite("x + 1", "twice(x + 1)")]}, names={"twice": lambda v: 2 * v})
    above = Patch(m, {"f": [Rewrite("twice($v)", "-twice($v) * twice(1)")]}, names={"twice": lambda v: 3 * v})
    below.install()
    above.install()
    assert m.f(1) == -4 * 3  # what was there is kept, with its own names
    with pytest.raises(PatchError, match="another patch was written on top"):
        below.uninstall()
    assert m.f(1) == -12
    above.uninstall()
    below.uninstall()
    assert m.f(1) == 2


def test_install_is_all_or_nothing_and_reports_everything(module):
    m = module(TARGETS)
    patch = Patch(
        m,
        {
            "plain": [Rewrite("x * scale", "tap('fine', x * scale)"), Rewrite("x / scale", "x")],
            "Base.method": [Rewrite("x", "y"), Rewrite("self", "self")],
            "Base.methods": [Rewrite("x", "x")],
            "Base": [Rewrite("x", "x")],
            "functools": [Rewrite("x", "x")],
        },
    )
    report = patch.check()
    assert [(f.member, f.index, f.status) for f in report.findings] == [
        ("plain", 0, "ok"),
        ("plain", 1, "stale"),
        ("Base.method", 0, "refused"),
        ("Base.method", 1, "stale"),
        ("Base.methods", 0, "stale"),
        ("Base", 0, "stale"),
        ("functools", 0, "stale"),
    ]
    assert not report.ok and len(report.failures) == 6
    text = str(report)
    assert "-x / scale" in text and "+x * scale" in text and "nearest source, line" in text
    assert "'y'" not in text and "uses y" in text
    assert "near names: Base.method" in text and "is a class; name one of its methods" in text
    before = m.plain.__code__
    with pytest.raises(ValueError) as caught:
        patch.install()
    assert caught.value.report == report and m.plain.__code__ is before and not patch.installed


def test_ambiguity_is_reported_with_lines_and_count_allows_it(module):
    m = module("def f(x):\n    a = x + 1\n    b = x + 1\n    return a * b\n")
    finding = Patch(m, {"f": [Rewrite("x + 1", "x + 2")]}).check().findings[0]
    assert (finding.status, finding.lines) == ("ambiguous", (2, 3))
    with Patch(m, {"f": [Rewrite("x + 1", "x + 2", count=2)]}):
        assert m.f(1) == 9
    assert Patch(m, {"f": [Rewrite("x + 1", "x + 2", count=3)]}).check().findings[0].status == "stale"


def test_imported_members_are_sent_home(module):
    home = module("def f(x):\n    return x\n")
    m = module(f"from {home.__name__} import f\n")
    message = Patch(m, {"f": [Rewrite("x", "x")]}).check().findings[0].message
    assert f"defined in {home.__name__}" in message


def test_pins(module):
    m = module("def f(x):\n    return x + 1\n")
    pin = Patch(m, {"f": [Rewrite("x + 1", "x + 2")]}).check().findings[0].pin
    assert Patch(m, {"f": [Rewrite("x + 1", "x + 2", pin=pin)]}).check().ok
    changed = module("def f(x):\n    x = -x\n    return x + 1\n")
    finding = Patch(changed, {"f": [Rewrite("x + 1", "x + 2", pin=pin)]}).check().findings[0]
    assert finding.status == "stale" and pin in finding.message and finding.pin != pin


def test_closures_whose_cells_would_differ_are_refused(module):
    m = module(
        """
        def outer(y, z):
            def inner(x):
                return x + y
            return inner, z

        class A:
            def f(self):
                return 1
        """
    )
    closure, _ = m.outer(1, 100)
    for edits, reason in [
        ({"outer.inner": [Rewrite("x + y", "x + y + z")]}, "'z'"),
        ({"outer.inner": [Rewrite("x + y", "x")]}, "'y'"),
        ({"A.f": [Rewrite("1", "super().f")]}, "__class__"),
    ]:
        with pytest.raises(PatchError, match=f"(?s)cells.*{reason}"):
            Patch(m, edits).install()
    assert closure(1) == 2


def test_code_that_is_not_that_of_the_source_is_refused(module):
    m = module("def f(x):\n    return x + 1\n\ndef g(x):\n    return x\n")
    m.f.__code__ = (lambda x: x + 5).__code__.replace(
        co_filename=m.__file__, co_firstlineno=1, co_qualname="f", co_name="f"
    )
    with pytest.raises(PatchError, match="code in memory is not that of the source"):
        Patch(m, {"f": [Rewrite("x + 1", "x + 2")]}).install()
    del m.f
    with pytest.raises(PatchError, match="no function that was made from this definition"):
        Patch(m, {"f": [Rewrite("x + 1", "x + 2")]}).install()


def test_modules_without_source_are_refused():
    import _thread

    with pytest.raises(ValueError, match="no source in Python"):
        Patch(_thread, {"f": [Rewrite("x", "y")]}).install()
    with pytest.raises(ValueError, match="expected a module"):
        Patch(3, {})
    with pytest.raises(ValueError, match="must be Rewrites"):
        Patch("json", {"dumps": ["x"]})


def test_with_nests_and_install_is_idempotent(module):
    m = module("def f(x):\n    return x + 1\n")
    patch = Patch(m, {"f": [Rewrite("x + 1", "x + 2")]})
    with patch:
        with patch:
            assert m.f(0) == 2
        assert m.f(0) == 2
    assert m.f(0) == 1
    patch.install()
    patch.install()
    with patch:
        pass
    assert m.f(0) == 2
    patch.uninstall()
    patch.uninstall()
    assert m.f(0) == 1


def test_threads_install_and_take_off_together(module):
    m = module("\n".join(f"def f{k}(x):\n    return x + {k}" for k in range(4)))
    errors = []

    def work(k):
        try:
            patch = Patch(m, {f"f{k}": [Rewrite(f"x + {k}", f"-(x + {k})")]})
            for _ in range(5):
                with patch:
                    assert getattr(m, f"f{k}")(1) == -(1 + k)
                assert getattr(m, f"f{k}")(1) == 1 + k
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_what_was_traced_before_is_traced_anew(module):
    m = module("import jax\n\n@jax.jit\ndef f(x):\n    return x + 1\n\ndef g(x):\n    return jax.vmap(f)(x)\n")
    x, compiled = jnp.ones(2), jax.jit(m.g)
    assert compiled(x)[0] == 2
    with Patch(m, {"f": [Rewrite("x + 1", "tap('y', x + 2)")]}):
        assert compiled(x)[0] == 3 and m.f(1.0) == 3
        assert list(capture(compiled, "y")(x)[1]) == ["y"]
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(float(compiled(x)[0])))
        thread.start()
        thread.join()
        assert elsewhere == [3]
    assert compiled(x)[0] == 2


def test_a_module_that_is_being_imported_costs_nobody_their_caches(module, monkeypatch):
    m = module("def f(x):\n    return x + 1\n")
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))
    monkeypatch.setattr(m.__spec__, "_initializing", True, raising=False)
    with Patch(m, {"f": [Rewrite("x + 1", "x + 2")]}):
        assert not cleared
        monkeypatch.setattr(m.__spec__, "_initializing", False, raising=False)
    assert cleared


def test_taps_in_partials_and_wrappers_that_hold_the_function(module):
    m = module("def f(x):\n    return x + 1\n")
    held = functools.partial(m.f), jax.jit(m.f), functools.lru_cache(m.f)
    with Patch(m, {"f": [Rewrite("x + 1", "tap('y', x + 1)")]}):
        for function in held[:2]:
            assert list(sites(function, 1.0)) == ["y"]
        assert held[2](1) == 2
    assert tap("x", 1) == 1
