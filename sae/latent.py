"""One latent in words: the record that `sae.latents` gives and explainers read."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Example:
    """A place in a text where a latent fires strongly.

    Attributes:
        activation: the activation at the peak, raw units.
        token: the token at the peak, as a person reads it.
        text: the sequence, decoded, without padding.
        document: the id of the token's document.
        sequence: the index of the sequence.
        position: the position of the token in the sequence.
    """

    activation: float
    token: str
    text: str = dataclasses.field(repr=False)
    document: str
    sequence: int
    position: int


@dataclasses.dataclass(frozen=True)
class Latent:
    """One latent in words.

    Attributes:
        latent: the latent's number.
        frequency: the share of the tokens on which it fires.
        largest: its largest activation, raw units; 0 where it does not fire.
        examples: the strongest first, at most one from each sequence.
        promoted: (token, effect on its logit), the greatest effect first; empty where the site does not write to the
            residual stream.
        suppressed: (token, effect on its logit), the least effect first.
        neighbours: (latent, cosine of the decoder rows), the nearest first.
        explanation: an explainer's text; None without an explainer.
    """

    latent: int
    frequency: float
    largest: float
    examples: tuple[Example, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    explanation: str | None = None
