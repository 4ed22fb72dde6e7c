"""What is known of one latent, in words: what `sae.latents` gives and explainers read."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Example:
    """Where a latent fires strongly.

    Attributes:
        activation: at the peak, raw units.
        token: at the peak, as a person reads it.
        text: the sequence, decoded, without padding.
        document: the id of the token's document.
        sequence: the number of the sequence.
        position: of the token in the sequence.
    """

    activation: float
    token: str
    text: str = dataclasses.field(repr=False)
    document: str
    sequence: int
    position: int


@dataclasses.dataclass(frozen=True)
class Latent:
    """What is known of one latent.

    Attributes:
        latent: its number.
        frequency: the share of the tokens on which it fires.
        largest: its largest activation, raw units; 0 for one that does not fire.
        examples: the strongest first, one of each sequence at most.
        promoted: (token, effect on its logit), the greatest first; empty where the site does not write to the residual
            stream.
        suppressed: the same of the least effects.
        neighbours: (latent, cosine of the decoder rows), the nearest first.
        explanation: what an explainer makes of the rest; None where none was asked for.
    """

    latent: int
    frequency: float
    largest: float
    examples: tuple[Example, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    explanation: str | None = None
