"""The measures by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mishax_lite
import sae
from sae.evaluation import fidelity
from sae.text import is_text
from tests.sae.examples import SITE, autoencoder_for, sequences


def test_figures_from_sums_by_hand():
    """Two tokens with activations (1, 3) and (5, 1), reconstructed as (1, 2) and (4, 1); latents on: {0}, {0, 2}."""
    sums = {
        "tokens": np.float64(2),
        "predictions": np.float64(4),
        "active": np.array([2.0, 0.0, 1.0]),
        "errors": np.float64(2),
        "shifted": np.array([6.0, 4.0]),  # around a centre of zero
        "squares": np.float64(36),
        "loss": np.float64(8),
        "loss_spliced": np.float64(10),
        "loss_zero": np.float64(16),
    }
    m = fidelity.summarise(sums, "s")
    # The mean is (3, 2); the variation (2² + 1²) + (2² + 1²) = 10.
    assert (m.l0, m.fvu, m.dead, m.width) == (1.5, pytest.approx(0.2), 1, 3)
    assert (m.loss, m.loss_spliced, m.loss_zero, m.delta_loss) == (2.0, 2.5, 4.0, 0.5)
    assert m.loss_recovered == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("site", "site_in"), [(SITE, SITE), ("layer_1/attn_z",) * 2, ("layer_2/mlp_out", "layer_2/mlp_in")]
)
def test_evaluate_equals_a_slow_and_simple_way(tiny, site, site_in):
    tokens, autoencoder = sequences(tiny), autoencoder_for(tiny, 192, site_in)
    autoencoder = dataclasses.replace(autoencoder, info=dataclasses.replace(autoencoder.info, site_out=site))
    if site != site_in:
        skip = 0.1 * jax.random.normal(jax.random.key(2), (192, 192))
        autoencoder = dataclasses.replace(autoencoder, W_skip=skip)
    text = is_text(tokens, tiny.tokenizer.special_ids)
    metrics = sae.evaluate(autoencoder, tiny, tokens)
    _, captured = mishax_lite.capture(tiny.apply, [site, site_in])(tokens)
    x, y = (np.asarray(captured[name], np.float64).reshape(*tokens.shape, -1) for name in (site_in, site))
    f = np.asarray(autoencoder.encode(x))
    error = np.asarray(autoencoder(x)) - y
    assert metrics.tokens == text.sum()
    assert metrics.l0 == pytest.approx((f[text] > 0).sum(axis=1).mean(), rel=1e-3)
    spread = y[text] - y[text].mean(axis=0)
    assert metrics.fvu == pytest.approx((error[text] ** 2).sum() / (spread**2).sum(), rel=1e-3)

    def loss(replacement):
        def put(value, _):
            kept = np.where(text[..., None], replacement, y).astype(np.float32)
            return jnp.asarray(kept).reshape(value.shape)

        edited = np.asarray(mishax_lite.edit(tiny.apply, {site: put})(tokens), np.float64)
        logp = edited - np.log(np.exp(edited).sum(axis=-1, keepdims=True))
        each = -np.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
        return each[text[:, :-1] & text[:, 1:]].mean()

    assert metrics.loss == pytest.approx(loss(y), rel=1e-4)
    assert metrics.loss_spliced == pytest.approx(loss(np.asarray(autoencoder(x))), rel=1e-4)
    assert metrics.loss_zero == pytest.approx(loss(np.zeros_like(y)), rel=1e-4)


def test_an_exact_autoencoder_loses_nothing(tiny):
    W = jnp.concatenate([jnp.eye(192), -jnp.eye(192)], axis=1)
    exact = sae.JumpReLU(W, jnp.zeros(384), W.T, jnp.zeros(192), jnp.zeros(384))
    metrics = sae.evaluate(exact, tiny, sequences(tiny), site=SITE)
    assert metrics.fvu < 1e-10
    assert abs(metrics.delta_loss) < 1e-5
    assert metrics.loss_recovered == pytest.approx(1.0, abs=1e-5)


def test_what_does_not_belong_is_refused(tiny):
    tokens = sequences(tiny, 2)
    with pytest.raises(ValueError, match=r"is 192 wide, the autoencoder takes 64"):
        sae.evaluate(autoencoder_for(tiny, 64), tiny, tokens)
    other = autoencoder_for(tiny, 192)
    object.__setattr__(other, "info", sae.Info("gemma2-2b", SITE, SITE))
    with pytest.raises(ValueError, match=r"trained on gemma2-2b, the model given is gemma2-tiny"):
        sae.evaluate(other, tiny, tokens)
    object.__setattr__(other, "info", None)
    with pytest.raises(ValueError, match=r"name the site"):
        sae.evaluate(other, tiny, tokens)
    with pytest.raises(ValueError, match=r"no site 'layer_2/resid_past'.*layer_2/resid_post"):
        sae.evaluate(other, tiny, tokens, site="layer_2/resid_past")
    transcoder = dataclasses.replace(
        autoencoder_for(tiny, 192), info=sae.Info("gemma2-tiny", "layer_2/mlp_in", "layer_2/mlp_out")
    )
    with pytest.raises(ValueError, match=r"from layer_2/mlp_in to layer_2/mlp_out; got layer_1/mlp_in"):
        sae.evaluate(transcoder, tiny, tokens, site="layer_1/mlp_in")
    with pytest.raises(ValueError, match=r"with text in them"):
        sae.evaluate(autoencoder_for(tiny, 192), tiny, np.zeros((2, 8), np.int32))
