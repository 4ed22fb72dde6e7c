"""Sampling against the model run anew on the whole sequence for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
from gemma import sampling
from tests import compilations

PROMPTS = ["In the beginning God created", "The king", "And it came to pass in the days of Ahasuerus, that"]
NEW = 20


def uncached(model, prompt, count, edits=None):
    """Greedy, one whole forward pass for each token; `edits` as a function of positions."""
    apply = model.apply if edits is None else lambda t: mishax_lite.edit(model.apply, edits(positions))(t)
    length = len(prompt) + count
    positions = np.arange(length)[None]
    tokens = np.zeros((1, length), np.int32)
    tokens[0, : len(prompt)] = prompt
    step = jax.jit(apply)
    for t in range(len(prompt), length):
        tokens[0, t] = np.argmax(step(tokens)[0, t - 1])
    return tokens[0, len(prompt) :]


@pytest.fixture(scope="module")
def direction(tiny):
    """Something to steer with: how the text after one word differs from that after another, at layer 3."""
    ids = np.array([tiny.tokenizer.encode(text)[-1] for text in ("sea", "king")])[:, None]
    _, values = mishax_lite.capture(tiny.apply, ["layer_3/resid_post"])(np.insert(ids, 0, tiny.tokenizer.bos, axis=1))
    one, other = values["layer_3/resid_post"][:, -1]
    return 2 * (one - other)


def steer(direction, value, site):
    return value + direction


def steering(direction, positions):
    """Everywhere but at BOS."""
    moved = jnp.where(positions[..., None] > 0, direction, 0.0)
    return {"layer_3/resid_post": lambda value, site: value + moved}


@pytest.mark.parametrize("attention", ["plain", pytest.param("fused", marks=pytest.mark.slow)])
def test_greedy_in_a_batch_of_unequal_prompts_equals_each_alone_without_a_cache(tiny, attention):
    """80 tokens and more are past the window of 64, so the ring of the local layers goes round."""
    new = gemma.generate(tiny, PROMPTS, max_new_tokens=80, stop_tokens=(), attention=attention).tokens
    for prompt, row in zip(PROMPTS, new, strict=True):
        np.testing.assert_array_equal(row, uncached(tiny, tiny.tokenizer.encode(prompt), 80))


@pytest.mark.slow
def test_a_prompt_longer_than_the_window(tiny):
    ids = tiny.tokenizer.encode(" ".join(PROMPTS * 8))
    assert len(ids) > 2 * tiny.config.window
    np.testing.assert_array_equal(
        gemma.generate(tiny, [ids], max_new_tokens=NEW, stop_tokens=()).tokens[0], uncached(tiny, ids, NEW)
    )


@pytest.mark.slow
def test_steering_changes_the_text_and_equals_the_uncached_computation(tiny, direction):
    plain = gemma.generate(tiny, PROMPTS, max_new_tokens=NEW, stop_tokens=())
    edits = jax.tree_util.Partial(steering, direction)
    steered = gemma.generate(tiny, PROMPTS, max_new_tokens=NEW, stop_tokens=(), edits=edits)
    assert all(a != b for a, b in zip(plain.texts, steered.texts, strict=True))
    for prompt, row in zip(PROMPTS, steered.tokens, strict=True):
        want = uncached(tiny, tiny.tokenizer.encode(prompt), NEW, lambda positions: steering(direction, positions))
        np.testing.assert_array_equal(row, want)


def test_edits_as_a_dict_apply_in_its_order(tiny):
    set_to = lambda constant: lambda value, site: jnp.full_like(value, constant)  # noqa: E731
    last = {"*_3/mlp_out": set_to(1.0), "layer_3/mlp_*ut": set_to(0.0)}
    first = {"layer_3/mlp_out": set_to(0.0)}
    run = lambda edits: gemma.generate(tiny, PROMPTS, max_new_tokens=4, edits=edits).tokens  # noqa: E731
    np.testing.assert_array_equal(run(last), run(first))


def test_one_compilation_for_each_shape(tiny, direction):
    programs = []
    for k, (prompts, new) in enumerate([(PROMPTS[:2], 20), (PROMPTS[1::-1], 23), (["The sea", "A"], 17)]):
        edits = {"layer_3/resid_post": jax.tree_util.Partial(steer, k * direction)}
        with compilations.counted() as names:
            gemma.generate(
                tiny, prompts, max_new_tokens=new, edits=edits, temperature=1 + k, top_p=0.5 + k / 10, seed=k
            )
        programs.append(names.count("decode"))
    assert programs == [1, 0, 0]


def test_a_stop_token_ends_one_sequence_and_not_the_others(tiny):
    free = gemma.generate(tiny, PROMPTS, max_new_tokens=NEW, stop_tokens=()).tokens
    stop = int(free[0, 2])
    assert stop not in free[0, :2]
    stopped = gemma.generate(tiny, PROMPTS, max_new_tokens=NEW, stop_tokens=[stop])
    np.testing.assert_array_equal(stopped.tokens[0], [*free[0, :3], *[tiny.tokenizer.pad] * (NEW - 3)])
    assert stopped.texts[0] == tiny.tokenizer.decode(free[0, :2])
    for row, want in zip(stopped.tokens[1:], free[1:], strict=True):
        end = np.flatnonzero(want == stop)
        end = end[0] + 1 if end.size else NEW
        np.testing.assert_array_equal(row[:end], want[:end])


def test_a_seed_gives_the_same_tokens_whatever_the_other_prompts(tiny):
    draw = lambda prompts, seed: gemma.generate(tiny, prompts, max_new_tokens=NEW, temperature=1.0, seed=seed).tokens  # noqa: E731
    first = draw(PROMPTS, 7)
    np.testing.assert_array_equal(first, draw(PROMPTS, 7))
    assert (first != draw(PROMPTS, 8)).any()
    np.testing.assert_array_equal(first[0], draw([PROMPTS[0], "An altogether different one"], 7)[0])


def test_samples_have_the_distribution_that_was_asked_for():
    probabilities = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
    shuffled = np.array([3, 0, 4, 2, 1])  # the token with the k-th greatest probability
    logits = np.zeros(5, np.float32)
    logits[shuffled] = np.log(probabilities)
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)

    def shares(temperature=1.0, top_k=None, top_p=None):
        batch = jnp.broadcast_to(jnp.asarray(logits), (draws, 5))
        drawn = jax.jit(sampling.sample, static_argnums=3)(batch, keys, temperature, top_k, top_p)
        return np.bincount(drawn, minlength=5)[shuffled] / draws

    cases = [
        (shares(), probabilities),
        (shares(temperature=0.5), probabilities**2 / (probabilities**2).sum()),
        (shares(top_k=2), np.array([4, 3, 0, 0, 0]) / 7),
        (shares(top_p=jnp.float32(0.65)), np.array([4, 3, 0, 0, 0]) / 7),
        (shares(top_p=jnp.float32(0.75)), np.array([4, 3, 2, 0, 0]) / 9),
        (shares(top_k=3, top_p=jnp.float32(0.5)), np.array([4, 3, 0, 0, 0]) / 7),
        (shares(top_p=jnp.float32(0.01)), np.array([1, 0, 0, 0, 0])),
    ]
    for got, want in cases:
        np.testing.assert_allclose(got, want, atol=4 * 0.5 / np.sqrt(draws))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[]]}, "prompt 0 is empty"),
        ({"prompts": [[2, 4096]]}, "prompt 0 has token 4096, the vocabulary is 0 to 4095"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"top_k": 5000}, "top_k must be between 1 and the vocabulary's 4096"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"edits": {"layer_9/mlp_out": lambda v, s: v}}, "no site matches 'layer_9/mlp_out'"),
        ({"attention": "flash"}, "attention is 'plain' or 'fused'"),
    ],
)
def test_what_cannot_be_done_is_refused(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        gemma.generate(tiny, **{"prompts": PROMPTS, "max_new_tokens": 3, **change})


def test_without_a_tokenizer_prompts_are_token_ids(tiny):
    bare = dataclasses.replace(tiny, tokenizer=None)
    ids = [tiny.tokenizer.encode(prompt) for prompt in PROMPTS]
    made = gemma.generate(bare, ids, max_new_tokens=5)
    assert made.texts is None
    np.testing.assert_array_equal(made.tokens, gemma.generate(tiny, PROMPTS, max_new_tokens=5).tokens)
    with pytest.raises(ValueError, match="without a tokenizer"):
        gemma.generate(bare, PROMPTS)


@pytest.mark.parametrize("shape", [(4, 2), pytest.param((1, 8), marks=pytest.mark.slow)])
def test_on_eight_devices(tiny, meshes, shape):
    """A step waits for the last one on the devices, so one program does all: no step is in flight beside another."""
    spread = gemma.load("gemma2-tiny", mesh=meshes(*shape))
    prompts = [*PROMPTS, "And the"]
    want = gemma.generate(tiny, prompts, max_new_tokens=NEW, temperature=0.7, top_k=40, seed=1)
    np.testing.assert_array_equal(
        gemma.generate(spread, prompts, max_new_tokens=NEW, temperature=0.7, top_k=40, seed=1).tokens, want.tokens
    )
    if shape[0] > 1:
        with pytest.raises(ValueError, match="3 prompts cannot be dealt out evenly over the 4 devices"):
            gemma.generate(spread, PROMPTS)
