"""The explainer `tokens` lists the tokens on which a latent fires most strongly, and those that it promotes."""

import dataclasses

from sae.explainers.base import Explainer, register
from sae.fields import check_fields
from sae.latent import Latent


@register("tokens")
@dataclasses.dataclass(frozen=True)
class Tokens(Explainer):
    """Lists tokens: `fires on "sea", "shore"; promotes "water"`. The same latent always gets the same text.

    The text tells latents apart, needs no other model and cannot make things up. It does not explain what the tokens
    have in common. It leaves out the text before a token, on which a latent may depend more, and it shows the strongest
    examples alone, which may mislead about all others (arXiv 2104.07143). How well a text predicts where a latent fires
    has to be measured (arXiv 2410.13928).

    Attributes:
        fires: the most tokens from the examples, in the order of the sums of their activations. Tokens that differ in
            case or spaces alone count as one.
        promoted: the most promoted tokens, among those whose logits rise.
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
    """Returns tokens in the order of their sums. Tokens that differ in case or spaces alone count as one, in the form
    that comes first."""
    sums: dict[str, float] = {}
    shown: dict[str, str] = {}
    for token, weight in pairs:
        key = token.strip().casefold() or token
        sums[key] = sums.get(key, 0.0) + weight
        shown.setdefault(key, token.strip() or token)
    return [shown[key] for key in sorted(sums, key=lambda key: -sums[key])]


def _listed(tokens: list[str]) -> str:
    """Returns tokens in quotation marks, on one line."""
    return ", ".join('"' + token.replace("\n", "↵") + '"' for token in tokens)
