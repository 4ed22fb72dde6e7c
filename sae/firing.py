"""`sae.top_latents`: the latents that fire on a text, each with the tokens on which it fires.

Axis letters: T tokens, A dim of the activation, L sites of a crosscoder.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Integer

from sae import showing
from sae.evaluation.counting import Sites
from sae.evaluation.fidelity import check_fits
from sae.evaluation.matching import counted_of
from sae.language_model import LanguageModel, check_tokenizer
from sae.released import Released


@dataclasses.dataclass(frozen=True)
class Firing:
    """One latent on one text.

    Attributes:
        latent: the latent's number.
        activation: its largest activation on the text, raw units.
        position: the position of that activation, counted from 0.
        token: the token there, as a person reads it.
        activations: float32 [T], raw units; 0 at tokens that do not count.
        tokens: all tokens of the text on which the latent fires, in the order of the text.

    Example:
        >>> firing = sae.top_latents(autoencoder, model, "And the king said")[0]
        >>> bool(firing.activations[firing.position] == firing.activation)
        True
    """

    latent: int
    activation: float
    position: int
    token: str
    activations: Float32[np.ndarray, " T"] = dataclasses.field(repr=False, compare=False)
    tokens: tuple[str, ...] = ()


def top_latents(
    autoencoder: Released,
    model: LanguageModel,
    text: str | Integer[jax.Array | np.ndarray, "..."],
    count: int = 10,
    *,
    site: str | Sites | None = None,
) -> list[Firing]:
    """Returns the latents that fire most strongly on a text, the strongest first.

    Args:
        autoencoder: on raw activations. Tokens that its training did not count, such as BOS, do not count here.
        model: with its tokenizer.
        text: a text, or the ids of one sequence, [T] or [1, T].
        count: the most that are returned; fewer where fewer fire.
        site: the autoencoder's site; by default that of its `info`.

    Returns:
        A `Firing` for each latent.

    Raises:
        ValueError: for an autoencoder of another model or dim, an unknown site, several sequences, and a count below 1.

    Warns:
        RecordWarning: where the autoencoder does not record which tokens its training counted.

    Example:
        >>> firings = sae.top_latents(autoencoder, model, "And the king said", 2)
        >>> [(firing.latent, firing.token) for firing in firings]  # doctest: +SKIP
        [(19, ' king'), (47, ' the')]
        >>> firings[0].activation >= firings[1].activation
        True
    """
    sites, _ = check_fits(autoencoder, model, site)
    check_tokenizer(model)
    if count < 1:
        raise ValueError(f"count is at least 1 latent, got {count}")
    rule = counted_of(autoencoder.info, model)
    if not isinstance(text, str):
        ids = np.asarray(text)
        text = ids[None] if ids.ndim == 1 else ids
        if text.ndim != 2 or len(text) != 1:
            raise ValueError(f"expected a text, or the ids of one sequence, [T] or [1, T]; got {showing.kind(ids)}")
    forward = model.run(text, capture=tuple(dict.fromkeys((*sites, *rule.sink_sites))))
    tokens = np.asarray(forward.tokens)
    flat = {name: value.reshape(*tokens.shape, -1) for name, value in forward.values.items()}
    norms = {name: np.linalg.norm(np.asarray(flat[name], np.float32), axis=-1) for name in rule.sink_sites}
    x = flat[sites[0]] if len(sites) == 1 else jnp.stack([flat[name] for name in sites], axis=-2)
    f = np.asarray(autoencoder.encode(x.astype(jnp.float32))[0])
    f = np.where(rule.mask(tokens, None, norms)[0][:, None], f, 0.0)
    pieces = [model.tokenizer.piece(int(id_)) for id_ in tokens[0]]
    peaks = f.max(axis=0)
    order = np.argsort(-peaks, kind="stable")[:count]
    return [_firing(int(z), f[:, z], pieces) for z in order if peaks[z] > 0]


def _firing(latent: int, activations: np.ndarray, pieces: list[str]) -> Firing:
    peak = int(activations.argmax())
    on = tuple(pieces[t] for t in np.flatnonzero(activations))
    return Firing(latent, float(activations[peak]), peak, pieces[peak], activations, on)
