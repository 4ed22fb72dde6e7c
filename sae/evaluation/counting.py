"""Which tokens of an evaluation count: the ones that the autoencoder's training counted, by the rule in its `Info`."""

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
    """Token sequences and the rule by which their tokens count. `counted_text` makes it.

    Attributes:
      sequences: with tokens [S, T] int32.
      rule: which tokens count.
      pad: the id that fills up a batch; it never counts.
    """

    sequences: Sequences
    rule: Counted
    pad: int

    @property
    def tokens(self) -> np.ndarray:
        """[S, T] int32."""
        return self.sequences.tokens

    def batch(self, start: int, size: int) -> np.ndarray:
        """Returns the sequences from `start` on as [size, T] int32."""
        return batch_at(self.tokens, start, size, self.pad)

    def mask(self, start: int, size: int, captured: Mapping[str, jax.Array]) -> np.ndarray:
        """Returns which tokens of that batch count, [size, T] bool.

        Args:
          start, size: as for `batch`.
          captured: the activations [size, T, A] at the sinks' sites, and maybe others.
        """
        marks = self.sequences.left_out
        left_out = np.ones((size, self.tokens.shape[1]), bool)  # what fills up the batch
        left_out[: len(self.tokens) - start] = False if marks is None else marks[start : start + size]
        # In float32, also where the activations are not: training's limits are as exact.
        norms = {site: jnp.linalg.norm(captured[site].astype(jnp.float32), axis=-1) for site in self.rule.sink_sites}
        return self.rule.mask(self.batch(start, size), left_out, jax.device_get(norms))

    def documents(self, start: int, mask: np.ndarray) -> np.ndarray:
        """Returns the numbers of the documents that have a token of a batch's mask [size, T], each once."""
        part = self.sequences.take(slice(start, start + len(mask)))
        return np.unique(part.document_at()[mask[: len(part)]])

    @functools.cached_property
    def sha256(self) -> str:
        """Over tokens, marks and documents: two texts with the same are the same to evaluation."""
        return self.sequences.fingerprint()

    def __str__(self) -> str:
        S, T = self.tokens.shape
        return f"{S:,} sequences of {T} tokens ({self.sha256[:12]}…)"


def counted_text(
    info: Info | None, model: LanguageModel, sequences: Sequences, counted: Counted | None = None
) -> CountedText:
    """Returns a text with the rule that an autoencoder's training went by.

    Args:
      info: the autoencoder's.
      model: with its tokenizer.
      sequences: checked to be the model's (`sae.text.as_sequences`), once for all autoencoders.
      counted: which tokens count, in place of what is recorded.

    Raises:
      ValueError: for a model without a tokenizer, tokens of which none counts, a text that leaves tokens out where
        training's did not, or the other way round, or sinks without their limits.

    Warns:
      RecordWarning: where no rule is recorded, or the text is known to be another one than training's.
    """
    check_tokenizer(model)
    if counted is None:
        counted = matching.counted_of(info, model)
    counted = Counted.or_default(counted, model.tokenizer.special_ids).for_text(sequences.left_out is not None)
    _ = counted.sink_limits  # an error without them
    if not counted.text(sequences.tokens, sequences.left_out).any():
        raise ValueError(
            f"evaluation needs token sequences [S, T] with text in them, and of shape {list(sequences.tokens.shape)} "
            f"no token counts by the rule: {counted}"
        )
    matching.say_differences(info, sequences)
    return CountedText(sequences, counted, model.tokenizer.pad)


def sites_to_capture(model: LanguageModel, site_in: str | Sites, site_out: str | Sites, counted: Counted) -> Sites:
    """What evaluation captures of a batch, in one pass: the activations, where a pass may be resumed, and the sinks'
    sites. The same tuple for everything that is measured of one autoencoder, so that one program serves it all."""
    wanted = {*as_tuple(site_in), *as_tuple(site_out)}
    return tuple(sorted({*wanted, *resumption(model, as_tuple(site_out)), *counted.sink_sites}))


def as_tuple(site: str | Sites) -> Sites:
    """One site, or a crosscoder's several, as a tuple."""
    return (site,) if isinstance(site, str) else tuple(site)
