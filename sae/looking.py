"""`sae.latents`: how often and where each latent of an autoencoder fires, which tokens it promotes, and which latents
are like it.

Axis letters: T tokens of a sequence, Z latents, K neighbours, E examples (or tokens) of each latent.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Integer

from sae import showing
from sae.evaluation.fidelity import check_fits
from sae.evaluation.latents import LatentStatistics, TopTokens, latent_statistics, top_tokens
from sae.evaluation.nearest_latents import neighbours as nearest_of
from sae.explainers.base import Explainer, explainer_of, explanation
from sae.fields import plain
from sae.language_model import LanguageModel, Tokenizer, check_tokenizer
from sae.latent import Example, Latent
from sae.progress import Progress, chosen
from sae.released import Released
from sae.text import Sequences, as_sequences

NEIGHBOURS = 5  # of each latent


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
    """Arrays over all latents of an autoencoder; `sae.latents` returns them.

    `latents[z]` is latent z in words (`sae.latent.Latent`). Iteration goes through the latents that fire, the most
    frequent first.

    Attributes:
        site: the site that the autoencoder reads.
        statistics: statistics over the text (`LatentStatistics`), with the examples' places.
        effects: the tokens that each latent promotes and suppresses (`TopTokens`); None where the site does not write
            to the residual stream.
        neighbours: int32 [Z, K], the latents with the most similar decoder rows.
        similarity: float32 [Z, K], the cosines of the rows.
        sequences: the text.
        tokenizer: the model's.
        explainer: puts a latent into words when `latents[z]` is first read; None for no explanations.

    Example:
        >>> latents = sae.latents(autoencoder, model, sequences)
        >>> latents
        Latents(layer_1/resid_post: ... of 64 latents fired on ... tokens)
        >>> latents.neighbours.shape
        (64, 5)
        >>> len(latents[0].promoted)
        10
    """

    site: str
    statistics: LatentStatistics
    effects: TopTokens | None
    neighbours: Int32[np.ndarray, "Z K"]
    similarity: Float32[np.ndarray, "Z K"]
    sequences: Sequences
    tokenizer: Tokenizer
    explainer: Explainer | None = None

    def __repr__(self) -> str:
        fired = np.count_nonzero(self.statistics.fired)
        tokens = showing.count(self.statistics.tokens, "token")
        return f"Latents({self.site}: {fired:,} of {showing.count(len(self), 'latent')} fired on {tokens})"

    def __len__(self) -> int:
        return len(self.statistics.fired)

    def __iter__(self) -> Iterator[Latent]:
        order = np.argsort(-self.statistics.fired, kind="stable")
        return (self[z] for z in order[self.statistics.fired[order] > 0].tolist())

    def __getitem__(self, latent: int) -> Latent:
        if not 0 <= latent < len(self):
            raise IndexError(f"the autoencoder has latents 0 to {len(self) - 1}, got {latent}")
        s, effects = self.statistics, self.effects
        promoted, suppressed = (), ()
        if effects is not None:
            promoted = self._tokens(effects.promoted[latent], effects.promotion[latent])
            suppressed = self._tokens(effects.suppressed[latent], effects.suppression[latent])
        pairs = zip(self.neighbours[latent].tolist(), self.similarity[latent].tolist(), strict=True)
        described = Latent(
            int(latent),
            float(s.fired[latent] / s.tokens),
            float(s.largest[latent]),
            tuple(self._example(latent, e) for e in np.flatnonzero(s.example_sequence[latent] >= 0)),
            promoted,
            suppressed,
            tuple(pairs),
        )
        if self.explainer is None:
            return described
        if described.latent not in self._explanations:
            self._explanations[described.latent] = explanation(self.explainer, described)
        return dataclasses.replace(described, explanation=self._explanations[described.latent])

    @functools.cached_property
    def _explanations(self) -> dict[int, str]:
        return {}

    def _tokens(self, ids: np.ndarray, effects: np.ndarray) -> tuple[tuple[str, float], ...]:
        return tuple((self.tokenizer.piece(int(i)), float(x)) for i, x in zip(ids, effects, strict=True))

    def _example(self, latent: int, e: Any) -> Example:
        s = self.statistics
        row, peak = int(s.example_sequence[latent, e]), int(s.example_peak[latent, e])
        tokens = self.sequences.tokens[row]
        text = [int(token) for token in tokens if token not in self.tokenizer.special_ids]
        document, _ = self.sequences.place(row, peak)
        return Example(
            float(s.example_activation[latent, e, peak]),
            self.tokenizer.piece(int(tokens[peak])),
            self.tokenizer.decode(text),
            self.sequences.documents[document][0],
            row,
            peak,
        )


def latents(
    autoencoder: Released,
    model: LanguageModel,
    sequences: Sequences | Integer[np.ndarray, "S T"],
    *,
    examples: int = 8,
    tokens: int = 10,
    neighbours: int = NEIGHBOURS,
    explainer: Explainer | str | None = None,
    progress: Progress | bool | None = None,
) -> Latents:
    """Returns what each latent of an autoencoder does over a text, which is read once.

    Args:
        autoencoder: on raw activations; a transcoder's latents fire at its input site and promote tokens from its
            output site.
        model: with its tokenizer.
        sequences: as for `sae.evaluate`; the same tokens count.
        examples: the most examples of each latent, [Z, E, T] numbers in memory; 0 keeps none, here and below.
        tokens: the number of tokens that a latent promotes most, and of those that it suppresses most.
        neighbours: the number of most similar latents for each latent.
        explainer: puts each latent into words (`sae.explainers`): its name, or the object; None for no words.
        progress: as for `sae.evaluate`.

    Returns:
        Arrays over all latents; `[z]` gives latent z in words.

    Raises:
        ValueError: as for `sae.evaluate`; for a crosscoder, an autoencoder that does not say its site, a number below
            0, and an unknown explainer.

    Example:
        >>> latents = sae.latents(autoencoder, model, sequences)
        >>> latent = next(iter(latents))  # the most frequent
        >>> len(latent.examples), len(latent.promoted), len(latent.neighbours)
        (8, 10, 5)
        >>> sae.latents(autoencoder, model, sequences, explainer="tokens")[latent.latent].explanation[:8]
        'fires on'
    """
    explainer = explainer_of(explainer)
    if not isinstance(autoencoder, Released) or autoencoder.several_sites():
        raise ValueError(f"sae.latents takes an autoencoder of one site, got {showing.kind(autoencoder)}")
    for name, count in (("examples", examples), ("tokens", tokens), ("neighbours", neighbours)):
        if plain(name, count, int) < 0:
            raise ValueError(f"{name} must not be negative, got {count}: 0 keeps none")
    (site,), (site_out,) = check_fits(autoencoder, model)
    check_tokenizer(model)
    sequences = as_sequences(sequences, model)
    statistics = latent_statistics(autoencoder, model, sequences, site, examples=examples, progress=chosen(progress))
    effects = None
    if model.sites[site_out].writes_to_residual:
        effects = top_tokens(autoencoder, model, site_out, tokens)
    nearest = nearest_of(autoencoder, neighbours)
    return Latents(site, statistics, effects, *nearest, sequences, model.tokenizer, explainer)
