"""What training counted, evaluation and pages count: no other token, of no other text, by no other model."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import sae
from sae.capturing import activations_at
from sae.evaluation import fidelity, matching, measuring
from sae.evaluation.latents import latent_statistics
from sae.records import Record
from sae.text import Document, Origin, cut
from tests.sae.examples import SITE, autoencoder_for

RUN = sae.short_run(SITE, 64, 2, batch_size=64, l0_target=5.0)


@pytest.fixture(scope="module")
def text(tiny):
    """Sequences [21, 24]."""
    lines = [f"And {i} days went by, and the king said unto him, Go. " * 2 for i in range(21)]
    return cut([Document(f"d{i}", "s", line) for i, line in enumerate(lines)], tiny.tokenizer, 24).take(np.arange(21))


@pytest.fixture(scope="module")
def part(text):
    """The same, of which the first tokens are left out, as `cut(…, only_model_turns=True)` leaves out a user's."""
    left_out = np.zeros(text.tokens.shape, bool)
    left_out[:, :9] = True
    return dataclasses.replace(text, left_out=left_out)


def norms(tiny, text):
    """[S, T] of SITE."""
    x = np.asarray(activations_at(tiny, jnp.asarray(text.tokens), (SITE,))[SITE], np.float64)
    return np.linalg.norm(x, axis=-1)


def trained(source):
    return sae.train(RUN, source)[0][0]


def counted(autoencoder, tiny, text, **how):
    """The tokens of the figures, which are those of the pages."""
    tokens = sae.evaluate(autoencoder, tiny, text, **how).tokens
    assert latent_statistics(autoencoder, tiny, text, SITE, examples=1, **how).tokens == tokens
    return tokens


@pytest.mark.slow
def test_tokens_that_the_text_leaves_out_count_nowhere(tiny, text, part, tmp_path):
    store = sae.harvest(tiny, part, [SITE], tmp_path / "s")
    autoencoder = trained(store)
    assert autoencoder.info.counted == sae.Counted(tiny.tokenizer.special_ids, True)
    mask = part.text(tiny.tokenizer.special_ids)
    assert counted(autoencoder, tiny, part) == store.rows == mask.sum()
    x = np.asarray(activations_at(tiny, jnp.asarray(part.tokens), (SITE,))[SITE])[mask]
    l0 = (np.asarray(autoencoder.encode(x)) > 0).sum(axis=1).mean()
    assert sae.evaluate(autoencoder, tiny, part).l0 == pytest.approx(l0, rel=1e-3)
    for other in (text, part.tokens):  # what cannot say which tokens are the model's turns
        with pytest.raises(ValueError, match=r"those of a text that leaves tokens out.*`counted=`"):
            sae.evaluate(autoencoder, tiny, other)
    plain = sae.Counted(tiny.tokenizer.special_ids)
    assert counted(autoencoder, tiny, text, counted=plain) == text.text(plain.special_ids).sum()
    # And the other way round.
    whole = trained(sae.harvest(tiny, text, [SITE], tmp_path / "t"))
    with pytest.raises(ValueError, match="those of a text that leaves no token out"):
        sae.evaluate(whole, tiny, part)


def test_ids_that_training_dropped_count_nowhere(tiny, text):
    """Those on record, and not those that the tokenizer at hand calls special."""
    often = int(np.bincount(text.tokens[text.text(tiny.tokenizer.special_ids)]).argmax())
    autoencoder = autoencoder_for(tiny, 192)
    info = dataclasses.replace(autoencoder.info, counted=sae.Counted((*tiny.tokenizer.special_ids, often)))
    autoencoder = dataclasses.replace(autoencoder, info=info)
    assert counted(autoencoder, tiny, text) == text.text(info.counted.special_ids).sum()
    every = dataclasses.replace(info, counted=sae.Counted((tiny.tokenizer.pad,)))
    with_bos = dataclasses.replace(autoencoder, info=every)
    assert counted(with_bos, tiny, text) == (text.tokens != tiny.tokenizer.pad).sum()  # the batch's padding aside


@pytest.mark.parametrize("kind", ["store", "stream"])
def test_sinks_are_those_that_training_left_out(tiny, text, part, tmp_path, kind):
    """To the token: the limit is a multiple of the median of all rows, not of those that were kept."""
    sites = [SITE, "layer_3/resid_post"]
    for name, some in (("text", text), ("part", part)):
        rows = np.sort(norms(tiny, some)[some.text(tiny.tokenizer.special_ids)])
        median = np.sqrt(np.median(np.square(rows)))
        widest = len(rows) // 2 + np.argmax(np.diff(rows[len(rows) // 2 : -20]))  # a gap that rounding does not close
        factor = float(rows[widest : widest + 2].mean() / median)
        kept = widest + 1
        request = sae.Counted(tiny.tokenizer.special_ids, sinks=sae.Sinks(factor, [SITE]))
        if kind == "store":
            source = sae.harvest(tiny, some, sites, tmp_path / name, counted=request)
            assert source.rows == kept
        else:
            source = sae.stream(tiny, some, sites, counted=request)
        assert source.sink_limits() == {SITE: pytest.approx(factor * median)}
        # Norms are measured at the sink's site, wherever the autoencoder is.
        assert dict(source.counted.sink_limits) == source.sink_limits()
        info = sae.Info("gemma2-tiny", sites[1], sites[1], counted=source.counted)
        autoencoder = dataclasses.replace(autoencoder_for(tiny, 192, sites[1]), info=info)
        assert sae.evaluate(autoencoder, tiny, some).tokens == kept <= len(rows) - 20


def sinks_over(factor):
    return sae.Counted((0, 1, 2), sinks=sae.Sinks(factor))


def test_a_store_of_many_segments_has_one_limit(tiny, text, tmp_path):
    store = sae.harvest(tiny, text, [SITE], tmp_path / "s", counted=sinks_over(1.3), shuffle_rows=5 * 23)
    limits = [(rows, store.facts(index)["sink_limits"][SITE]) for index, rows in store.segments]
    assert len(limits) > 2 and len({limit for _, limit in limits}) > 1
    assert store.sink_limits() == {
        SITE: pytest.approx(np.average([x for _, x in limits], weights=[n for n, _ in limits]))
    }
    store.facts(0).pop("sink_limits")  # as earlier versions wrote it
    with pytest.warns(UserWarning, match="before stores recorded the norm over which a token is a sink"):
        assert store.sink_limits() == {SITE: pytest.approx(1.3 * store.median_norm(SITE))}


def other_model(tiny, name="final_norm"):
    """Of the same name, with one array changed."""
    changed = jax.tree.map(lambda leaf: leaf * 1.01, tiny.params[name])
    return dataclasses.replace(tiny, params={**tiny.params, name: changed})


def test_a_baseline_of_something_else_is_refused(tiny, text, part):
    autoencoder = autoencoder_for(tiny, 192)
    shared = fidelity.baseline(tiny, text.take(slice(0, 8)), SITE)
    with pytest.raises(ValueError, match=r"text: the baseline's is 8 sequences of 24 .* the one given is 21 sequences"):
        sae.evaluate(autoencoder, tiny, text, baseline=shared)
    shared = fidelity.baseline(tiny, text, SITE)
    assert sae.evaluate(autoencoder, tiny, text, baseline=shared) == sae.evaluate(autoencoder, tiny, text)
    changed = text.tokens.copy()
    changed[3, 5] += 1
    refusals = {
        r"text: the baseline's is 21 sequences": (tiny, dataclasses.replace(text, tokens=changed), None),
        r"rule .* the baseline's is all but ids 0, 1, 2, the one given is all but ids 7": (
            tiny,
            text,
            sae.Counted((7,)),
        ),
        r"text: .*; rule .* what the text leaves out": (tiny, part, None),
        r"model: .* gemma2-tiny with parameters .* the one given is gemma2-tiny": (other_model(tiny), text, None),
    }
    for message, (model, some, rule) in refusals.items():
        with pytest.raises(ValueError, match=message):
            sae.evaluate(autoencoder, model, some, baseline=shared, counted=rule)
    with pytest.raises(
        ValueError, match=r"site: the baseline's is layer_2/resid_post, the one given is layer_1/mlp_out"
    ):
        sae.evaluate(autoencoder_for(tiny, 192, "layer_1/mlp_out"), tiny, text, baseline=shared)


def recorded(tiny, **record):
    """An autoencoder of the model, that says so."""
    facts = {"model_fingerprint": tiny.fingerprint, "parameters_dtype": "float32"} | record
    info = sae.Info("gemma2-tiny", SITE, SITE, counted=sae.Counted((0, 1, 2)), record=Record(**facts))
    return dataclasses.replace(autoencoder_for(tiny, 192), info=info)


def test_another_models_autoencoder_is_refused_before_any_forward_pass(tiny, text, monkeypatch):
    autoencoder = recorded(tiny)

    def no_pass(*_, **__):
        raise AssertionError("a forward pass")

    monkeypatch.setattr(measuring, "activations_at", no_pass)
    with pytest.raises(ValueError, match=r"with parameters \w+…, the model given is a gemma2-tiny with parameters"):
        sae.evaluate(autoencoder, other_model(tiny), text)
    with pytest.raises(ValueError, match=r"with parameters"):
        latent_statistics(autoencoder, other_model(tiny), text, SITE)
    old = json.dumps({"store": {"model_sha256": "0" * 64, "corpus_sha256": "0"}})  # as earlier versions recorded it
    info = sae.Info("gemma2-tiny", SITE, SITE, training=old)
    with pytest.raises(ValueError, match=r"with parameters 000000000000…"):
        sae.evaluate(dataclasses.replace(autoencoder, info=info), tiny, text)
    half = dataclasses.replace(tiny, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params))
    with pytest.warns(matching.RecordWarning, match="float32 parameters, the model given has bfloat16 ones"):
        matching.check_model(autoencoder.info, half)
    matching.check_model(autoencoder.info, gemma.load("gemma2-tiny"))  # another copy of the same parameters


def test_fingerprints_decide_and_not_names(tiny):
    namesake = dataclasses.replace(recorded(tiny).info, model="a-folder-of-mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matching.check_model(namesake, tiny)
    with pytest.raises(ValueError, match=r"a a-folder-of-mine with parameters \w+…, the model given is a gemma2-tiny"):
        matching.check_model(namesake, other_model(tiny))
    half = dataclasses.replace(tiny, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params))
    with pytest.raises(
        ValueError, match="a-folder-of-mine with parameters"
    ):  # neither name nor parameters are the same
        matching.check_model(namesake, half)


@pytest.mark.parametrize("record", [None, Record(corpus_sha256="0")])
def test_a_name_decides_where_no_fingerprint_is_recorded_and_this_is_said(tiny, record):
    info = sae.Info("gemma2-tiny", SITE, SITE, record=record)
    with pytest.warns(matching.RecordWarning, match="does not record the parameters of its model, gemma2-tiny: they"):
        matching.check_model(info, tiny)
    with pytest.raises(ValueError, match="was trained on gemma2-2b, the model given is gemma2-tiny"):
        matching.check_model(dataclasses.replace(info, model="gemma2-2b"), tiny)


def test_metrics_say_over_how_many_documents_they_are(tiny, part):
    """Those with a token that counts; rows of an array stand for documents, and this is said."""
    autoencoder = recorded(tiny)
    lines = [f"And {i} days went by." for i in range(9)]
    packed = cut([Document(f"d{i}", "s", line) for i, line in enumerate(lines)], tiny.tokenizer, 24, packed=True)
    metrics = sae.evaluate(autoencoder, tiny, packed)
    assert len(packed) < metrics.documents == 9 and not metrics.rows_are_documents
    assert repr(metrics).endswith("tokens of 9 documents)")
    rows = sae.evaluate(autoencoder, tiny, packed.tokens)
    assert rows.documents == len(packed) and rows.tokens == metrics.tokens
    assert repr(rows).endswith(f"tokens of {len(packed)} rows taken for documents)")
    assert (rows.to_dict()["documents"], rows.to_dict()["rows_are_documents"]) == (len(packed), True)
    marks = part.left_out.copy()
    marks[part.document_at() == 3] = True
    some = dataclasses.replace(part, left_out=marks)
    assert (
        sae.evaluate(autoencoder, tiny, some, counted=sae.Counted((0, 1, 2))).documents == len(set(part.document)) - 1
    )


def test_a_rule_whose_sinks_have_no_limits_measures_nothing(tiny, text):
    with pytest.raises(ValueError, match=r"these sinks have no limits yet: .*`counted`"):
        sae.evaluate(recorded(tiny), tiny, text, counted=sinks_over(4.0))


def test_another_text_than_trained_on_is_said(tiny, text):
    origin = Origin(24, corpus="my.jsonl", documents_sha256="a")
    autoencoder = recorded(tiny, origin=origin)
    for changes, words in (
        ({}, ""),
        ({"corpus": "moved.jsonl"}, ""),  # the documents are what counts
        ({"corpus": "x.jsonl", "documents_sha256": "b"}, "the text is of x.jsonl, training's of my.jsonl"),
        ({"length": 32}, "sequences have 32 tokens, training's 24"),
        ({"packed": True}, "documents are packed, training's were the other way"),
    ):
        some = dataclasses.replace(text, origin=dataclasses.replace(origin, **changes))
        assert "; ".join(matching.differences(autoencoder.info, some)) == words
    with pytest.warns(matching.RecordWarning, match="another text than its own: documents are packed"):
        sae.evaluate(autoencoder, tiny, some)
    assert not matching.differences(autoencoder.info, dataclasses.replace(text, origin=None))


def test_what_is_not_on_record_is_said_and_not_refused(tiny, text, part):
    autoencoder = autoencoder_for(tiny, 192)
    with pytest.warns(matching.RecordWarning, match="does not record which tokens .*: all but ids 0, 1, 2 count here"):
        metrics = sae.evaluate(autoencoder, tiny, text)
    assert metrics.tokens == text.text(tiny.tokenizer.special_ids).sum()
    bare = dataclasses.replace(autoencoder, info=None)  # Gemma Scope's
    with pytest.warns(matching.RecordWarning, match="does not record"):
        assert sae.evaluate(bare, tiny, part, SITE).tokens == part.text(tiny.tokenizer.special_ids).sum()
    old = {"left_out": {"token_ids": [0, 1, 2, 9], "sink_norms": {SITE: 40.0}}}
    info = dataclasses.replace(autoencoder.info, training=json.dumps(old))
    with pytest.warns(matching.RecordWarning, match="norms of sinks that are somewhat smaller"):
        rule = matching.counted_of(info, tiny)
    assert rule == sae.Counted((0, 1, 2, 9), sinks=sae.Sinks(limits={SITE: 40.0}))
