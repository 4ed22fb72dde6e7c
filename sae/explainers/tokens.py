"""The explainer `tokens`: the tokens on which a latent fires most strongly, and those that it promotes."""

import dataclasses

from sae.explainers.base import Explainer, register
from sae.fields import check_fields
from sae.latent import Latent


@register("tokens")
@dataclasses.dataclass(frozen=True)
class Tokens(Explainer):
    """Lists tokens: `fires on "sea", "shore"; promotes "water"`. The same latent always gets the same text.

    It is worth a glance: latents are told apart and found again by it, it needs no other model and cannot make things
    up. It is no explanation of what the tokens have in common. It leaves out the text before a token, on which a latent
    may depend more; and it is of the strongest examples alone, which may mislead about all others (arXiv 2104.07143).
    How well a text predicts where a latent fires has to be measured (arXiv 2410.13928).

    Attributes:
        fires: the most tokens that it names of the examples; one that differs in case or spaces alone is the same. They
            are in the order of the sums of their activations.
        promoted: the most promoted tokens that it names, of those whose logits rise.
    """

    about = "the tokens of the strongest examples, and those whose logits rise most"

    fires: int = 4
    promoted: int = 4

    def __post_init__(self):
        check_fields(self)
        if self.fires < 1 or self.promoted < 0:
            raise ValueError(f"Tokens: fires is at least 1 and promoted at least 0, got {self.fires}, {self.promoted}")

    def explain(self, latent: Latent) -> str:
        """Returns the text."""
        strongest = _distinct([(example.token, example.activation) for example in latent.examples])[: self.fires]
        rising = _distinct([(token, effect) for token, effect in latent.promoted if effect > 0])[: self.promoted]
        if strongest:
            first = f"fires on {_listed(strongest)}"
        else:
            first = "fires here" if latent.largest > 0 else "does not fire here"
        return first + (f"; promotes {_listed(rising)}" if rising else "")


def _distinct(pairs: list[tuple[str, float]]) -> list[str]:
    """Tokens without those that differ in case or spaces alone, in the order of the sums; each as it comes first."""
    sums: dict[str, float] = {}
    shown: dict[str, str] = {}
    for token, weight in pairs:
        key = token.strip().casefold() or token
        sums[key] = sums.get(key, 0.0) + weight
        shown.setdefault(key, token.strip() or token)
    return [shown[key] for key in sorted(sums, key=lambda key: -sums[key])]


def _listed(tokens: list[str]) -> str:
    """In quotation marks, on one line."""
    return ", ".join('"' + token.replace("\n", "↵") + '"' for token in tokens)
