"""Ten everyday tasks, each in at most the lines that the plan of the API gives it; imports and loading come before."""

import ast
import inspect
import json
import textwrap

import jax
import numpy as np
import pytest

import gemma
import mishax_lite
import sae
from sae.autoencoder import Largest

SITE, PROMPT = "layer_3/resid_post", "And the king said unto him"
pytestmark = pytest.mark.filterwarnings(
    "ignore::sae.TrainingWarning", "ignore::sae.evaluation.matching.RecordWarning"
)  # runs of a few steps; an autoencoder whose record is short


def cache_a_prompts_activations(model):
    return model.run(PROMPT, capture="*").values


def ablate_a_site(model):
    return model.run(PROMPT, edits={"layer_3/mlp_out": lambda value, site: 0 * value}).logits


def patch_from_one_prompt_into_another(model):
    sea, king = (model.tokenizer.encode(word)[1] for word in ("sea", "king"))
    score = lambda logits: logits[-1, sea] - logits[-1, king]  # noqa: E731
    return sae.patch_grid(model, "And the sea was", "And the king was", score, "resid_post")


def attribute_by_gradients(model, tokens):
    run = mishax_lite.gradients(lambda tokens: model.apply(tokens)[0, -1, 70], SITE)
    return (run(tokens)[1][SITE] * model.run(tokens, capture=SITE).values[SITE]).sum(axis=-1)


def latents_that_fire(autoencoder, model):
    found = sae.top_latents(autoencoder, model, PROMPT)
    return [(latent.latent, latent.tokens) for latent in found]


def splice_and_measure_the_loss(autoencoder, model, tokens):
    spliced = model.losses(tokens, edits=sae.splice(autoencoder))
    return spliced.mean() - model.losses(tokens).mean()


def steer_generation(autoencoder, model):
    return gemma.generate(model, "The sea", max_new_tokens=3, edits=sae.steer(autoencoder, {17: sae.of_max(3)}))


def train_from_a_text_file(model, path):
    sequences = sae.text.cut(sae.text.read_documents(path), model.tokenizer, 32)
    train, held_out = sae.text.split(sequences)
    result = sae.train(sae.short_run(SITE, 64, 4, batch_size=64, l0_target=8), sae.stream(model, train, SITE))
    return result.autoencoder, sae.evaluate(result.autoencoder, model, held_out)


def train_on_ones_own_array(array):
    source = sae.rows({"mine": array})
    return sae.train(sae.short_run("mine", 32, 4, batch_size=64, l0_target=4), source).autoencoder


def load_a_published_autoencoder_and_evaluate_it(folder, model, sequences):
    autoencoder = sae.load(folder)
    return sae.evaluate(autoencoder, model, sequences)


LINES = {
    cache_a_prompts_activations: 1,
    ablate_a_site: 1,
    patch_from_one_prompt_into_another: 6,
    attribute_by_gradients: 2,
    latents_that_fire: 2,
    splice_and_measure_the_loss: 2,
    steer_generation: 1,
    train_from_a_text_file: 4,
    train_on_ones_own_array: 2,
    load_a_published_autoencoder_and_evaluate_it: 2,
}


@pytest.mark.parametrize("task", LINES, ids=lambda task: task.__name__)
def test_a_task_takes_few_lines(task):
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(task))).body
    first, last = function.body[0].lineno, function.body[-1].end_lineno
    assert last - first + 1 <= LINES[task]


@pytest.fixture
def autoencoder(tiny):
    W = np.random.default_rng(0).normal(size=(192, 256)).astype(np.float32) / 14
    info = sae.Info(tiny.name, SITE, SITE, counted=sae.Counted(tiny.tokenizer.special_ids))
    zeros = np.zeros(256, np.float32)
    largest = Largest(np.full(256, 2.0), 9)
    return sae.JumpReLU(W, zeros, W.T, np.zeros(192, np.float32), zeros + 1, info=info, largest=largest)


@pytest.fixture
def tokens(tiny):
    return np.asarray([tiny.tokenizer.encode(PROMPT)], np.int32)


@pytest.fixture
def path(tmp_path):
    lines = [json.dumps({"text": f"The ships of harbour {i} came home in the evening. " * 4}) for i in range(30)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return tmp_path / "text.jsonl"


@pytest.mark.slow
def test_reading_and_changing_a_forward_pass(tiny, tokens):
    values = cache_a_prompts_activations(tiny)
    assert list(values) == list(tiny.sites)
    logits, site = ablate_a_site(tiny), "layer_3/resid_post"
    got = tiny.run(PROMPT, capture=["layer_3/resid_mid", site], edits={"layer_3/mlp_out": lambda v, _: 0 * v}).values
    np.testing.assert_array_equal(got[site], got["layer_3/resid_mid"])
    assert np.abs(logits - tiny.run(PROMPT).logits).max() > 1e-2
    attribution = attribute_by_gradients(tiny, tokens)
    # The derivative along the activation itself, by a small step.
    scale = lambda a: tiny.run(tokens, edits={SITE: lambda v, _, a=a: a * v}).logits[0, -1, 70]  # noqa: E731
    np.testing.assert_allclose(attribution.sum(), (scale(1.01) - scale(0.99)) / 0.02, rtol=0.05, atol=1e-2)


@pytest.mark.slow
def test_a_heat_map_of_patches(tiny):
    grid = patch_from_one_prompt_into_another(tiny)
    assert grid.shape == (6, 4 + 1)
    sea, king = (tiny.tokenizer.encode(word)[1] for word in ("sea", "king"))
    clean, corrupt = (tiny.run(text).logits[0, -1] for text in ("And the sea was", "And the king was"))
    np.testing.assert_allclose(grid[-1, -1], clean[sea] - clean[king], atol=1e-3)  # all that the last token reads
    np.testing.assert_allclose(grid[:, :2], corrupt[sea] - corrupt[king], atol=1e-3)  # the same words in both


@pytest.mark.slow
def test_latents_at_work(tiny, autoencoder, tokens, tmp_path):
    found = latents_that_fire(autoencoder, tiny)
    x = np.asarray(tiny.run(PROMPT, capture=SITE).values[SITE][0])
    f = np.where((z := x @ autoencoder.W_enc) > 1, z, 0)[1:]
    assert [latent for latent, _ in found] == np.argsort(-f.max(axis=0), kind="stable")[:10].tolist()
    pieces = [tiny.tokenizer.piece(int(i)) for i in tokens[0, 1:]]
    assert [words for _, words in found] == [tuple(pieces[t] for t in np.flatnonzero(f[:, z])) for z, _ in found]
    delta = splice_and_measure_the_loss(autoencoder, tiny, tokens)
    assert np.isfinite(delta) and delta > 0.1  # random weights reconstruct nothing
    steered, plain = steer_generation(autoencoder, tiny), gemma.generate(tiny, "The sea", max_new_tokens=3)
    assert steered.tokens.shape == plain.tokens.shape
    folder = tmp_path / "gemma-scope" / "layer_3" / "width_256" / "average_l0_20"
    sae.save(autoencoder, folder)
    text = sae.text.as_sequences(np.repeat(tokens, 2, axis=0), tiny)
    metrics = load_a_published_autoencoder_and_evaluate_it(folder, tiny, text)
    assert metrics.l0 == pytest.approx((f > 0).sum() / len(f)) and metrics.tokens == 2 * len(f)


@pytest.mark.slow
def test_training(tiny, path):
    trained, metrics = train_from_a_text_file(tiny, path)
    assert trained.info.site == SITE and 0 < metrics.documents < 15
    array = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)
    own = train_on_ones_own_array(array)
    assert own.W_dec.shape == (32, 16) and jax.numpy.isfinite(own(array)).all()
