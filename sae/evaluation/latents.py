"""What each latent does over a text: how often and how strongly it fires, where it is strongest, which tokens it
promotes. The material of the feature pages.

Axis letters: S sequences, T tokens of a sequence, Z latents, E examples kept for each latent.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np

import gemma
from gemma.compiling import jit_forward
from sae.autoencoder import JumpReLU
from sae.capturing import captured_at
from sae.evaluation.counting import counted, sinks_of
from sae.text import batch_at

BATCH = 16
BINS = 32
_EFFECTS_HELD = 2**25  # logit effects in memory at a time


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
    """Over the text tokens of [S, T] token sequences.

    Attributes:
      tokens: how many text tokens were seen.
      fired: [Z] on how many of them each latent is active.
      largest: [Z] the largest activation seen, in raw units.
      histogram: [Z, BINS] how many activations above zero lie in each of BINS equal parts of 0 … histogram_range.
      histogram_range: [Z] at least `largest`.
      example_sequence, example_peak: [Z, E] the sequences with the strongest activations, strongest first, and the
        token in each where it is strongest; -1 where a latent has fewer.
      example_activation: [Z, E, T] the latent's activation at every token of them.
    """

    tokens: int
    fired: np.ndarray
    largest: np.ndarray
    histogram: np.ndarray
    histogram_range: np.ndarray
    example_sequence: np.ndarray
    example_peak: np.ndarray
    example_activation: np.ndarray


def latent_statistics(
    autoencoder: JumpReLU,
    model: gemma.Model,
    tokens: np.ndarray,
    site: str,
    *,
    examples: int = 8,
    progress: Callable[..., Iterable] = lambda batches, **_: batches,
) -> LatentStatistics:
    """One pass over the tokens [S, T], in memory that does not grow with S. A sequence gives one example at most."""
    sinks = sinks_of(autoencoder.info)
    autoencoder = dataclasses.replace(autoencoder, info=None)  # static: programs are shared without it
    tokens = np.asarray(tokens, np.int32)
    S, T = tokens.shape
    Z, E = autoencoder.width, min(examples, S)
    fired, total = np.zeros(Z, np.int64), 0
    histogram = np.zeros((Z, BINS), np.int64)
    # The range of a histogram doubles when a larger activation comes.
    reach = np.maximum(np.asarray(autoencoder.threshold, np.float32) * 2, 1e-6)
    sequence = np.full((Z, E), -1, np.int32)
    activation = np.zeros((Z, E, T), np.float32)
    starts = range(0, S, BATCH)
    for start in progress(starts, total=len(starts), desc=f"latents {site}"):
        batch = batch_at(tokens, start, BATCH, model.tokenizer.pad)
        text = counted(model, batch, sinks)
        f = np.asarray(_text_latents(autoencoder, model, batch, text, site))
        total += int(text.sum())
        b, t, z = np.nonzero(f)
        values = f[b, t, z]
        fired += np.bincount(z, minlength=Z)
        _grow(histogram, reach, f.max(axis=(0, 1)))
        bins = np.minimum((values / reach[z] * BINS).astype(np.int64), BINS - 1)
        histogram += np.bincount(z * BINS + bins, minlength=Z * BINS).reshape(Z, BINS)
        _keep_strongest(sequence, activation, f, start)
    peak = np.where(sequence >= 0, activation.argmax(axis=-1), -1)
    largest = activation[:, 0].max(axis=-1)
    return LatentStatistics(total, fired, largest, histogram, reach, sequence, peak, activation)


@functools.partial(jit_forward, static_argnames="site")
def _text_latents(autoencoder, model, tokens, text, site):
    return jnp.where(text[..., None], autoencoder.encode(captured_at(model, tokens, (site,))[site]), 0.0)


def _grow(histogram: np.ndarray, reach: np.ndarray, peaks: np.ndarray) -> None:
    """Doubles, in place, the range of every histogram that the peaks [Z] leave, by joining its bins in pairs."""
    while (small := peaks > reach).any():
        joined = histogram[small].reshape(-1, BINS // 2, 2).sum(axis=-1)
        histogram[small] = np.concatenate([joined, np.zeros_like(joined)], axis=1)
        reach[small] *= 2


def _keep_strongest(sequence: np.ndarray, activation: np.ndarray, f: np.ndarray, start: int) -> None:
    """Merges, in place, the sequences of a batch's latents f [B, T, Z] into the strongest [Z, E] so far."""
    E = sequence.shape[1]
    known = activation.max(axis=-1)
    peaks = f.max(axis=1).T
    changed = np.nonzero(peaks.max(axis=1) > known[:, -1])[0]
    for z in changed:
        new = np.nonzero(peaks[z] > known[z, -1])[0]
        strengths = np.concatenate([known[z], peaks[z, new]])
        rows = np.concatenate([activation[z], f[new, :, z]])
        owners = np.concatenate([sequence[z], (start + new).astype(np.int32)])
        best = np.argsort(-strengths, kind="stable")[:E]
        sequence[z], activation[z] = owners[best], rows[best]


_RESIDUAL = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "attn_z")


def writes_to_residual(site: str) -> bool:
    """Whether a vector at a site is added to the residual stream, by itself or through one linear map."""
    return site.rsplit("/", 1)[-1] in _RESIDUAL


def logit_effects(autoencoder: JumpReLU, model: gemma.Model, site: str, latents: slice = slice(None)) -> np.ndarray:
    """[Z, V], for all latents or a range of them: how each one's decoder row, added to the residual stream, would move
    the logits to first order.

    The row passes the final norm's scale and the unembedding; the norm's division and the softcap, which depend on the
    token, are left out, and the mean over the vocabulary, which softmax ignores, is taken away. A row of `attn_z` goes
    through its layer's output projection and the scale of its post-attention norm first.

    Raises:
      ValueError: for a site that does not write to the residual stream.
    """
    if not writes_to_residual(site):
        raise ValueError(
            f"{site} does not write to the residual stream, so its latents have no direct effect on logits"
        )
    direction = autoencoder.W_dec[latents]
    if site.endswith("/attn_z"):
        block = model.params[site.split("/")[0]]
        w = block["attn"]["attn_vec_einsum"]["w"]
        direction = direction @ w.reshape(-1, w.shape[-1]) * (1.0 + block["post_attention_norm"]["scale"])
    effects = direction * (1.0 + model.params["final_norm"]["scale"]) @ model.params["embedder"]["input_embedding"].T
    return np.asarray(effects - effects.mean(axis=-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class TopTokens:
    """The tokens that each latent moves most: ids [Z, E] and effects on their logits [Z, E], the strongest first."""

    promoted: np.ndarray
    promotion: np.ndarray
    suppressed: np.ndarray
    suppression: np.ndarray


def top_tokens(autoencoder: JumpReLU, model: gemma.Model, site: str, count: int = 10) -> TopTokens:
    """The greatest and the least of `logit_effects`, of which only a part is held at a time: Z times V is large.

    Rows of the embedding that the tokenizer has no piece for (padding of the table) are left out.

    Raises:
      ValueError: for a site that does not write to the residual stream.
    """
    pieces = model.config.vocab_size if model.tokenizer is None else len(model.tokenizer)
    latents = max(1, _EFFECTS_HELD // model.config.vocab_size)
    columns = []
    for start in range(0, autoencoder.width, latents):
        effects = logit_effects(autoencoder, model, site, slice(start, start + latents))[:, :pieces]
        for sign in (-1, 1):
            signed = sign * effects
            ids = np.argpartition(signed, count - 1, axis=1)[:, :count] if count < pieces else _all_columns(effects)
            ids = np.take_along_axis(ids, np.argsort(np.take_along_axis(signed, ids, 1), axis=1, kind="stable"), 1)
            columns.append((ids, np.take_along_axis(effects, ids, axis=1)))
    joined = [np.concatenate([pair[k] for pair in columns[part::2]]) for part in (0, 1) for k in (0, 1)]
    return TopTokens(*joined)


def _all_columns(effects: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(effects.shape[1]), effects.shape)
