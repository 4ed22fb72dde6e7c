"""The base of explainers and their registry: one file in this folder, or anywhere else, adds one.

An explainer knows the record of a latent from `sae.latents`, and neither the model nor the autoencoder.
"""

import abc
from typing import ClassVar

from sae import showing
from sae.discovery import import_all
from sae.latent import Latent
from sae.registry import Registry


class Explainer(abc.ABC):
    """Puts a latent into words.

    Pages are written again where the `repr` of their explainer changes. By default it has the class and the attributes;
    a subclass may have its own, as a dataclass does.

    Attributes:
        about: one line on the texts, which pages show.
        version: the version of the texts; raise it where the same latent gets another text.

    Example:
        >>> @sae.explainers.register("strongest")
        ... class Strongest(sae.explainers.Explainer):
        ...     about = "the token of the strongest example"
        ...     def explain(self, latent):
        ...         return latent.examples[0].token if latent.examples else "silent"
        >>> sae.latents(autoencoder, model, sequences, explainer="strongest")[0].explanation
        'silent'
    """

    about: ClassVar[str] = ""
    version: ClassVar[int] = 1

    @abc.abstractmethod
    def explain(self, latent: Latent) -> str:
        """Returns a short text.

        Args:
            latent: with its statistics, examples and promoted tokens, which may be empty, and no explanation.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


EXPLAINERS: Registry[type[Explainer]] = Registry("explainer")
register = EXPLAINERS.register


def explainer_of(explainer: str | Explainer | None) -> Explainer | None:
    """Returns the explainer of a name. An explainer and None stay unchanged.

    Raises:
        ValueError: for a name that no explainer has, and for another value.

    Example:
        >>> explainer_of("tokens")
        Tokens(fires=4, promoted=4)
    """
    if explainer is None or isinstance(explainer, Explainer):
        return explainer
    names()
    if not isinstance(explainer, str):
        raise ValueError(
            f"explainer is a name, such as {', '.join(EXPLAINERS)}, or an object of a subclass of "
            f"sae.explainers.Explainer; got {showing.kind(explainer)}"
        )
    return EXPLAINERS[explainer]()


def names() -> tuple[str, ...]:
    """Returns the names of all explainers."""
    import_all("sae.explainers")
    return tuple(EXPLAINERS)


def explanation(explainer: Explainer, latent: Latent) -> str:
    """Returns an explainer's text for a latent.

    Raises:
        ValueError: for an explainer that returns no text.

    Example:
        >>> explanation(explainer_of("tokens"), Latent(3, 0.0, 0.0, (), (), (), ()))
        'does not fire here'
    """
    text = explainer.explain(latent)
    if not isinstance(text, str):
        raise ValueError(
            f"{type(explainer).__name__}.explain returns a text, got {showing.kind(text)} for latent {latent.latent}"
        )
    return text
