"""`--strength=3max`, and the records of the largest activations that it multiplies."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

import sae
from experiments import evaluate, generate
from sae.autoencoder import Largest
from sae.text import Document, cut
from tests.sae.examples import SITE, autoencoder_for


def four(tokens=None):
    """An autoencoder with four latents, and with a record over some tokens."""
    record = None if tokens is None else Largest(np.float32([0.0, 2.5, 1e-3, 40.0]), tokens)
    W, zeros = jnp.ones((3, 4)), jnp.zeros(4)
    return sae.JumpReLU(W, zeros, W.T, jnp.zeros(3), zeros, largest=record)


@pytest.fixture
def parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize(
    ("text", "want"),
    [("20", 20.0), ("-3.5", -3.5), ("1e2", 100.0), ("3max", 7.5), ("0.5max", 1.25), ("-1max", -2.5), ("max", 2.5)],
)
def test_a_strength_is_a_number_or_a_multiple_of_the_largest_activation(text, want):
    assert generate.strength_of(text, four(7), 1, "here") == pytest.approx(want)


@pytest.mark.parametrize("text", ["", "three", "3maxi", "nan", "infmax", "3 x max", "max3", " 3"])
def test_another_strength_is_refused(text):
    with pytest.raises(ValueError, match=r"--strength takes a number in raw units or, such as 3max, .*; got '"):
        generate.strength_of(text, four(7), 1, "here")


def test_without_a_record_an_error_says_what_makes_one(parsed, tmp_path):
    assert generate.strength_of("20", four(), 1, tmp_path) == 20.0
    with pytest.raises(ValueError, match=rf"evaluate --model=gemma2-tiny --saes_dir={tmp_path}` records them; or give"):
        generate.strength_of("3max", four(), 1, tmp_path)
    with pytest.raises(ValueError, match=r"latent 0 of here fired on none of the 1,234 tokens of its record"):
        generate.strength_of("3max", four(1234), 0, "here")


def test_steering_adds_three_times_the_largest_activation(tiny, tmp_path):
    autoencoder = autoencoder_for(tiny, 192)
    record = Largest(np.arange(576, dtype=np.float32), 7)
    sae.save(dataclasses.replace(autoencoder, largest=record), tmp_path)
    title, edits = generate.steering(tiny, tmp_path, 17, "3max")
    assert title == (
        "with 3max of latent 17: 3 x 17 = 51 in raw units; 17 is its largest activation over the 7 tokens of its record"
    )
    assert generate.steering(tiny, tmp_path, 17, "20")[0] == "with 20 of latent 17 in raw units"
    (edit,) = edits.bind(jnp.array([[2, 70]]), jnp.array([[0, 1]])).functions(SITE)
    moved = edit(jnp.ones((1, 2, 192)), None)
    np.testing.assert_allclose(
        moved[0], np.stack([np.ones(192), 1 + 51 * np.asarray(autoencoder.W_dec[17])]), rtol=1e-5
    )


def test_evaluating_records_what_is_recorded_nowhere(tiny, tmp_path):
    """Once: the record of a training stays, and figures without any record are measured again."""
    text = cut([Document(f"d{i}", "s", "And the king said unto him, Go. " * 3) for i in range(3)], tiny.tokenizer, 24)
    trained, bare_one = (tmp_path / name for name in ("trained", "bare"))
    sae.save(dataclasses.replace(autoencoder_for(tiny, 192), largest=Largest(np.ones(576), 5)), trained)
    sae.save(autoencoder_for(tiny, 192), bare_one)
    first = evaluate.evaluate(tiny, [trained, bare_one], text)
    assert sae.load(trained).largest.tokens == 5
    record = sae.load(bare_one).largest
    assert record == first[1].largest and record.tokens == first[1].tokens
    dead = (record.values == 0).sum()
    assert first[1].dead == dead and 0 < dead < 576
    again = evaluate.evaluate(tiny, [trained, bare_one], text)
    assert again == first and again[1].largest is None  # from metrics.json
    (bare_one / "largest.npz").unlink()
    assert evaluate.evaluate(tiny, [bare_one], text)[0].largest == record == sae.load(bare_one).largest
