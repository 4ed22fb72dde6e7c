"""Which tokens of an evaluation count: those that the autoencoder's training counted, by the rule in its `Info`."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sae.autoencoder import Info
from sae.counted import Counted
from sae.evaluation import matching
from sae.language_model import LanguageModel, check_tokenizer, resumption
from sae.text import Sequences, batch_at

Sites = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CountedText:
    """Token sequences and the rule of which tokens count; made by `counted_text`.

    Attributes:
      sequences: with tokens int32 [S, T].
      rule: which tokens count.
      pad: the id that fills up a batch; it never counts.
    """

    sequences: Sequences
    rule: Counted
    pad: int

    @property
    def tokens(self) -> np.ndarray:
        """The tokens, int32 [S, T]."""
        return self.sequences.tokens

    def batch(self, start: int, size: int) -> np.ndarray:
        """Returns the tokens of the sequences from `start` on, int32 [size, T]."""
        return batch_at(self.tokens, start, size, self.pad)

    def mask(self, start: int, size: int, captured: Mapping[str, jax.Array]) -> np.ndarray:
        """Returns which tokens of a batch count, bool [size, T].

        Args:
          start: the number of the batch's first sequence.
          size: sequences of the batch.
          captured: the activations [size, T, A] at the sinks' sites, by site; others are ignored.
        """
        marks = self.sequences.left_out
        left_out = np.ones((size, self.tokens.shape[1]), bool)  # True for the rows that fill up the batch
        left_out[: len(self.tokens) - start] = False if marks is None else marks[start : start + size]
        # In float32, also where the activations are not: training's limits are that exact.
        norms = {site: jnp.linalg.norm(captured[site].astype(jnp.float32), axis=-1) for site in self.rule.sink_sites}
        return self.rule.mask(self.batch(start, size), left_out, jax.device_get(norms))

    def documents(self, start: int, mask: np.ndarray) -> np.ndarray:
        """Returns the numbers of the documents that have a token of a batch's mask, each once.

        Args:
          start: the number of the batch's first sequence.
          mask: bool [size, T], as `mask` returns it.
        """
        part = self.sequences.take(slice(start, start + len(mask)))
        return np.unique(part.document_at()[mask[: len(part)]])

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of tokens, marks and documents. Texts with the same one are the same to evaluation."""
        return self.sequences.fingerprint()

    def __str__(self) -> str:
        S, T = self.tokens.shape
        return f"{S:,} sequences of {T} tokens ({self.sha256[:12]}…)"


def counted_text(
    info: Info | None, model: LanguageModel, sequences: Sequences, counted: Counted | None = None
) -> CountedText:
    """Returns a text with the rule that an autoencoder's training followed.

    Args:
      info: the autoencoder's.
      model: with its tokenizer.
      sequences: of the model (`sae.text.as_sequences` has checked it, once for all autoencoders).
      counted: which tokens count, in place of the recorded rule.

    Raises:
      ValueError: for a model without a tokenizer, a text in which no token counts, a text that leaves tokens out where
        training's did not, or the other way round, or sinks without their limits.

    Warns:
      RecordWarning: for an autoencoder without a recorded rule, or a text known to be another one than training's.
    """
    check_tokenizer(model)
    if counted is None:
        counted = matching.counted_of(info, model)
    counted = Counted.or_default(counted, model.tokenizer.special_ids).for_text(sequences.left_out is not None)
    _ = counted.sink_limits  # raises for sinks without limits
    if not counted.text(sequences.tokens, sequences.left_out).any():
        raise ValueError(
            f"evaluation needs token sequences [S, T] with text in them, and of shape {list(sequences.tokens.shape)} "
            f"no token counts by the rule: {counted}"
        )
    matching.say_differences(info, sequences)
    return CountedText(sequences, counted, model.tokenizer.pad)


def sites_to_capture(model: LanguageModel, site_in: str | Sites, site_out: str | Sites, counted: Counted) -> Sites:
    """Returns the sites that evaluation captures of a batch in one forward pass.

    They are the same tuple for everything that is measured of one autoencoder, so that one program serves all of it.

    Args:
      model: the language model.
      site_in: what the autoencoder reads.
      site_out: what its output replaces; the sites from which a pass is resumed follow from it.
      counted: the rule, with the sinks' sites.
    """
    sites = {*as_tuple(site_in), *as_tuple(site_out)}
    return tuple(sorted({*sites, *resumption(model, as_tuple(site_out)), *counted.sink_sites}))


def as_tuple(site: str | Sites) -> Sites:
    """Returns one site, or a crosscoder's several, as a tuple."""
    return (site,) if isinstance(site, str) else tuple(site)
