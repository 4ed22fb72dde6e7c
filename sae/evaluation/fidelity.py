"""`sae.evaluate`: how faithful an autoencoder is, in the units of the raw activations (arXiv 2408.05147, section 4).

What training left out (BOS, EOS, padding, and attention sinks where it says so) is left out here by the same rule: such
positions keep their own activation when the reconstruction is spliced in, and count in no figure.
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
from gemma.compiling import jit_forward
from sae.autoencoder import JumpReLU
from sae.capturing import activations_at, captured_at, forward
from sae.evaluation.counting import Sinks, counted, sinks_of
from sae.text import batch_at, is_text

BATCH = 16  # sequences, unless their logits are too many
LOGITS = 2**27  # at most so many of them in memory at a time, for each of the losses


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What `evaluate` found.

    Attributes:
      site: where the autoencoder was spliced in; for a transcoder, where its output was.
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


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What evaluation needs to know of a model, a text and a site, whatever the autoencoder; from `baseline`.

    Attributes:
      centre: [A], a typical activation; sums of squares around it lose nothing where the mean is far larger than the
        spread. sums: over the text tokens: their number, the predictions', clean and zero-ablated losses.
    """

    site: str
    centre: np.ndarray
    sums: dict[str, np.ndarray]
    sinks: Sinks = ()


def evaluate(
    autoencoder: JumpReLU,
    model: gemma.Model,
    tokens: np.ndarray,
    site: str | None = None,
    *,
    known: Baseline | None = None,
    progress: Callable[..., Iterable] = lambda batches, **_: batches,
) -> Metrics:
    """Measures an autoencoder on token sequences.

    Args:
      autoencoder: on raw activations. A transcoder's output takes the place of its output site, and the FVU is of that.
      model: with its tokenizer, which says which tokens are special.
      tokens: [S, T] int32, each sequence begun by BOS, padded at the end.
      site: where it belongs; by default what its `info` says, which is the only place for a transcoder.
      known: what `baseline` found for the same model, tokens and site, where several autoencoders share it.
      progress: called with the batches to come, and `total` and `desc`, as tqdm is.

    Raises:
      ValueError: for an autoencoder of another model or width, a site that is not known, or tokens without text.
    """
    site_in, site = _sites_of(autoencoder, model, site)
    sinks = sinks_of(autoencoder.info)
    known = known or baseline(model, tokens, site, sinks=sinks, progress=progress)
    if (known.site, known.sinks) != (site, sinks):
        raise ValueError(
            f"the baseline is of {known.site} without sinks {known.sinks}, the autoencoder of {site} without {sinks}"
        )
    # `info` is static: without it, all autoencoders of a site and width share one compiled program.
    bare = dataclasses.replace(autoencoder, info=None)
    sums = _over_batches(
        lambda batch, text: _spliced_sums(bare, model, batch, text, known.centre, site_in, site),
        model,
        tokens,
        sinks,
        site,
        progress,
    )
    return summarise({**known.sums, **sums}, site)


def baseline(
    model: gemma.Model,
    tokens: np.ndarray,
    site: str,
    *,
    sinks: Sinks = (),
    progress: Callable[..., Iterable] = lambda batches, **_: batches,
) -> Baseline:
    """The clean loss and the loss with zero at a site, over token sequences [S, T]; `sinks` do not count.

    Raises:
      ValueError: for a site that the model has not, or tokens without text.
    """
    gemma.sites.token_shape(model.config, site)
    tokens = _checked(model, tokens)
    sums = _over_batches(
        lambda batch, text: _baseline_sums(model, batch, text, site),
        model,
        tokens,
        sinks,
        f"{site}, baseline",
        progress,
    )
    if not sums["predictions"]:
        raise ValueError("evaluation needs text tokens that follow text tokens, and these sequences have none")
    return Baseline(site, _centre(model, tokens[:BATCH], site), sums, sinks)


def _checked(model: gemma.Model, tokens: np.ndarray) -> np.ndarray:
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or not is_text(tokens, model.tokenizer.special_ids).any():
        raise ValueError(f"evaluation needs token sequences [S, T] with text in them, got shape {list(tokens.shape)}")
    return tokens


def _over_batches(sums_of, model, tokens, sinks, name, progress) -> dict[str, np.ndarray]:
    """Adds up, in float64, what a function of (tokens [B, T], text mask) gives for every batch."""
    sums: dict[str, np.ndarray] = {}
    tokens = _checked(model, tokens)
    size = max(1, min(BATCH, LOGITS // (tokens.shape[1] * model.config.vocab_size)))
    starts = range(0, len(tokens), size)
    for start in progress(starts, total=len(starts), desc=f"evaluate {name}"):
        batch = batch_at(tokens, start, size, model.tokenizer.pad)
        part = jax.device_get(sums_of(batch, counted(model, batch, sinks)))
        for key, value in part.items():
            sums[key] = sums.get(key, 0) + np.asarray(value, np.float64)
    return sums


def summarise(sums: dict[str, np.ndarray], site: str) -> Metrics:
    """The metrics from sums over all tokens (see `_baseline_sums` and `_spliced_sums` for what they are)."""
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


def _splice(made, tokens, text):
    """An edit that puts `made` (a number, or [B, T, A]) in the place of the activations of text tokens."""

    def edit(value, _):
        x = value.reshape(*tokens.shape, -1)
        return jnp.where(text[..., None], made, x).astype(value.dtype).reshape(value.shape)

    return edit


def _predicted(text):
    """[B, T-1]: the predictions that count, from a text token to a text token."""
    return (text[:, :-1] & text[:, 1:]).astype(jnp.float32)


def _loss_sum(logits, tokens, text):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return (losses * _predicted(text)).sum()


@functools.partial(jit_forward, static_argnames="site")
def _baseline_sums(model, tokens, text, site):
    zeroed = mishax_lite.edit(forward(model), {site: _splice(0.0, tokens, text)})(tokens)
    return {
        "tokens": text.sum(),
        "predictions": _predicted(text).sum(),
        "loss": _loss_sum(forward(model)(tokens), tokens, text),
        "loss_zero": _loss_sum(zeroed, tokens, text),
    }


@functools.partial(jit_forward, static_argnames=("site_in", "site"))
def _spliced_sums(autoencoder, model, tokens, text, centre, site_in, site):
    # The layers below the site stand in both forward passes; the compiler computes them once.
    captured = captured_at(model, tokens, tuple({site_in, site}))
    x, y = captured[site_in], captured[site]
    made, f = autoencoder(x), autoencoder.encode(x)
    spliced = mishax_lite.edit(forward(model), {site: _splice(made, tokens, text)})(tokens)
    shifted = jnp.where(text[..., None], y - centre, 0.0)
    return {
        "active": ((f > 0) & text[..., None]).sum(axis=(0, 1)),
        "errors": jnp.where(text[..., None], jnp.square(made - y), 0.0).sum(),
        "shifted": shifted.sum(axis=(0, 1)),
        "squares": jnp.square(shifted).sum(),
        "loss_spliced": _loss_sum(spliced, tokens, text),
    }


def _centre(model, tokens, site) -> np.ndarray:
    x = np.asarray(activations_at(model, jnp.asarray(tokens), (site,))[site])
    text = is_text(tokens, model.tokenizer.special_ids)
    return x[text].mean(axis=0) if text.any() else np.zeros(x.shape[-1], np.float32)


def _sites_of(autoencoder: JumpReLU, model: gemma.Model, site: str | None) -> tuple[str, str]:
    """What goes in, and what is replaced by what comes out."""
    info = autoencoder.info
    if model.tokenizer is None:
        raise ValueError(f"{model.config.name} was loaded without a tokenizer, so its special tokens are unknown")
    if not isinstance(autoencoder, JumpReLU):
        raise ValueError(f"a {type(autoencoder).__name__} cannot be evaluated by splicing it in at one site")
    if site is None and info is None:
        raise ValueError("this autoencoder does not say where it belongs: name the site")
    if info is not None and info.model != model.config.name:
        raise ValueError(f"this autoencoder was trained on {info.model}, the model given is {model.config.name}")
    site_in, site_out = (site, site) if site is not None else (info.site, info.site_out)
    if info is not None and info.site != info.site_out and site is not None:
        raise ValueError(f"a transcoder belongs where it was trained, from {info.site} to {info.site_out}; got {site}")
    for name, got in ((site_in, autoencoder.W_enc.shape[0]), (site_out, autoencoder.b_dec.shape[0])):
        width = int(np.prod(gemma.sites.token_shape(model.config, name)))
        if got != width:
            raise ValueError(
                f"{name} of {model.config.name} is {width} wide, the autoencoder takes {autoencoder.W_enc.shape[0]} "
                f"and gives {autoencoder.b_dec.shape[0]}"
            )
    return site_in, site_out
