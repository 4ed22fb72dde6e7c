"""`sae.evaluate`: how faithful an autoencoder is, in the units of the raw activations (arXiv 2408.05147, section 4).

What training left out (BOS, EOS, padding) is left out here by the same rule: such positions keep their own activation
when the reconstruction is spliced in, and count in no figure.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gemma
import mishax_lite
from sae.autoencoder import JumpReLU
from sae.harvesting import activations_at
from sae.text import is_text

BATCH = 16


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What `evaluate` found.

    Attributes:
      site: where the autoencoder was spliced in.
      tokens: text tokens seen; predictions: next-token predictions that the losses are means of (from text, to text).
      l0: mean number of active latents per token.
      fvu: sum ||x - x^||^2 / sum ||x - mean(x)||^2, the mean per dimension over all tokens seen.
      loss, loss_spliced, loss_zero: next-token loss in nats, clean, with x^ in x's place, with zero in x's place.
      delta_loss: loss_spliced - loss.
      loss_recovered: (loss_zero - loss_spliced) / (loss_zero - loss).
      dead: latents that fired on none of the tokens; width: of all.
    """

    site: str
    tokens: int
    predictions: int
    l0: float
    fvu: float
    loss: float
    loss_spliced: float
    loss_zero: float
    delta_loss: float
    loss_recovered: float
    dead: int
    width: int


def evaluate(
    autoencoder: JumpReLU,
    model: gemma.Model,
    tokens: np.ndarray,
    site: str | None = None,
    *,
    progress: Callable[..., Iterable] = lambda batches, **_: batches,
) -> Metrics:
    """Measures an autoencoder on token sequences.

    Args:
      autoencoder: on raw activations.
      model: with its tokenizer, which says which tokens are special.
      tokens: [S, T] int32, each sequence begun by BOS, padded at the end.
      site: where it belongs; by default what its `info` says.
      progress: called with the batches to come, and `total` and `desc`, as tqdm is.

    Raises:
      ValueError: for an autoencoder of another model or width, a site that is not known, or tokens without text.
    """
    site = _site_of(autoencoder, model, site)
    special = model.tokenizer.special_ids
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or not is_text(tokens, special).any():
        raise ValueError(f"evaluation needs token sequences [S, T] with text in them, got shape {list(tokens.shape)}")
    sums: dict[str, np.ndarray] = {}
    # `info` is static: without it, all autoencoders of a site and width share one compiled program.
    autoencoder = dataclasses.replace(autoencoder, info=None)
    # Sums of squares around a typical value lose nothing where the mean is far larger than the spread.
    centre = _centre(model, tokens[:BATCH], site, special)
    for start in progress(range(0, len(tokens), BATCH), total=-(-len(tokens) // BATCH), desc=f"evaluate {site}"):
        batch = np.full((BATCH, tokens.shape[1]), model.tokenizer.pad, np.int32)
        batch[: len(tokens) - start] = tokens[start : start + BATCH]
        part = jax.device_get(_batch_sums(autoencoder, model, batch, is_text(batch, special), centre, site))
        for name, value in part.items():
            sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)
    return summarise(sums, site)


def summarise(sums: dict[str, np.ndarray], site: str) -> Metrics:
    """The metrics from sums over all tokens (see `_batch_sums` for what they are)."""
    n, predictions = sums["tokens"], sums["predictions"]
    variation = sums["squares"] - np.square(sums["shifted"]).sum() / n
    clean, spliced, zero = (sums[name] / predictions for name in ("loss", "loss_spliced", "loss_zero"))
    return Metrics(
        site=site,
        tokens=int(n),
        predictions=int(predictions),
        l0=float(sums["active"].sum() / n),
        fvu=float(sums["errors"] / variation),
        loss=float(clean),
        loss_spliced=float(spliced),
        loss_zero=float(zero),
        delta_loss=float(spliced - clean),
        loss_recovered=float((zero - spliced) / (zero - clean)),
        dead=int((sums["active"] == 0).sum()),
        width=len(sums["active"]),
    )


@functools.partial(jax.jit, static_argnames="site")
def _batch_sums(autoencoder, model, tokens, text, centre, site):
    """Sums over the text tokens of a batch [B, T]. One program for the three forward passes: they share all layers
    below the site, and the compiler computes those once."""

    def splice(replace):
        def edit(value, _):
            x = value.reshape(*tokens.shape, -1)
            return jnp.where(text[..., None], replace(x), x).astype(value.dtype).reshape(value.shape)

        return edit

    logits, captured = mishax_lite.capture(model.apply, [site])(tokens)
    spliced = mishax_lite.edit(model.apply, {site: splice(autoencoder)})(tokens)
    zeroed = mishax_lite.edit(model.apply, {site: splice(jnp.zeros_like)})(tokens)
    predicted = (text[:, :-1] & text[:, 1:]).astype(jnp.float32)

    def loss(logits):
        return (optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]) * predicted).sum()

    x = captured[site].reshape(*tokens.shape, -1)
    f = autoencoder.encode(x)
    shifted = jnp.where(text[..., None], x - centre, 0.0)
    return {
        "tokens": text.sum(),
        "predictions": predicted.sum(),
        "active": ((f > 0) & text[..., None]).sum(axis=(0, 1)),
        "errors": jnp.where(text[..., None], jnp.square(autoencoder(x) - x), 0.0).sum(),
        "shifted": shifted.sum(axis=(0, 1)),
        "squares": jnp.square(shifted).sum(),
        "loss": loss(logits),
        "loss_spliced": loss(spliced),
        "loss_zero": loss(zeroed),
    }


def _centre(model, tokens, site, special) -> np.ndarray:
    x = np.asarray(activations_at(model, jnp.asarray(tokens), (site,))[site])
    text = is_text(tokens, special)
    return x[text].mean(axis=0) if text.any() else np.zeros(x.shape[-1], np.float32)


def _site_of(autoencoder: JumpReLU, model: gemma.Model, site: str | None) -> str:
    info = autoencoder.info
    if model.tokenizer is None:
        raise ValueError(f"{model.config.name} was loaded without a tokenizer, so its special tokens are unknown")
    if site is None and info is None:
        raise ValueError("this autoencoder does not say where it belongs: name the site")
    if info is not None and info.model != model.config.name:
        raise ValueError(f"this autoencoder was trained on {info.model}, the model given is {model.config.name}")
    site = site or info.site
    width = int(np.prod(gemma.sites.token_shape(model.config, site)))
    if autoencoder.W_enc.shape[0] != width or autoencoder.b_dec.shape[0] != width:
        raise ValueError(
            f"{site} of {model.config.name} is {width} wide, the autoencoder takes {autoencoder.W_enc.shape[0]} "
            f"and gives {autoencoder.b_dec.shape[0]}"
        )
    return site
