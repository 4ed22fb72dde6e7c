"""Every tap that a rule runs is known for what it is: rules run later than their functions, maybe for another hook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mishax_lite import capture, edit, scope, sites, tap

X = jnp.asarray([0.3, -0.7, 1.1])


def squared(value):
    return value * value + 0.3


def edited(value):
    """What an edit makes of a value when it is edited after differentiating: the new value, the old one's tangent."""
    return value + lax.stop_gradient(squared(value) - value)


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("watched_before", [False, True])
def test_what_a_rule_runs_is_no_recomputation_of_a_function_that_another_hook_traced(watched_before, k):
    @jax.custom_jvp
    def inner(x):
        return jnp.sin(tap("h", x))

    @inner.defjvp
    def _(primals, tangents):
        x = tap("h", tap("h", primals[0]))
        return jnp.sin(x), jnp.cos(x) * tangents[0]

    f = jax.jit(lambda x: jax.checkpoint(lambda x: inner(tap("h", jnp.sin(x))))(tap("h", x)).sum())
    if watched_before:
        sites(f, X)  # JAX keeps the trace of f; the rule runs later, below
    a, b, c, d = (edited if k == n else (lambda value: value) for n in range(4))
    assert list(sites(jax.grad(f), X)) == ["h#0", "h#1", "h#2", "h#3"]
    got = jax.jit(edit(jax.grad(f), {f"h#{k}": lambda v, s: squared(v)}))(X)
    x, pullback = jax.vjp(lambda x: b(jnp.sin(a(x))), X)
    wanted = pullback(jnp.cos(d(c(x))))[0]
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)


block = jax.checkpoint(lambda x: jnp.sin(tap("h", x * 2)))


def tapped_in_jvp_rule():
    f = jax.custom_jvp(jnp.sin)

    @f.defjvp
    def _(primals, tangents):
        x = tap("h", primals[0] * 2)
        return jnp.sin(x), jnp.cos(x) * tangents[0]

    return jax.jit(jax.checkpoint(lambda x: jnp.sin(f(x))))


def tapped_in_backward_rule():
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (block(x) * ct,))
    return jax.jit(jax.checkpoint(lambda x: jnp.sin(f(x))))


def tapped_in_rule_for_vmap():
    f = jax.custom_batching.custom_vmap(jnp.sin)
    f.def_vmap(lambda size, batched, x: (block(x), True))
    return jax.vmap(jax.jit(f))


@pytest.mark.parametrize("name", ["h#0", "h#1"])
@pytest.mark.parametrize("make", [tapped_in_jvp_rule, tapped_in_backward_rule, tapped_in_rule_for_vmap])
def test_a_function_with_taps_only_in_its_rules_is_told_apart_by_its_calls(make, name):
    def changed(f, g):
        loss = lambda x: (f(x) * g(2 * x)).sum()  # noqa: E731
        return jax.jit(edit(jax.grad(loss), {name: lambda v, s: squared(v)}))(X)

    shared, first = make(), make()
    sites(jax.grad(lambda x: first(x).sum()), X)  # JAX keeps what it traced for this hook
    wanted = changed(make(), make())
    np.testing.assert_allclose(changed(shared, shared), wanted, rtol=2e-5)
    np.testing.assert_allclose(changed(first, make()), wanted, rtol=2e-5)


def test_a_rule_for_vmap_runs_in_the_scope_of_the_call():
    f = jax.custom_batching.custom_vmap(jnp.sin)
    f.def_vmap(lambda size, batched, x: (jnp.sin(tap("h", x)), True))

    @jax.jit
    def scoped(x):
        with scope("s/"):
            return f(x)

    assert list(sites(jax.vmap(scoped), X)) == ["s/h"]


def test_in_a_branch_that_vmap_made_a_select_a_backward_rule_runs_for_all_lanes():
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (tap("h", jnp.cos(x)) * ct,))
    slope = jax.grad(lambda x: lax.cond(x > 0, f, lambda x: 2 * x, x))
    assert capture(slope, "h", loops="last")(X[0])[1]["h"].taken
    with pytest.raises(ValueError, match=r"site 'h', .* is in a branch of a cond that vmap made into a select"):
        capture(jax.vmap(slope), "h")(X)
    np.testing.assert_allclose(jax.vmap(capture(slope, "h", loops="last"))(X)[1]["h"].taken, X > 0)
