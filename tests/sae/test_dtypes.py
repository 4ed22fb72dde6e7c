"""Models in bfloat16 and float16, from the forward pass to pages and steering."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gemma
import sae
from sae import filling, harvesting
from sae.capturing import activations_at
from sae.evaluation import latents
from sae.evaluation.counting import CountedText
from sae.store import codec as codecs
from sae.text import Document, as_sequences, batch_at, cut, pipeline
from tests.sae import examples

# Every site with a vector for each token; some are float32 in every model.
SHALLOW = dataclasses.replace(gemma.config("gemma2-tiny"), num_layers=1)
SITES = tuple(name for name, site in gemma.sites.of(SHALLOW).items() if site.per_token)
FLOAT32 = tuple(name for name in SITES if name == "logits" or name.endswith(("_scale", "mlp_normed")))
SITE = "layer_0/resid_post"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def model_in(model, dtype):
    params = jax.tree.map(lambda w: w.astype(dtype), model.params)
    return dataclasses.replace(model, params=params, dtype=jnp.dtype(dtype))


@pytest.fixture(scope="module")
def narrow(tiny):
    """The shipped model in a dtype; of one layer, as one is enough here."""
    params = {name: value for name, value in tiny.params.items() if not name.startswith("layer_") or name == "layer_0"}
    shallow = dataclasses.replace(tiny, config=SHALLOW, params=params)
    return {dtype: model_in(shallow, dtype) for dtype in ("float32", "bfloat16", "float16")}


@pytest.fixture(scope="module")
def text(tiny):
    """One sequence of each document, so that document and position name a row."""
    return cut([Document(f"d{i}", "s", f"And king {i} went up.") for i in range(24)], tiny.tokenizer, 16)


def rows_of(source, names, count):
    """All rows of an epoch in batches of 32, by name, and (document, position) of each."""
    names = [*names, "document", "position"]
    batches = list(itertools.islice(source.batches(32, names), count))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def model_at(model, text, site, rows):
    """What the model has there, at the documents and positions of some rows: [rows, A] float32."""
    order = pipeline.numbers(len(text), 0, 0, len(text))  # the same batches, so that rounding is the same
    batches = [batch_at(text.tokens[order], start, 16, model.tokenizer.pad) for start in (0, 16)]
    parts = [np.asarray(activations_at(model, jnp.asarray(batch), SITES)[site]) for batch in batches]
    whole = np.concatenate(parts)[np.argsort(order)].astype(np.float32)
    return whole[rows["document"], rows["position"]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_every_site_is_stored_as_the_model_has_it(narrow, text, tmp_path, dtype, stored):
    store = sae.harvest(narrow[dtype], text, SITES, tmp_path / "s", dtype=stored)
    assert (store.manifest.activation_dtype, store.manifest.dtype) == (dtype, stored)
    rows = rows_of(store, SITES, store.batches_per_pass(32))
    for site in SITES:
        want = model_at(narrow[dtype], text, site, rows)
        assert rows[site].dtype == np.float32 and np.abs(want).max() > 0
        if stored == "int8":
            assert (np.abs(rows[site] - want) <= np.abs(want).max(axis=1, keepdims=True) / 253).all()
        else:
            np.testing.assert_array_equal(rows[site], want.astype(codecs.codec(stored).dtype).astype(np.float32))
        exact = stored == "float32" or (stored == dtype and site not in FLOAT32)
        if stored == "int8" and want.shape[1] == 1:  # a row's scale says all of it, but for its own rounding
            assert store.rounding(site) < 1e-12
        else:
            assert (store.rounding(site) == 0) == exact, site
    keep = text.text(narrow[dtype].tokenizer.special_ids)
    assert store.rows == keep.sum()
    row = {"document": text.document_at()[keep], "position": np.nonzero(keep)[1]}
    x = model_at(narrow[dtype], text, SITE, row).astype(np.float64)
    np.testing.assert_allclose(store.mean(SITE), x.mean(axis=0), rtol=1e-9, atol=1e-12)
    assert store.mean_squared_norm(SITE) == pytest.approx(np.square(x).sum(axis=1).mean(), rel=1e-12)


def test_a_stream_has_the_rows_of_the_harvest_in_float32(narrow, text, tmp_path):
    model = narrow["bfloat16"]
    stream = sae.stream(model, text, SITES, shuffle_rows=10 * 15)
    assert stream.manifest.activation_dtype == "bfloat16"
    rows = rows_of(stream, SITES, stream.batches_per_pass(32))
    for site in (SITE, "logits"):
        assert rows[site].dtype == np.float32
        want = model_at(model, text, site, rows)
        np.testing.assert_allclose(rows[site], want, rtol=2**-6, atol=2**-6 * np.abs(want).max())


def test_buffers_hold_what_the_model_gives(narrow, text):
    """float32 is moved as it is, and bfloat16 takes half of the memory."""
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        manifest = harvesting.plan(narrow[dtype], text, SITES)
        filled = next(filling.filled_segments(narrow[dtype], text, manifest, [0]))
        assert filled.activations[SITE].dtype.itemsize == size and filled.activations["logits"].dtype == np.float32


def test_float32_and_bfloat16_never_share_a_store(narrow, text, tmp_path):
    sae.harvest(narrow["float32"], text, [SITE], tmp_path / "s")
    before = (tmp_path / "s" / "manifest.json").read_bytes()
    # The same parameters, so that nothing else tells them apart.
    lower = dataclasses.replace(narrow["float32"], dtype=jnp.dtype("bfloat16"))
    with pytest.raises(ValueError, match=r"activation_dtype: the store has float32, asked for bfloat16"):
        sae.harvest(lower, text, [SITE], tmp_path / "s")
    assert (tmp_path / "s" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("kind", [np.float16, BFLOAT16, np.float64])
def test_rows_of_any_float_are_encoded(kind):
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(kind)
    assert set(codecs.names()) >= {"float32", "bfloat16", "float16", "int8"}
    for name in codecs.names():
        codec = codecs.codec(name)
        parts = codec.encode(x)
        assert {suffix: (part.dtype, part.shape[1:]) for suffix, part in parts.items()} == codec.parts(8)
        assert codec.row_bytes(8) == sum(part[0].nbytes for part in parts.values())
        back = np.empty(x.shape, np.float32)
        codec.decode(parts, back)
        lost = np.square(back.astype(np.float64) - x.astype(np.float64)).sum()
        assert codecs.lost(codec, x, parts) == pytest.approx(lost, rel=1e-12, abs=0)
        some = np.array([7, 0, 7])
        few = np.empty((3, 8), np.float32)
        codec.decode(parts, few, some)
        np.testing.assert_array_equal(few, back[some])


def test_infinite_activations_are_refused_with_what_to_do(narrow, text, tmp_path):
    params = dict(narrow["float16"].params)
    params["embedder"] = {"input_embedding": params["embedder"]["input_embedding"] * 60_000}
    model = dataclasses.replace(narrow["float16"], params=params)
    for use in (
        lambda: sae.harvest(model, text, ["embed"], tmp_path / "s"),
        lambda: sae.stream(model, text, ["embed"]).mean("embed"),
    ):
        with pytest.raises((ValueError, OSError), match=r"embed in segment.* infinite or not numbers.*bfloat16"):
            use()


@pytest.mark.slow
def test_bfloat16_on_eight_devices_is_that_of_one(text, tmp_path, meshes, one_device):
    one, eight = (gemma.load("gemma2-tiny", dtype=jnp.bfloat16, mesh=mesh) for mesh in (None, meshes(8, 1)))
    stores = {
        "one": sae.harvest(one, text, [SITE], tmp_path / "one", dtype="bfloat16"),
        "eight": sae.harvest(eight, text, [SITE], tmp_path / "eight", dtype="bfloat16", mesh=meshes(8, 1)),
    }
    a, b = (rows_of(store, [SITE, "token"], store.batches_per_pass(32)) for store in stores.values())
    np.testing.assert_array_equal(a["token"], b["token"])
    assert np.linalg.norm(a[SITE] - b[SITE]) < 0.01 * np.linalg.norm(a[SITE])
    run = sae.short_run(SITE, 64, 6, batch_size=32, l0_target=4.0)
    (autoencoder,), history = sae.train(run, stores["one"], one_device)
    (other,), other_history = sae.train(run, stores["one"], meshes(8, 1))
    for record, other_record in zip(history, other_history, strict=True):
        assert record["loss"] == pytest.approx(other_record["loss"], rel=1e-5)
    assert autoencoder.W_enc.dtype == other.W_enc.dtype == np.float32
    assert json.loads(autoencoder.info.training)["store"]["activation_dtype"] == "bfloat16"
    stream = sae.stream(eight, text, [SITE], mesh=meshes(8, 1))
    _, history = sae.train(run, stream, meshes(8, 1))
    assert np.isfinite(history[-1]["loss"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_figures_are_those_of_float32_up_to_rounding(narrow, text, dtype):
    autoencoder = examples.autoencoder_for(narrow["float32"], 192, SITE)
    exact, rounded = (sae.evaluate(autoencoder, narrow[name], text) for name in ("float32", dtype))
    assert rounded.tokens == exact.tokens and rounded.predictions == exact.predictions
    for figure in ("l0", "fvu", "loss", "loss_spliced", "loss_zero"):
        assert getattr(rounded, figure) == pytest.approx(getattr(exact, figure), rel=0.02), figure
    fired = [latents.latent_statistics(autoencoder, narrow[name], text, SITE).fired for name in ("float32", dtype)]
    assert np.abs(fired[0] - fired[1]).sum() < 0.02 * fired[0].sum()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("site", [SITE, "layer_0/attn_z"])
def test_promoted_tokens_are_computed_in_float32(narrow, dtype, site):
    """From the rounded parameters; the norms' 1 + scale is not rounded again."""
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), narrow[dtype].params)
    autoencoder = examples.autoencoder_for(narrow[dtype], 192, site)
    direction = np.asarray(autoencoder.W_dec, np.float64)
    if site.endswith("attn_z"):
        w = params["layer_0"]["attn"]["attn_vec_einsum"]["w"].reshape(192, -1)
        direction = direction @ w * (1 + params["layer_0"]["post_attention_norm"]["scale"])
    want = direction * (1 + params["final_norm"]["scale"]) @ params["embedder"]["input_embedding"].T
    want -= want.mean(axis=1, keepdims=True)
    effects = latents.logit_effects(autoencoder, narrow[dtype], site)
    assert effects.dtype == np.float32
    np.testing.assert_allclose(effects, want, atol=1e-4 * np.abs(want).max())
    top = latents.top_tokens(autoencoder, narrow[dtype], site, count=3)
    np.testing.assert_allclose(top.promotion, -np.sort(-want)[:, :3], atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_sinks_are_measured_in_float32(narrow, dtype):
    """A norm of 300, whose square float16 lacks; and 301 against 300.5, which bfloat16 does not tell apart."""
    sequences = as_sequences(np.full((1, 4), 7, np.int32), narrow[dtype])
    vectors = np.zeros((1, 4, 192))
    vectors[0, :, :2] = [[300, 0], [300, 24], [300, 16], [300, 18]]  # norms 300, 300.96, 300.43, 300.54
    captured = {SITE: jnp.asarray(vectors, dtype)}
    rule = sae.Counted((0, 1, 2), sinks=sae.Sinks(limits={SITE: 300.5}))
    text = CountedText(sequences, rule, pad=0)
    kept = text.mask(0, 1, captured)
    np.testing.assert_array_equal(kept, [[True, False, True, False]])


@pytest.mark.slow
def test_steering_computes_in_float32(narrow):
    """What an edit adds is rounded once, with what it is added to."""
    model = narrow["bfloat16"]
    direction = jax.random.normal(jax.random.key(0), (192,), jnp.float32) * 30
    plain = {SITE: lambda value, site: value + direction}
    exact = {SITE: lambda value, site: (value.astype(jnp.float32) + direction).astype(value.dtype)}
    steered, want = (gemma.generate(model, "The sea", max_new_tokens=6, edits=edits) for edits in (plain, exact))
    np.testing.assert_array_equal(steered.tokens, want.tokens)
    assert steered.texts != gemma.generate(model, "The sea", max_new_tokens=6).texts
    for wrong in (lambda value, site: jnp.ones(value.shape, int), lambda value, site: value.astype(jnp.float16)):
        with pytest.raises(ValueError, match=r"expected .* and bfloat16; an edit may not change them"):
            gemma.generate(model, "The sea", max_new_tokens=2, edits={SITE: wrong})
