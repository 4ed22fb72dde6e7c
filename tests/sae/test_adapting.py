"""`sae.AdaptedModel`, on a small Equinox transformer over letters."""

import dataclasses
import doctest
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mishax_lite
import sae
from mishax_lite import hashing
from sae import adapting, site_kinds
from tests import compilations
from tests.sae.letters import Letters
from tests.sae.models import lettered

STREAM = "blocks/1"
TEXTS = ["the sea was calm.", "a ship"]


@functools.cache
def model() -> sae.AdaptedModel:
    return lettered.model()


def autoencoder(site: str = STREAM, dim: int = 24) -> sae.JumpReLU:
    keys = jax.random.split(jax.random.key(1))
    W_dec = jax.random.normal(keys[0], (8, dim))
    info = sae.Info(model().name, site, site, counted=sae.Counted(Letters.special_ids))
    return sae.JumpReLU(W_dec.T, jnp.zeros(8), W_dec, jnp.zeros(dim), jnp.zeros(8), info=info)


def test_texts_are_padded_at_the_end_and_padding_is_told():
    forward = model().run(TEXTS, capture=["blocks/*/mlp", "embed"])
    tokens = np.asarray(forward.tokens)
    assert forward.mask.sum(axis=1).tolist() == [len(Letters().encode(text)) for text in TEXTS]
    assert (tokens[~np.asarray(forward.mask)] == Letters.pad).all() and forward.tokens.dtype == jnp.int32
    assert list(forward.values) == ["embed", "blocks/0/mlp", "blocks/1/mlp"]  # the order of the forward pass
    alone = model().run(TEXTS[1]).logits
    np.testing.assert_allclose(forward.logits[1, : alone.shape[1]], alone[0], atol=1e-5)
    again = model().run(tokens)
    np.testing.assert_array_equal(again.mask, forward.mask)


def test_an_edit_that_needs_the_text_acts_in_run_apply_losses_and_edit_alike():
    edits = sae.steer(autoencoder(), {3: 5.0})
    tokens = model().run(TEXTS[0]).tokens
    logits = model().run(tokens, edits=edits).logits
    assert np.abs(logits - model().run(tokens).logits)[0, 1:-1].max(axis=-1).min() > 1e-3
    for edited in (
        lambda m: m.apply(tokens, edits=edits),
        lambda m: mishax_lite.edit(m.apply, edits)(tokens),
    ):
        np.testing.assert_allclose(jax.jit(edited)(model()), logits, atol=1e-5)
    losses = [
        jax.jit(edited)(model())
        for edited in (lambda m: m.losses(tokens, edits=edits), lambda m: mishax_lite.edit(m.losses, edits)(tokens))
    ]
    want = -jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(losses, [want, want], atol=1e-5)


def test_padding_is_not_edited():
    seen = model().run(TEXTS, edits=lambda positions: {"embed": lambda value, _: value * (2 + positions[..., None])})
    by_hand = jnp.where(seen.mask, jnp.arange(seen.tokens.shape[1]), -1)
    edits = {"embed": lambda value, _: value * (2 + by_hand[..., None])}
    want = jax.jit(lambda m: m.apply(seen.tokens, edits=edits))(model())
    np.testing.assert_allclose(seen.logits, want, atol=1e-5)


def test_a_hundred_strengths_compile_one_program():
    steering = autoencoder()
    model().run(TEXTS, edits=sae.steer(steering, {3: 1.0}))
    with compilations.counted() as names:
        for strength in range(100):
            model().run(TEXTS, edits=sae.steer(steering, {3: float(strength)}))
    assert names == []


def test_a_wider_float_is_rounded_to_the_sites():
    narrow = dataclasses.replace(
        model(), params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model().params), dtype=jnp.bfloat16
    )
    forward = narrow.run("a ship", capture=STREAM, edits={STREAM: lambda value, _: value + jnp.float32(1)})
    assert forward.values[STREAM].dtype == jnp.bfloat16 and forward.logits.dtype == jnp.float32


def test_a_direction_moves_the_logits_as_it_does_where_the_norms_division_is_held_still():
    site, vector = "blocks/1/attention/mix", jax.random.normal(jax.random.key(2), (24,))
    p = model().params
    added = np.asarray(vector) @ np.asarray(p.blocks[1].attention.out).reshape(24, 24)
    want = ((added - added.mean()) * np.asarray(p.norm.gain)) @ np.asarray(p.head.weight)
    np.testing.assert_allclose(model().logit_directions(site, vector), want - want.mean(), atol=1e-4)


def test_the_lens_reads_any_value_of_the_stream_and_direct_logits_take_heads_one_by_one():
    site, p = "blocks/1/attention/mix", model().params
    forward = model().run(TEXTS[1], capture=[site, STREAM])
    got = model().lens(forward.values | {site: forward.values[STREAM]})
    np.testing.assert_allclose(got[STREAM], forward.logits, atol=1e-4)
    value = np.asarray(forward.values[site])  # [B, T, N, H]
    heads = np.einsum("btnh,nhd->btnd", value, np.asarray(p.blocks[1].attention.out))
    want = ((heads - heads.mean(axis=-1, keepdims=True)) * np.asarray(p.norm.gain)) @ np.asarray(p.head.weight)
    np.testing.assert_allclose(model().direct_logits(value, site), want, atol=1e-4)
    some = model().direct_logits(value.reshape(*value.shape[:2], -1), site, tokens=[4, 2])
    np.testing.assert_allclose(some, want.sum(axis=2)[..., [4, 2]], atol=1e-4)
    stream = np.asarray(forward.values[STREAM])
    np.testing.assert_allclose(model().direct_logits(stream), model().direct_logits(stream, STREAM), atol=1e-5)
    with pytest.raises(ValueError, match=r"tokens are ids \[K\], the same for every value; got an array \[2, 2\]"):
        model().direct_logits(stream, tokens=[[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="the token id 99999 has no row"):
        model().direct_logits(stream, tokens=[99999])


def test_the_fingerprint_is_of_the_values_and_of_what_decides_beside_them():
    assert model().fingerprint == dataclasses.replace(model(), name="another").fingerprint
    assert model().fingerprint != dataclasses.replace(model(), config="another").fingerprint
    params = {"w": np.arange(3.0)}
    assert sae.fingerprint(params, {"dtype": jnp.float32}) == sae.fingerprint(params, {"dtype": np.dtype("float32")})
    with pytest.raises(ValueError, match="of the type function: give a dataclass or a dict"):
        sae.fingerprint(params, {"activation": lambda x: x})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.apply([[0, 99]]), "the token id 99 has no row: equinox has rows 0 to 30"),
        (lambda m: m.apply([[0, -1]]), "the token id -1 has no row"),
        (lambda m: m.apply([0, 1]), "tokens are integers [B, T], got int64[2]"),
        (lambda m: m.run([[0.5]]), "tokens are integers [B, T], got float64[1, 1]"),
        (lambda m: m.losses([[0]]), "losses need sequences of at least two tokens, got [B, T] = [1, 1]"),
        (lambda m: jax.jit(lambda m: m.run([[0, 1]]).logits)(m), "inside of jax.jit call model.apply"),
        (lambda m: m.run([[0, 1]], capture="blocks/0/mpl"), "blocks/0/mlp"),
        (lambda m: dataclasses.replace(m, tokenizer=None).run("a"), "equinox was loaded without a tokenizer"),
        (lambda m: m.logit_directions("blocks/0/mlp/up", jnp.ones(48)), "blocks/0/mlp/up does not write to the resid"),
        (lambda m: m.logit_directions("blocks/0", jnp.ones(48)), "vectors at blocks/0 are [..., 24], got [48]"),
        (
            lambda m: with_kind(m, "embed", shape=(12,)).run("a", capture="embed"),
            "has shape [1, 3, 24], and its SiteKind",
        ),
        (
            lambda m: with_kind(m, "z", shape=(24,)).logit_directions("blocks/0/attention/mix", jnp.ones(24)),
            "expected [24]",
        ),
        (lambda m: with_kind(m, "z", path="blocks/{}/mlp").sites, "two site kinds have the site 'blocks/0/mlp'"),
        (lambda m: with_kind(m, "embed", path="", name="logits").sites, "`logits` exists already"),
        (
            lambda m: with_kind(m, "z", path="mix"),
            "the path of the site kind 'z' is 'mix': with in_layers=True it needs",
        ),
    ],
)
def test_what_cannot_be_is_said(act, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        act(model())


def with_kind(m: sae.AdaptedModel, name: str, /, **changes) -> sae.AdaptedModel:
    """The model with one of its kinds changed."""
    return dataclasses.replace(
        m, kinds=tuple(dataclasses.replace(kind, **changes) if kind.name == name else kind for kind in m.kinds)
    )


def test_parameters_on_a_mesh_have_their_tokens_over_its_axis_data(meshes):
    mesh = meshes(2, 1)
    spread = jax.device_put(model(), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    forward = spread.run(TEXTS, capture=STREAM)
    assert forward.tokens.sharding.spec == jax.sharding.PartitionSpec("data")
    np.testing.assert_allclose(forward.logits, model().run(TEXTS).logits, atol=1e-5)


@pytest.mark.parametrize("module", [adapting, site_kinds, hashing])
def test_examples_run(module):
    names = {"sae": sae, "jnp": jnp, "mishax_lite": mishax_lite}
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed
