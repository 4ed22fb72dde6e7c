"""The real thing: Gemma 3 270M out of a pip package, against what transformers computes from the same file.

tests/data/gemma3_270m_expected.npz has, for three texts (English, code, several scripts), what `transformers` got in
float32 from this GGUF file: token ids, top-10 logits, losses, hidden states, and 24 tokens generated greedily.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite

TEXTS = range(3)


@pytest.fixture(scope="module")
def expected():
    with np.load(Path(__file__).parents[1] / "data" / "gemma3_270m_expected.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def model():
    return gemma.load("gemma3-270m")


@pytest.mark.slow
def test_it_is_the_preset(model):
    assert model.config == gemma.config("gemma3-270m")


@pytest.mark.parametrize("i", TEXTS)
def test_token_ids_are_identical(model, expected, i):
    text = str(expected[f"text_{i}"])
    assert model.tokenizer.encode(text) == expected[f"tokens_{i}"].tolist()
    assert model.tokenizer.decode(expected[f"tokens_{i}"]) == text


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<start_of_turn>user\nHi<end_of_turn>\n", [2, 105, 2364, 107, 10979, 106, 107]),
        ("Hi<end_of_turn>Hi", [2, 10979, 106, 10979]),
        ("<bos>Hi<eos>", [2, 2, 10979, 1]),
    ],
)
def test_a_mark_that_a_text_spells_out_is_one_id(model, text, ids):
    """As in transformers 5, for Gemma 3's tokenizer.json."""
    assert model.tokenizer.encode(text) == ids


@pytest.mark.slow
def test_logits_losses_hidden_states_and_greedy_continuations(model, expected):
    """In one pass over the three texts and over the three continuations, as each token of a greedy continuation is
    the argmax after those before it."""
    rows = [expected[f"tokens_{i}"] for i in TEXTS] + [expected[f"greedy_{i}"] for i in TEXTS]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)  # filled up at the end, where nothing looks back from
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    sites = ["embed", *(f"layer_{i}/resid_post" for i in range(model.config.num_layers - 1)), "final_norm"]
    logits, values = jax.jit(mishax_lite.capture(model.apply, sites))(tokens)
    for i in TEXTS:
        T = len(expected[f"tokens_{i}"])
        check_logits(np.asarray(logits[i, :T], np.float64), expected, i)
        norms, first = expected[f"hidden_norms_{i}"], expected[f"hidden_first16_{i}"]
        assert len(sites) == len(norms) == 19
        for site, norm, entries in zip(sites, norms, first, strict=True):
            value = np.asarray(values[site][i, :T], np.float64)
            np.testing.assert_allclose(np.linalg.norm(value, axis=-1), norm, rtol=1e-3, err_msg=site)
            np.testing.assert_allclose(value[:, :16], entries, rtol=0, atol=1e-3 * norm.max(), err_msg=site)
        want = expected[f"greedy_{i}"]
        start = len(want) - 24
        np.testing.assert_array_equal(want[:start], expected[f"tokens_{i}"][:start])
        best = np.argmax(logits[len(TEXTS) + i], axis=-1)
        np.testing.assert_array_equal(best[start - 1 : len(want) - 1], want[start:])


def check_logits(logits, expected, i):
    """[T, V] in float64: the ten best, which is the best, and the loss of every token but the first."""
    top, tokens = expected[f"top_tokens_{i}"], expected[f"tokens_{i}"]
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), top[:, 0])
    np.testing.assert_allclose(np.take_along_axis(logits, top, -1), expected[f"top_logits_{i}"], rtol=0, atol=5e-3)
    peak = logits.max(axis=-1)
    normaliser = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=-1))
    losses = normaliser[:-1] - logits[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(losses, expected[f"nll_{i}"], rtol=0, atol=5e-4)


@pytest.mark.slow
def test_greedy_continuations_with_a_cache(model, expected):
    """Three prompts of unequal length in one batch."""
    prompts = [expected[f"greedy_{i}"][:-24].tolist() for i in TEXTS]
    made = gemma.generate(model, prompts, max_new_tokens=24, stop_tokens=())
    for i in TEXTS:
        np.testing.assert_array_equal(made.tokens[i], expected[f"greedy_{i}"][-24:])


@pytest.mark.slow
def test_steering_a_latents_direction_equals_the_uncached_computation(model):
    """What `experiments.generate --sae` does: a vector added at one layer at every token but BOS."""
    prompt = model.tokenizer.encode("My favourite place in the world is")
    direction = jax.random.normal(jax.random.key(0), (model.config.d_model,))
    direction *= 3000 / jnp.linalg.norm(direction)  # residual streams here have norms of thousands

    def steer(direction, positions):
        moved = jnp.where(positions[..., None] > 0, direction, 0.0)
        return {"layer_9/resid_post": lambda value, site: value + moved}

    plain = gemma.generate(model, [prompt], max_new_tokens=12, stop_tokens=())
    steered = gemma.generate(
        model, [prompt], max_new_tokens=12, stop_tokens=(), edits=jax.tree_util.Partial(steer, direction)
    )
    assert plain.texts != steered.texts
    # As above, one pass over the steered text says what step by step says.
    tokens = np.array([[*prompt, *steered.tokens[0]]])
    edits = steer(direction, np.arange(tokens.shape[1])[None])
    logits = jax.jit(lambda m, t: mishax_lite.edit(m.apply, edits)(t))(model, tokens)
    best = np.argmax(logits[0], axis=-1)[len(prompt) - 1 : -1]
    np.testing.assert_array_equal(best, steered.tokens[0])
