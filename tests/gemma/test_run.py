"""`Model.run`: texts, lists of texts and tokens; what it captures, edits, compiles; and what tells models apart."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import gemma
import mishax_lite
from gemma import sharding
from tests.compilations import counted
from tests.gemma import small

SITE = "layer_3/resid_post"


def close(got, want):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=2e-5, rtol=2e-5)


def add(shift, value, site):
    return value + shift


def test_a_text_gives_what_apply_gives_of_its_tokens(tiny):
    forward = tiny.run("In the beginning", capture=[SITE, "embed"])
    tokens = np.array([tiny.tokenizer.encode("In the beginning")])
    logits, values = tiny.apply(tokens, capture=["embed", SITE])
    np.testing.assert_array_equal(forward.tokens, tokens)
    assert forward.mask.all() and forward.logits.dtype == jnp.float32
    close(forward.logits, logits)
    assert list(forward.values) == list(values) == ["embed", SITE]  # the order of the forward pass
    close(forward.values[SITE], values[SITE])


def test_texts_are_padded_at_the_end_and_padding_changes_nothing(tiny):
    texts = ["And God said", "A", "Let there be light: and there was"]
    forward = tiny.run(texts, capture="layer_3/attn_z")
    lengths = [len(tiny.tokenizer.encode(text)) for text in texts]
    assert forward.mask.sum(axis=1).tolist() == lengths and forward.tokens.shape == (3, max(lengths))
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        alone = tiny.run(text, capture="layer_3/attn_z")
        assert forward.mask[row, :length].all()
        close(forward.logits[row, :length], alone.logits[0])
        close(forward.values["layer_3/attn_z"][row, :length], alone.values["layer_3/attn_z"][0])


def test_tokens_are_taken_as_they_are_and_their_padding_is_known(tiny):
    texts = tiny.run(["And God said", "A"])
    tokens = tiny.run(texts.tokens)
    np.testing.assert_array_equal(tokens.mask, texts.mask)
    close(tokens.logits, texts.logits)
    within = np.array([[2, 0, 392]])  # padding that text follows is in the text
    assert tiny.run(within).mask.all()
    assert dataclasses.replace(tiny, tokenizer=None).run([[2, 5, 0]]).mask.all()


def test_edits_by_dict_and_by_position_act(tiny):
    zero = {"layer_3/mlp_out": lambda value, site: 0 * value}
    edited = tiny.run("The sea", edits=zero, capture="layer_3/mlp_out")
    assert not np.asarray(edited.values["layer_3/mlp_out"]).any()
    close(edited.logits, mishax_lite.edit(tiny.apply, zero)(edited.tokens))
    close(edited.logits, tiny.apply(edited.tokens, edits=zero))
    close(
        jax.jit(functools.partial(tiny.losses, edits=zero))(edited.tokens),
        mishax_lite.edit(tiny.losses, zero)(edited.tokens),
    )
    assert np.abs(np.asarray(edited.logits - tiny.run("The sea").logits)).max() > 0.1


def test_edits_see_minus_one_at_padding(tiny):
    mark = lambda positions: {"embed": lambda value, site: value + positions[..., None].astype(value.dtype)}  # noqa: E731
    forward = tiny.run(["The sea", "A"], edits=mark, capture="embed")
    shift = forward.values["embed"] - tiny.run(["The sea", "A"], capture="embed").values["embed"]
    np.testing.assert_allclose(shift[..., 0], [[0, 1, 2], [0, 1, -1]], atol=1e-5)


def test_one_program_for_each_shape_and_set_of_names(tiny):
    model = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, name="counted"))  # nobody else's programs
    steer = lambda strength: {SITE: jax.tree_util.Partial(add, jnp.full(192, strength))}  # noqa: E731
    model.run([[2, 5, 6]], capture=SITE, edits=steer(0.5))
    with counted() as programs:
        strengths = [model.run([[2, 7, 8]], capture=SITE, edits=steer(float(i))).logits for i in range(100)]
    assert programs.count("_run") == 0
    assert np.abs(np.asarray(strengths[1] - strengths[99])).max() > 1e-3
    other = dataclasses.replace(model, params=jax.tree.map(lambda w: 2 * w, model.params))
    with counted() as programs:
        other.run([[2, 7, 8]], capture=SITE, edits=steer(0.5))  # parameters are arguments
        assert programs.count("_run") == 0
        model.run([[2, 7, 8]], capture="embed", edits=steer(0.5))
        model.run([[2, 7, 8, 9]], capture="embed", edits=steer(0.5))
    assert programs.count("_run") == 2


def test_attention_is_the_models_own_or_the_one_asked_for(tiny):
    plain = tiny.run("The sea", capture="*attn_pattern")
    assert len(plain.values) == 6
    close(tiny.lean.run("The sea").logits, plain.logits)
    for run in (tiny.lean.run, functools.partial(tiny.run, attention="fused")):
        with pytest.raises(ValueError, match="it exists with attention='plain'"):
            run("The sea", capture="layer_0/attn_pattern")
    assert tiny.lean.run("The sea", capture="layer_0/attn_pattern", attention="plain").values
    assert set(tiny.sites) - set(tiny.lean.sites) == {
        f"layer_{i}/attn_{x}" for i in range(6) for x in ("scores", "pattern")
    }
    assert set(tiny.lean.frozen) < set(tiny.frozen)


def test_wrong_input_is_refused_in_words(tiny):
    with pytest.raises(ValueError, match=r"resid_pots(.|\n)*layer_3/resid_post"):
        tiny.run("The sea", capture="layer_3/resid_pots")
    with pytest.raises(ValueError, match=r"loaded without a tokenizer: give token ids"):
        dataclasses.replace(tiny, tokenizer=None).run("The sea")
    with pytest.raises(ValueError, match="a list with texts and others"):
        tiny.run(["The sea", 3])
    with pytest.raises(ValueError, match=r"cannot be called inside jax\.jit"):
        jax.jit(lambda model: model.run([[2, 3]]).logits)(tiny)
    with pytest.raises(ValueError, match="tokens must be integers"):
        tiny.run([[0.5]])
    with pytest.raises(ValueError, match="at least one sequence"):
        tiny.run(np.zeros((0, 3), np.int32))


def test_a_forward_is_a_pytree_that_keeps_its_order_and_prints_as_one_line(tiny):
    forward = tiny.run("The sea", capture=["layer_*/resid_post", "embed"])
    again = jax.jit(lambda f: f)(forward)
    assert list(again.values) == list(forward.values) == ["embed", *(f"layer_{i}/resid_post" for i in range(6))]
    np.testing.assert_array_equal(again.values["embed"], forward.values["embed"])
    assert repr(forward) == "Forward(tokens [1, 3], logits [1, 3, 4096], 7 sites)"
    path, _ = jax.tree_util.tree_leaves_with_path(forward)[0]
    assert path[0].name == "logits"


def test_texts_lie_over_the_data_axis_of_the_parameters_mesh(golden):
    model, expected = golden
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("data", "model"))
    spread = dataclasses.replace(
        model, params=jax.device_put(model.params, sharding.param_shardings(model.params, mesh))
    )
    tokens = np.asarray(expected["tokens"])[:2]
    forward = jax.block_until_ready(spread.run(tokens))
    assert forward.logits.sharding.spec[0] == "data"
    np.testing.assert_allclose(forward.logits, model.run(tokens).logits, atol=1e-4)
    np.testing.assert_allclose(  # one sequence is on every device
        jax.block_until_ready(spread.run(tokens[:1])).logits, forward.logits[:1], atol=1e-4
    )


def test_a_fingerprint_is_of_parameters_and_configuration(tmp_path):
    model = small.model()
    gemma.save(model, tmp_path / "saved")
    reloaded = gemma.load(tmp_path / "saved")
    assert reloaded.fingerprint == model.fingerprint and len(model.fingerprint) == 64
    namesake = dataclasses.replace(model, config=dataclasses.replace(model.config, name="a copy of it"))
    assert namesake.fingerprint == model.lean.fingerprint == model.fingerprint
    config = dataclasses.replace(model, config=dataclasses.replace(model.config, attn_softcap=51.0))
    moved = jax.tree.map(lambda w: w, model.params)
    moved["layer_1"]["attn"]["q_einsum"]["w"] = moved["layer_1"]["attn"]["q_einsum"]["w"].at[0, 0, 0].add(1e-3)
    parameter = dataclasses.replace(model, params=moved)
    lower = dataclasses.replace(model, params=jax.tree.map(lambda w: w.astype(jnp.bfloat16), model.params))
    assert len({m.fingerprint for m in (model, config, parameter, lower)}) == 4


def test_parameters_are_hashed_once_and_not_under_jit(monkeypatch):
    model = small.model(seed=3)
    first = model.fingerprint
    monkeypatch.setattr(np, "ascontiguousarray", lambda leaf: pytest.fail("hashed again"))
    assert dataclasses.replace(model, dtype=jnp.dtype("bfloat16")).fingerprint == first
    monkeypatch.undo()
    numpy = dataclasses.replace(model, params=jax.tree.map(np.array, model.params))
    assert numpy.fingerprint == first
    numpy.params["final_norm"]["scale"][0] += 1  # an array of numpy may change
    assert numpy.fingerprint != first
    with pytest.raises(ValueError, match=r"take it outside of jax\.jit"):
        jax.jit(lambda model: len(model.fingerprint))(model)


def test_name_and_size(tiny):
    assert (tiny.name, tiny.vocab_size) == ("gemma2-tiny", 4096)
    assert tiny.resumption("layer_4/mlp_out") == ("layer_4/resid_pre",)
