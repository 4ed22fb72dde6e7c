"""`splice`, `steer`, `ablate` and `clamp` against numpy by hand, in a small function that taps its values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mishax_lite
import sae
from mishax_lite import tap
from sae.autoencoder import Largest
from tests import compilations

B, T, A, Z = 2, 5, 6, 16
IN, SITE, HEADS = "layer_0/mlp_in", "layer_0/mlp_out", "layer_0/attn_z"
TOKENS = np.array([[1, 5, 6, 7, 0], [0, 1, 6, 5, 9]])
POSITIONS = np.array([[0, 1, 2, 3, 4], [-1, 0, 1, 2, 3]])  # the second text has padding before it
SPECIAL = (0, 1)
RULE = sae.Counted(SPECIAL)
COUNTED = np.array([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, EMBEDDING = draw(0, B, T, A), draw(1, 10, A)


def model(tokens, positions=POSITIONS, x=X):
    """The values at the three sites; what goes out of `mlp_in` comes into `mlp_out`."""
    into = tap(IN, jnp.asarray(EMBEDDING)[tokens] + x)
    heads = tap(HEADS, into.reshape(B, T, 2, 3))
    return tap(SITE, jnp.tanh(into) * 3).astype(jnp.float32), heads


model.text_of = lambda tokens, positions=POSITIONS, **_: (tokens, positions)


def autoencoder(site=SITE, site_out=None, counted=RULE, seed=0, **changes):
    info = sae.Info("made-up", site, site_out or site, counted=counted)
    largest = Largest(np.arange(Z, dtype=np.float32), 1234)
    arrays = [draw(seed + k, *shape) for k, shape in enumerate([(A, Z), (Z,), (Z, A), (A,)], start=10)]
    result = sae.JumpReLU(*map(jnp.asarray, arrays), jnp.full(Z, 0.5), info=info, largest=largest)
    return dataclasses.replace(result, **changes)


def by_hand(ae, x):
    """Latents and reconstruction in numpy, float64."""
    z = np.asarray(x, np.float64) @ np.asarray(ae.W_enc, np.float64) + np.asarray(ae.b_enc)
    f = np.where(z > np.asarray(ae.threshold), z, 0)
    return f, f @ np.asarray(ae.W_dec, np.float64) + np.asarray(ae.b_dec)


def clean(site=SITE):
    into = EMBEDDING[TOKENS] + X
    return into if site != SITE else np.tanh(into) * 3


run = jax.jit(lambda edits, tokens: mishax_lite.edit(model, edits)(tokens))


def edited(edits, tokens=TOKENS):
    return np.asarray(run(mishax_lite.Edits.of(edits), tokens)[0])


def at(mask, new, old=None):
    return np.where(mask[..., None], new, clean() if old is None else old)


def test_steering_adds_strengths_times_rows_at_the_tokens_that_count():
    ae = autoencoder()
    shift = 2.0 * np.asarray(ae.W_dec[3]) - 0.5 * np.asarray(ae.W_dec[7])
    out = edited(sae.steer(ae, {3: 2.0, 7: -0.5}))
    np.testing.assert_allclose(out, at(COUNTED, clean() + shift), atol=1e-5)
    np.testing.assert_array_equal(out[~COUNTED], edited({})[~COUNTED])


def test_splicing_puts_the_reconstruction_in_the_activations_place():
    ae = autoencoder()
    np.testing.assert_allclose(edited(sae.splice(ae)), at(COUNTED, by_hand(ae, clean())[1]), atol=1e-4)


def test_with_the_error_no_value_changes_and_gradients_flow_through_the_latents():
    ae = autoencoder()
    out = lambda error, x: mishax_lite.edit(lambda t: model(t, x=x), bound(sae.splice(ae, error=error)))(TOKENS)[0]  # noqa: E731
    np.testing.assert_array_equal(out(True, X), edited({}))
    with_error, without = (jax.jacobian(lambda x, e=error: out(e, x)[0, 1])(X) for error in (True, False))
    np.testing.assert_allclose(with_error, without, atol=1e-5)
    assert np.abs(with_error).max() > 0.1


def bound(edits):
    return edits.bind(TOKENS, POSITIONS)


def test_ablating_keeps_the_error():
    ae = autoencoder()
    f, _ = by_hand(ae, clean())
    latents = [int(k) for k in np.argsort(-(f > 0).sum((0, 1)))[:2]]
    removed = f[..., latents] @ np.asarray(ae.W_dec, np.float64)[latents]
    assert np.abs(removed[COUNTED]).max() > 1
    for given in (latents, np.array(latents), jnp.array(latents)):
        np.testing.assert_allclose(edited(sae.ablate(ae, given)), at(COUNTED, clean() - removed), atol=1e-4)
    np.testing.assert_allclose(edited(sae.ablate(ae, latents[0])), edited(sae.ablate(ae, latents[:1])))


@pytest.mark.parametrize("where", [None, "active"])
def test_clamping_keeps_the_error(where):
    ae = autoencoder()
    f, _ = by_hand(ae, clean())
    new = f.copy()
    for latent, value in ((2, 4.0), (9, 1.5)):
        new[..., latent] = np.where((f[..., latent] > 0) | (where is None), value, f[..., latent])
    want = at(COUNTED, clean() + (new - f) @ np.asarray(ae.W_dec, np.float64))
    np.testing.assert_allclose(edited(sae.clamp(ae, {2: 4.0, 9: 1.5}, where=where)), want, atol=1e-4)
    assert 0 < ((f[..., [2, 9]] > 0) & COUNTED[..., None]).sum() < 2 * COUNTED.sum()


def test_two_edits_of_one_site_in_both_orders_equal_the_same_by_hand():
    ae = autoencoder()
    steer, ablate = sae.steer(ae, {3: 5.0}), sae.ablate(ae, [3, 4])
    W = np.asarray(ae.W_dec, np.float64)
    removed = lambda x: x - by_hand(ae, x)[0][..., [3, 4]] @ W[[3, 4]]  # noqa: E731
    added = lambda x: x + 5.0 * W[3]  # noqa: E731
    np.testing.assert_allclose(edited(steer | ablate), at(COUNTED, removed(added(clean()))), atol=1e-4)
    np.testing.assert_allclose(edited(ablate | steer), at(COUNTED, added(removed(clean()))), atol=1e-4)
    np.testing.assert_allclose(
        edited({SITE: lambda value, site: 2 * value} | steer), at(COUNTED, added(2 * clean()), 2 * clean()), atol=1e-4
    )


@pytest.mark.parametrize(
    ("positions", "narrowed"),
    [
        (2, POSITIONS == 2),
        ([1, 3], (POSITIONS == 1) | (POSITIONS == 3)),
        (jnp.array([1, 3]), (POSITIONS == 1) | (POSITIONS == 3)),
        (range(2, 4), (POSITIONS == 2) | (POSITIONS == 3)),
        (slice(2, None), POSITIONS >= 2),
        (slice(None, 3), POSITIONS < 3),
        (slice(1, None, 2), (POSITIONS == 1) | (POSITIONS == 3)),
        (np.eye(B, T, 1, dtype=bool), np.eye(B, T, 1, dtype=bool)),
        (lambda positions: positions % 2 == 1, POSITIONS % 2 == 1),
        (0, np.zeros((B, T), bool)),  # BOS never counts
    ],
    ids=["int", "list", "array", "range", "from", "to", "step", "bool", "function", "bos"],
)
def test_positions_narrow_all_of_them(positions, narrowed):
    ae = autoencoder()
    mask = COUNTED & narrowed
    want = at(mask, clean() + 2.0 * np.asarray(ae.W_dec[3]))
    np.testing.assert_allclose(edited(sae.steer(ae, {3: 2.0}, positions=positions)), want, atol=1e-5)
    for edits in (
        sae.splice(ae, positions=positions),
        sae.ablate(ae, range(Z), positions=positions),
        sae.clamp(ae, {3: 9.0}, positions=positions),
    ):
        changed = np.abs(edited(edits) - edited({})).max(-1) > 1e-6
        np.testing.assert_array_equal(changed, mask)


@pytest.mark.parametrize("positions", [-1, [0, -2], slice(-3, None), slice(0, 4, 0), 1.5, "all", [], True])
def test_positions_of_another_kind_are_refused(positions):
    with pytest.raises(ValueError, match=r"positions are an integer, several, a slice.* got "):
        sae.steer(autoencoder(), {3: 1.0}, positions=positions)


def test_a_mask_of_another_text_is_refused():
    with pytest.raises(ValueError, match=r"positions: expected bool \[2, 5\], \[B, T\] of the text, got bool\[2, 4\]"):
        edited(sae.steer(autoencoder(), {3: 1.0}, positions=np.ones((2, 4), bool)))


def test_without_a_rule_all_positions_above_0_count():
    ae = autoencoder(counted=None)
    want = at(POSITIONS > 0, clean() + np.asarray(ae.W_dec[3]))
    np.testing.assert_allclose(edited(sae.steer(ae, {3: 1.0})), want, atol=1e-5)


def test_sinks_do_not_count_at_the_site_that_is_read():
    norms = np.linalg.norm(clean(), axis=-1)
    limit = float(np.median(norms[COUNTED])) + 1e-3
    mask = COUNTED & (norms <= limit)
    ae = autoencoder(counted=sae.Counted(SPECIAL, sinks=sae.Sinks(limits={SITE: limit, "layer_5/resid_post": 0.0})))
    np.testing.assert_allclose(edited(sae.splice(ae)), at(mask, by_hand(ae, clean())[1]), atol=1e-4)
    assert mask.sum() < COUNTED.sum()


def test_a_transcoder_reads_its_input_in_the_same_pass():
    ae = autoencoder(IN, SITE, W_skip=jnp.asarray(draw(5, A, A)))
    f, out = by_hand(ae, clean(IN))
    out = out + clean(IN) @ np.asarray(ae.W_skip)
    np.testing.assert_allclose(edited(sae.splice(ae)), at(COUNTED, out), atol=1e-4)
    removed = f[..., [0, 1]] @ np.asarray(ae.W_dec, np.float64)[[0, 1]]
    np.testing.assert_allclose(edited(sae.ablate(ae, [0, 1])), at(COUNTED, clean() - removed), atol=1e-4)
    np.testing.assert_allclose(
        edited(sae.steer(ae, {3: 1.0})), at(COUNTED, clean() + np.asarray(ae.W_dec[3])), atol=1e-5
    )
    (alone,) = bound(sae.splice(ae)).functions(SITE)
    with pytest.raises(ValueError, match="reads layer_0/mlp_in, and this model's hooks give an edit no value"):
        alone(clean(), None)
    before = {IN: lambda value, site: value + 1} | sae.splice(ae)
    moved = by_hand(ae, clean(IN) + 1)[1] + (clean(IN) + 1) @ np.asarray(ae.W_skip)
    np.testing.assert_allclose(edited(before)[COUNTED], moved[COUNTED], atol=1e-4)


def test_heads_are_joined_and_apart_again():
    ae = autoencoder(HEADS)
    out = mishax_lite.edit(model, sae.splice(ae))(TOKENS)[1]
    want = at(COUNTED, by_hand(ae, clean(IN))[1], clean(IN)).reshape(B, T, 2, 3)
    np.testing.assert_allclose(out, want, atol=1e-4)


def test_a_site_in_bfloat16_gets_its_dtype_back_and_other_tokens_their_bits():
    ae = autoencoder()

    def narrow(tokens, positions=POSITIONS):
        return tap(SITE, jnp.asarray(X, jnp.bfloat16))

    narrow.text_of = model.text_of
    for edits in (sae.steer(ae, {3: 1.0}), sae.splice(ae), sae.ablate(ae, [3]), sae.clamp(ae, {3: 1.0})):
        out = mishax_lite.edit(narrow, edits)(TOKENS)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_array_equal(out[~COUNTED], jnp.asarray(X, jnp.bfloat16)[~COUNTED])
    x = np.asarray(jnp.asarray(X, jnp.bfloat16), np.float32)
    want = at(COUNTED, x + np.asarray(ae.W_dec[3]), x)
    steered = np.asarray(mishax_lite.edit(narrow, sae.steer(ae, {3: 1.0}))(TOKENS), np.float32)
    np.testing.assert_allclose(steered, want, rtol=2**-8, atol=2**-8)


def test_a_hundred_strengths_latents_and_positions_compile_one_program():
    ae, other = autoencoder(), autoencoder(seed=3)
    kinds = {
        "steer": lambda k: sae.steer(ae if k % 2 else other, {k % Z: 0.1 * k}, positions=slice(k, None)),
        "of_max": lambda k: sae.steer(ae, {1 + k % (Z - 1): sae.of_max(k)}, positions=k),
        "ablate": lambda k: sae.ablate(ae if k % 2 else other, [k % Z]),
        "clamp": lambda k: sae.clamp(ae, {k % Z: 0.1 * k}, where="active"),
        "splice": lambda k: sae.splice(ae if k % 2 else other),
    }
    for kind, make in kinds.items():
        run(make(0), TOKENS)
        with compilations.counted() as names:
            outs = [run(make(k), TOKENS)[0] for k in range(100)]
        assert names == [], kind
        assert np.abs(outs[1] - outs[2]).max() > 0 or kind == "of_max", kind


def test_strengths_may_be_traced_and_differentiated():
    ae = autoencoder()
    loss = lambda s: mishax_lite.edit(model, sae.steer(ae, {3: s, 4: 1.0}))(TOKENS)[0].sum()  # noqa: E731
    assert jax.grad(loss)(1.0) == pytest.approx(float(ae.W_dec[3].sum()) * COUNTED.sum(), rel=1e-4)


def test_of_max_is_a_multiple_of_the_largest_recorded_activation():
    ae = autoencoder()
    np.testing.assert_allclose(edited(sae.steer(ae, {5: sae.of_max(3)})), edited(sae.steer(ae, {5: 15.0})), rtol=1e-6)
    np.testing.assert_allclose(edited(sae.clamp(ae, {5: sae.of_max(2)})), edited(sae.clamp(ae, {5: 10.0})), rtol=1e-6)
    with pytest.raises(ValueError, match=r"of_max\(3\) of latent 0 is 0, as the latent fired on none of the 1,234"):
        sae.steer(ae, {0: sae.of_max(3)})
    with pytest.raises(
        ValueError, match=r"of_max\(3\) needs the largest activation of each latent, .* no record of them"
    ):
        sae.steer(dataclasses.replace(ae, largest=None), {5: sae.of_max(3)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ae: sae.steer(ae, {Z: 1.0}), "latents 0 to 15 and lacks latent 16"),
        (lambda ae: sae.ablate(ae, [-1]), "lacks latent -1"),
        (lambda ae: sae.ablate(ae, [2, 2]), "at least one latent, each once"),
        (lambda ae: sae.steer(ae, {}), "at least one latent"),
        (lambda ae: sae.ablate(ae, 1.5), "latents are integers, got"),
        (lambda ae: sae.steer(ae, {3: "3max"}), r"steer: expected a finite number or sae.of_max\(...\), got '3max'"),
        (lambda ae: sae.clamp(ae, {3: float("nan")}), "clamp: expected a finite number"),
        (lambda ae: sae.of_max("3"), "of_max: expected a finite number"),
        (lambda ae: sae.steer(ae, 3), "expected a dict {latent: number}"),
        (lambda ae: sae.clamp(ae, {3: 1.0}, where="on"), "where is 'active' or None, got 'on'"),
        (lambda ae: sae.splice(dataclasses.replace(ae, info=None)), "does not say its site: name one"),
        (lambda ae: edited(sae.splice(ae, site="layer_0/none")), "no site matches 'layer_0/none'"),
        (lambda ae: sae.splice(autoencoder(IN, SITE), site=IN), "this transcoder acts at layer_0/mlp_out"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(autoencoder())


def test_an_autoencoder_that_does_not_say_its_site_acts_where_it_is_told():
    bare = autoencoder(counted=None, info=None)
    np.testing.assert_array_equal(edited(sae.splice(bare, site=SITE)), edited(sae.splice(autoencoder(counted=None))))


def test_a_crosscoder_steers_at_one_of_its_sites_and_does_nothing_else():
    sites = (IN, SITE)
    result = sae.Crosscoder(
        *[jnp.asarray(draw(20 + k, *shape)) for k, shape in enumerate([(2, A, Z), (Z,), (Z, 2, A), (2, A), (Z,)])],
        info=sae.Info("made-up", sites, sites, counted=RULE),
    )
    want = at(COUNTED, clean() + 2.0 * np.asarray(result.W_dec[3, 1]))
    np.testing.assert_allclose(edited(sae.steer(result, {3: 2.0}, site=SITE)), want, atol=1e-5)
    with pytest.raises(ValueError, match=f"name one of {IN}, {SITE} .*; got None"):
        sae.steer(result, {3: 2.0})
    for make in (sae.splice, lambda c: sae.ablate(c, [3]), lambda c: sae.clamp(c, {3: 1.0})):
        with pytest.raises(ValueError, match="a crosscoder reads several sites"):
            make(result)


def test_values_of_another_dim_or_text_are_refused():
    wide = autoencoder(W_enc=jnp.ones((9, Z)), W_dec=jnp.ones((Z, 9)), b_dec=jnp.zeros(9))
    for edits in (sae.steer(wide, {3: 1.0}), sae.splice(wide)):
        with pytest.raises(ValueError, match=r"dim 9, the site 6|takes activations \[..., 9\], got \[2, 5, 6\]"):
            edited(edits)
    scalar = mishax_lite.edit(lambda t: tap(SITE, jnp.ones((B, T))), bound(sae.splice(autoencoder())))
    with pytest.raises(ValueError, match=r"values \[B, T, ...\] of \[2, 5\] tokens, got \[2, 5\]"):
        scalar(TOKENS)
    with pytest.raises(ValueError, match="depends on the text, and <lambda> does not say which"):
        mishax_lite.edit(lambda t: model(t), sae.splice(autoencoder()))(TOKENS)
