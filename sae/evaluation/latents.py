"""What each latent does over a text: how often and how strongly it fires, where it is strongest, which tokens it
promotes. The feature pages show it.

Axis letters: S sequences, T tokens of a sequence, Z latents, E examples kept for each latent.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Integer

from mishax_lite.compiling import jit_forward
from sae import showing
from sae.autoencoder import bare
from sae.capturing import activations_at
from sae.counted import Counted
from sae.evaluation.counting import counted_text, sites_to_capture
from sae.evaluation.matching import check_model
from sae.fields import plain
from sae.language_model import LanguageModel
from sae.progress import every
from sae.released import Released
from sae.sites import token_site
from sae.text import Sequences, as_sequences

BATCH = 16
BINS = 32
_EFFECTS_HELD = 2**25  # logit effects in memory at a time


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
    """How each latent fires over the tokens of a text that count.

    Attributes:
      tokens: how many tokens counted.
      fired: int64 [Z], on how many of the tokens each latent is active.
      largest: float32 [Z], the largest activation, in raw units.
      histogram: int64 [Z, BINS], how many activations above zero lie in each of BINS equal parts of 0 to
        `histogram_range`.
      histogram_range: float32 [Z], at least `largest`.
      example_sequence: int32 [Z, E], the sequences with the strongest activations, the strongest first; -1 where a
        latent has fewer.
      example_peak: int64 [Z, E], the token of each of these sequences where the latent is strongest; -1 likewise.
      example_activation: float32 [Z, E, T], the latent's activation at every token of these sequences.
    """

    tokens: int
    fired: Integer[np.ndarray, " Z"]
    largest: Float32[np.ndarray, " Z"]
    histogram: Integer[np.ndarray, "Z bins"]
    histogram_range: Float[np.ndarray, " Z"]
    example_sequence: Integer[np.ndarray, "Z E"]
    example_peak: Integer[np.ndarray, "Z E"]
    example_activation: Float32[np.ndarray, "Z E T"]

    def __repr__(self) -> str:
        fired, examples = np.count_nonzero(self.fired), self.example_sequence.shape[1]
        return (
            f"LatentStatistics({fired:,} of {showing.count(len(self.fired), 'latent')} fired on "
            f"{showing.count(self.tokens, 'token')}, {showing.count(examples, 'example')} of each)"
        )


def latent_statistics(
    autoencoder: Released,
    model: LanguageModel,
    tokens: np.ndarray | Sequences,
    site: str,
    *,
    examples: int = 8,
    counted: Counted | None = None,
    progress: Callable[..., Iterable] = lambda batches, **_: batches,
) -> LatentStatistics:
    """Looks at every latent in one pass over a text, in memory that does not grow with the text.

    Args:
      autoencoder: on raw activations, of one site.
      model: with its tokenizer.
      tokens: as for `sae.evaluate`.
      site: what the autoencoder reads.
      examples: the most examples of a latent; a sequence gives one at most.
      counted: which tokens count, in place of what the autoencoder records.
      progress: called with the batches to come, and `total` and `desc`, as tqdm is.

    Raises:
      ValueError: for a negative number of examples, and as `sae.evaluate` does.
    """
    check_model(autoencoder.info, model)
    text = counted_text(autoencoder.info, model, as_sequences(tokens, model), counted)
    # The sites that evaluation captures, so that its program serves here too.
    site_out = site if autoencoder.info is None or autoencoder.info.site != site else autoencoder.info.site_out
    sites = sites_to_capture(model, site, site_out, text.rule)
    autoencoder = bare(autoencoder)
    S, T = text.tokens.shape
    Z, E = autoencoder.width, min(plain("examples", examples, int), S)
    if E < 0:
        raise ValueError(f"examples must not be negative, got {examples}: 0 keeps none")
    fired, total, largest = np.zeros(Z, np.int64), 0, np.zeros(Z, np.float32)
    histogram = np.zeros((Z, BINS), np.int64)
    # The range of a histogram doubles when an activation is larger.
    reach = np.maximum(np.asarray(autoencoder.thresholds, np.float32) * 2, 1e-6)
    sequence = np.full((Z, E), -1, np.int32)
    activation = np.zeros((Z, E, T), np.float32)
    starts = range(0, S, BATCH)
    for start in every(progress(starts, total=len(starts), desc=f"latents {site}"), starts):
        captured = activations_at(model, jnp.asarray(text.batch(start, BATCH)), sites)
        counts = text.mask(start, BATCH, captured)
        f = np.asarray(_text_latents(autoencoder, captured[site], counts))
        total += int(counts.sum())
        b, t, z = np.nonzero(f)
        values = f[b, t, z]
        fired += np.bincount(z, minlength=Z)
        peaks = f.max(axis=(0, 1))
        largest = np.maximum(largest, peaks)
        _grow(histogram, reach, peaks)
        bins = np.minimum((values / reach[z] * BINS).astype(np.int64), BINS - 1)
        histogram += np.bincount(z * BINS + bins, minlength=Z * BINS).reshape(Z, BINS)
        if E:
            _keep_strongest(sequence, activation, f, start)
    peak = np.where(sequence >= 0, activation.argmax(axis=-1), -1)
    return LatentStatistics(total, fired, largest, histogram, reach, sequence, peak, activation)


@jit_forward
def _text_latents(autoencoder, x, text):
    return jnp.where(text[..., None], autoencoder.encode(x), 0.0)


def _grow(histogram: np.ndarray, reach: np.ndarray, peaks: np.ndarray) -> None:
    """Doubles, in place, the range of every histogram that a peak [Z] exceeds, by joining its bins in pairs."""
    while (small := peaks > reach).any():
        joined = histogram[small].reshape(-1, BINS // 2, 2).sum(axis=-1)
        histogram[small] = np.concatenate([joined, np.zeros_like(joined)], axis=1)
        reach[small] *= 2


def _keep_strongest(sequence: np.ndarray, activation: np.ndarray, f: np.ndarray, start: int) -> None:
    """Merges, in place, the sequences of a batch's latents f [B, T, Z] into the strongest [Z, E] so far."""
    E = sequence.shape[1]
    strongest = activation.max(axis=-1)
    peaks = f.max(axis=1).T
    changed = np.nonzero(peaks.max(axis=1) > strongest[:, -1])[0]
    for z in changed:
        new = np.nonzero(peaks[z] > strongest[z, -1])[0]
        strengths = np.concatenate([strongest[z], peaks[z, new]])
        rows = np.concatenate([activation[z], f[new, :, z]])
        owners = np.concatenate([sequence[z], (start + new).astype(np.int32)])
        best = np.argsort(-strengths, kind="stable")[:E]
        sequence[z], activation[z] = owners[best], rows[best]


def logit_effects(autoencoder: Released, model: LanguageModel, site: str, latents: slice = slice(None)) -> np.ndarray:
    """Returns how the decoder row of each latent, added at a site, moves the logits directly, to first order.

    Whatever depends on the token, such as the last norm's division, is left out, and the mean over the vocabulary,
    which softmax ignores, is subtracted (`LanguageModel.logit_directions`).

    Args:
      autoencoder: on raw activations.
      model: the language model.
      site: where the autoencoder writes.
      latents: a range of latents; by default all.

    Returns:
      float32 [Z, V].

    Raises:
      ValueError: for a site that does not write to the residual stream.
    """
    if not token_site(model, site).writes_to_residual:
        raise ValueError(
            f"{site} does not write to the residual stream, so its latents have no direct effect on logits"
        )
    return np.asarray(model.logit_directions(site, autoencoder.W_dec[latents]))


@dataclasses.dataclass(frozen=True)
class TopTokens:
    """The P tokens whose logits each latent moves most, the strongest first.

    Attributes:
      promoted: int [Z, P], the ids of the tokens that a latent makes more likely.
      promotion: float32 [Z, P], by how much it raises their logits.
      suppressed: int [Z, P], the ids of the tokens that it makes less likely.
      suppression: float32 [Z, P], the effects on their logits, which are negative.
    """

    promoted: Integer[np.ndarray, "Z P"]
    promotion: Float32[np.ndarray, "Z P"]
    suppressed: Integer[np.ndarray, "Z P"]
    suppression: Float32[np.ndarray, "Z P"]

    def __repr__(self) -> str:
        latents, tokens = self.promoted.shape
        return f"TopTokens({showing.count(tokens, 'token')} of {showing.count(latents, 'latent')})"


def top_tokens(autoencoder: Released, model: LanguageModel, site: str, count: int = 10) -> TopTokens:
    """Returns the greatest and the least of `logit_effects`. Only a part is held at a time, since Z times V is large.

    Rows of the embedding for which the tokenizer has no piece (padding of the table) are left out.

    Args:
      autoencoder: on raw activations.
      model: the language model.
      site: where the autoencoder writes.
      count: E, the tokens on either side.

    Raises:
      ValueError: for a site that does not write to the residual stream.
    """
    pieces = model.vocab_size if model.tokenizer is None else len(model.tokenizer)
    latents = max(1, _EFFECTS_HELD // model.vocab_size)
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
