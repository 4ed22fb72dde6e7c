"""Steering with one latent, with a strength in words ("3max"), checks before anything runs, and a title."""

import dataclasses
import math

from mishax_lite import Edits
from sae import showing
from sae.evaluation.matching import check_model
from sae.interventions import OfMax, of_max, steer
from sae.language_model import LanguageModel
from sae.released import Released
from sae.sites import token_site


@dataclasses.dataclass(frozen=True)
class Steering:
    """Edits that steer, and their title. `steering` returns one.

    Attributes:
        title: the vector that is added, in words.
        edits: for `run`, `generate` and `mishax_lite.edit`.
    """

    title: str
    edits: Edits = dataclasses.field(repr=False)


def parse_strength(text: str, subject: str = "a strength is") -> float | OfMax:
    """Returns the strength, as `sae.steer` takes it, that a text such as "20", "3max" or "max" says.

    Args:
        text: a number in raw units, or a multiple of a latent's largest recorded activation.
        subject: the words with which an error begins.

    Raises:
        ValueError: for another text, and a number that is not finite.

    Example:
        >>> parse_strength("20"), parse_strength("3max")
        (20.0, OfMax(factor=3.0))
    """
    number = text.removesuffix("max")
    try:
        factor = 1.0 if text == "max" else float(number)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor) or text != text.strip():
        raise ValueError(
            f"{subject} a number in raw units or, such as 3max, a multiple of a latent's largest activation; got "
            f"{text!r}"
        )
    return of_max(factor) if number != text else factor


def check_steers(autoencoder: Released, model: LanguageModel, latent: int, name: str, argument: str = "latent") -> None:
    """Raises ValueError where an autoencoder cannot steer a model with a latent.

    Args:
        autoencoder: it says its site.
        model: the model to steer.
        latent: the latent's number.
        name: what errors call the autoencoder.
        argument: what errors call the latent's number.
    """
    # pyrefly: ignore[missing-attribute]  not None here
    site = autoencoder.info.site_out
    check_model(autoencoder.info, model, name)
    if autoencoder.several_sites():
        raise ValueError(f"{name} is a crosscoder, of {', '.join(site)}: steering adds a vector at one site")
    if not token_site(model, site).writes_to_residual:
        raise ValueError(f"{name} is of {site}, which does not write to the residual stream")
    if not 0 <= latent < autoencoder.width:
        raise ValueError(f"{name} has latents 0 to {autoencoder.width - 1}, got {argument}={latent}")


def steering(
    autoencoder: Released,
    model: LanguageModel,
    latent: int,
    strength: str,
    *,
    name: str = "this autoencoder",
) -> Steering:
    """Checks that an autoencoder can steer a model, and returns the edits that add a latent's decoder row.

    Args:
        autoencoder: it says its site.
        model: the model to steer.
        latent: the latent's number.
        strength: as for `parse_strength`.
        name: what errors call the autoencoder.

    Raises:
        ValueError: for an autoencoder of another model, a crosscoder, a site that does not write to the residual
            stream, a latent that the autoencoder lacks, and as `parse_strength` and `of_max` say.

    Example:
        >>> steering(autoencoder, model, 3, "20").title
        'with 20 of latent 3 in raw units'
    """
    check_steers(autoencoder, model, latent, name)
    amount = parse_strength(strength)
    title = f"with {strength} of latent {latent}"
    if isinstance(amount, OfMax):
        raw, record = amount.of(autoencoder, latent), autoencoder.largest
        # pyrefly: ignore[missing-attribute]  not None here
        most = f"{record.values[latent]:.4g}"
        title += (
            f": {amount.factor:g} x {most} = {raw:.4g} in raw units; {most} is its largest activation over the "
            # pyrefly: ignore[missing-attribute]  not None here
            f"{showing.count(record.tokens, 'token')} of its record"
        )
    else:
        title += " in raw units"
    return Steering(title, steer(autoencoder, {latent: amount}))
