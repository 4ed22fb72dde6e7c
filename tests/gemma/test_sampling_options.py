"""`generate`'s further options: the rules of drawing against numpy, the rest against the model run anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
from gemma.drawing import Rules, penalise

DRAWS = 20_000
LOGITS = np.array([2.0, -1.0, 0.5, 1.5, 0.0, -2.0], np.float32)
NEW = 12


@pytest.fixture(scope="module")
def prompt(golden):
    return golden[1]["tokens"][0][:6].tolist()


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def expected(temperature=1.0, top_k=None, top_p=None, min_p=None, penalty=None, seen=()):
    """The probabilities by transformers' order: penalty, temperature, top_k, top_p, min_p."""
    logits = LOGITS.astype(np.float64)
    for token in seen if penalty else ():
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    logits = logits / temperature
    order = np.argsort(-logits)
    keep = np.ones(len(logits), bool)
    if top_k:
        keep[order[top_k:]] = False
    if top_p:
        p = softmax(np.where(keep, logits, -np.inf))
        keep[order[1:]] &= np.cumsum(p[order])[:-1] < top_p
    if min_p:
        p = softmax(np.where(keep, logits, -np.inf))
        keep &= p >= min_p * p.max()
    return softmax(np.where(keep, logits, -np.inf))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"min_p": 0.2, "temperature": 3.0},
        {"min_p": 1.0},
        {"min_p": 0.3, "top_k": 5, "top_p": 0.95},
        {"penalty": 1.8, "seen": (0, 1, 3)},
        {"penalty": 0.6, "seen": (2, 5)},
        {"penalty": 2.0, "seen": (0, 3), "min_p": 0.4, "top_k": 4, "temperature": 1.3},
    ],
)
def test_draws_have_the_distribution_of_numpy(options):
    number = {name: jnp.float32(options[name]) for name in ("top_p", "min_p", "penalty") if name in options}
    rules = Rules(jnp.float32(options.get("temperature", 1.0)), top_k=options.get("top_k"), **number)
    seen = jnp.zeros((DRAWS, 6), bool).at[:, list(options.get("seen", ()))].set(True)
    keys = jax.random.split(jax.random.key(3), DRAWS)
    drawn = jax.jit(lambda rules, *rest: rules.draw(*rest))(rules, jnp.tile(LOGITS, (DRAWS, 1)), keys, seen)
    shares, want = np.bincount(drawn, minlength=6) / DRAWS, expected(**options)
    assert ((shares == 0) == (want == 0)).all()
    np.testing.assert_allclose(shares, want, atol=4 * 0.5 / np.sqrt(DRAWS))


def test_the_penalty_is_ctrls():
    penalised = penalise(jnp.array([[2.0, -2.0, 1.0, 0.0]]), jnp.array([[True, True, False, True]]), jnp.float32(4.0))
    np.testing.assert_array_equal(penalised, [[0.5, -8.0, 1.0, 0.0]])


def anew(model, prompt, penalty):
    """Greedy with a penalty, and log-probabilities, by whole forward passes and numpy."""
    tokens, scores = list(prompt), []
    apply = jax.jit(model.apply)
    for _ in range(NEW):
        # Longer than the text, as causal models do not mind: one shape, one compilation.
        padded = np.zeros((1, len(prompt) + NEW), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = np.asarray(apply(padded))[0, len(tokens) - 1].astype(np.float64)
        log_p = np.log(softmax(logits))
        for token in set(tokens):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        tokens.append(int(np.argmax(logits)))
        scores.append(log_p[tokens[-1]])
    return tokens[len(prompt) :], scores


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_penalty_and_log_probabilities_are_those_of_the_model_run_anew(golden, prompt, penalty):
    model = golden[0]
    # Of two prompts, of unequal lengths: padding is not seen.
    made = gemma.generate(
        model,
        [prompt, prompt[:3]],
        max_new_tokens=NEW,
        repetition_penalty=penalty,
        log_probabilities=True,
        stop_tokens=(),
    )
    for row, start in enumerate((prompt, prompt[:3])):
        tokens, scores = anew(model, start, penalty)
        assert made.tokens[row].tolist() == tokens
        np.testing.assert_allclose(made.log_probabilities[row], scores, atol=1e-4)


def test_log_probabilities_of_padding_are_nan(golden, prompt):
    free = gemma.generate(golden[0], [prompt], max_new_tokens=NEW, stop_tokens=()).tokens[0].tolist()
    made = gemma.generate(golden[0], [prompt], max_new_tokens=NEW, stop_tokens=[free[4]], log_probabilities=True)
    end = free.index(free[4]) + 1
    assert np.isfinite(made.log_probabilities[0, :end]).all() and np.isnan(made.log_probabilities[0, end:]).all()


@pytest.mark.slow
def test_several_samples_a_prompt(golden, prompt):
    """The first is the one there is alone, those of a prompt differ, and more of them change none."""
    options = {"max_new_tokens": NEW, "temperature": 1.5, "seed": 5, "stop_tokens": ()}

    def draw(samples):
        return gemma.generate(golden[0], [prompt, prompt[:3]], samples=samples, **options).tokens

    one, three = draw(1), draw(3)
    assert three.shape == (6, NEW) and len({tuple(row) for row in three.tolist()}) == 6
    np.testing.assert_array_equal(three[::3], one)
    np.testing.assert_array_equal(three[[0, 1, 3, 4]], draw(2))


@pytest.mark.slow
def test_samples_have_the_models_distribution(golden, prompt):
    """The first token of many samples, against the softmax of the model's logits."""
    made = gemma.generate(golden[0], [prompt], max_new_tokens=1, temperature=1.0, samples=2000, stop_tokens=())
    want = softmax(np.asarray(golden[0].apply(np.array([prompt])))[0, -1])
    shares = np.bincount(made.tokens[:, 0], minlength=len(want)) / 2000
    np.testing.assert_allclose(shares, want, atol=4 * 0.5 / np.sqrt(2000))


@pytest.fixture(scope="module")
def whole(tiny):
    """Two texts, drawn."""
    return gemma.generate(tiny, **DRAWN)


DRAWN = {"prompts": ["The sea", "In the beginning God"], "max_new_tokens": NEW, "temperature": 1.5, "seed": 3}


def test_streamed_pieces_join_to_the_texts(tiny, whole):
    flow = gemma.generate(tiny, **DRAWN, stream=True)
    assert flow.generation is None
    pieces = list(flow)
    called = []
    made = gemma.generate(tiny, **DRAWN, stream=called.append)
    assert pieces == called and len(pieces) > NEW
    for generation in (flow.generation, made):
        assert generation.texts == whole.texts
        np.testing.assert_array_equal(generation.tokens, whole.tokens)
    for row in range(2):
        assert "".join(piece for piece in pieces if piece.row == row) == whole.texts[row]
        tokens = [token for piece in pieces if piece.row == row for token in piece.tokens]
        assert tokens == whole.tokens[row, : len(tokens)].tolist()


def test_a_stop_string_ends_one_text_and_not_the_other(tiny, whole):
    text = whole.texts[0]
    start = len(tiny.tokenizer.decode(whole.tokens[0, :4])) - 1  # within a token
    stop = text[start : start + 3]
    made = gemma.generate(tiny, **DRAWN, stop=stop, log_probabilities=True)
    assert made.texts[0] == text[: text.index(stop)] and stop in tiny.tokenizer.decode(made.tokens[0])
    count = np.flatnonzero(made.tokens[0])[-1] + 1
    assert made.tokens[0, :count].tolist() == whole.tokens[0, :count].tolist() and count < NEW
    assert np.isfinite(made.log_probabilities[0, :count]).all() and np.isnan(made.log_probabilities[0, count:]).all()
    assert made.texts[1] == whole.texts[1][: whole.texts[1].find(stop) if stop in whole.texts[1] else None]


def test_tokens_and_texts_are_a_pair(golden, prompt):
    tokens, texts = gemma.generate(golden[0], [prompt], max_new_tokens=np.int64(NEW), stop_tokens=())
    assert tokens.shape == (1, NEW) and texts is None


@pytest.mark.slow
def test_numpy_parameters(golden, prompt):
    model = golden[0]
    other = gemma.Model(jax.tree.map(np.asarray, model.params), model.config)
    np.testing.assert_array_equal(*(gemma.generate(m, [prompt], max_new_tokens=3).tokens for m in (model, other)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prompts": [2, 10, 11]},
            r"prompts are a text, or a list of texts or of lists of token ids; got \[2, 10, 11\]",
        ),
        ({"prompts": np.array([2, 10])}, "prompts are a text, or a list"),
        ({"prompts": "a\ud800b"}, "lone surrogate"),
        ({"stop_tokens": 1}, "stop_tokens are several token ids"),
        ({"stop_tokens": [1.5]}, "stop_tokens are several token ids"),
        ({"stop": ""}, "stop is a text or several, none of them empty"),
        ({"stop": ["a", 3]}, "stop is a text or several"),
        ({"top_k": 40.0}, "top_k must be an integer, got 40.0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer, got 2.5"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"seed": 2**32 + 1}, r"seed must be below 2\^32, since JAX would take the lower bits alone, got 4294967297"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"min_p": 1.5}, "min_p must be at least 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"stream": "yes"}, "stream is True, for an iterator, or a function"),
    ],
)
def test_what_cannot_be_done_is_refused(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        gemma.generate(tiny, **{"prompts": "The", "max_new_tokens": 3, **change})


def test_stop_strings_need_a_tokenizer_and_no_jit(golden):
    with pytest.raises(ValueError, match=r"stop needs texts, and .* was loaded without a tokenizer"):
        gemma.generate(golden[0], [[2]], stop="a")
    with pytest.raises(ValueError, match=r"cannot be called inside jax\.jit"):
        jax.jit(lambda model: gemma.generate(model, [[2]], max_new_tokens=2).tokens)(golden[0])
