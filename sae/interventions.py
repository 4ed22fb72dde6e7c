"""`splice`, `steer`, `ablate` and `clamp`: each returns edits that put an autoencoder to work in a running model.

Edits go to `mishax_lite.edit`, to `generate` and to all else that takes edits; `a | b` applies both. They act at the
tokens that count. By the rule that the autoencoder records, three kinds do not count: its special ids, padding
(negative positions) and, where the rule has a limit for the site that is read, attention sinks. A running model does
not know the marks of a text (`left_out`). An autoencoder without a rule acts at all positions above 0. Latents,
strengths, values and positions are leaves of the edits: changing them compiles nothing.

Axis letters: B sequences, T tokens, A dim of the activation (heads joined), Z latents, K of them that are acted on.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Integer, Num

from mishax_lite import Edits
from sae.acting import Change, Intervention, Positions, Set, Splice, Steer, Tokens, narrowing
from sae.autoencoder import Info, bare
from sae.released import Released


@dataclasses.dataclass(frozen=True)
class OfMax:
    """A multiple of a latent's largest recorded activation. `of_max` makes one."""

    factor: float

    def of(self, autoencoder: Released, latent: int) -> float:
        """Returns the multiple in raw units.

        Raises:
            ValueError: where the autoencoder has no record, or the latent fired on none of the record's tokens.
        """
        record = autoencoder.largest
        if record is None:
            raise ValueError(
                f"of_max({self.factor:g}) needs the largest activation of each latent, and this autoencoder has no "
                "record of them (`autoencoder.largest`): give a number in raw units, or record them, as "
                "`python -m experiments.evaluate` does"
            )
        if not record.values[latent]:
            raise ValueError(
                f"of_max({self.factor:g}) of latent {latent} is 0, as the latent fired on none of the "
                f"{record.tokens:,} tokens of the record: give a number in raw units, or another latent"
            )
        return self.factor * float(record.values[latent])


def of_max(factor: float) -> OfMax:
    """Returns a strength, or a value, that is a multiple of the latent's largest recorded activation.

    Args:
        factor: 3 for three times the largest activation.

    Raises:
        ValueError: for a factor that is no finite number.

    Example:
        >>> latent = int(autoencoder.largest.values.argmax())
        >>> forward = model.run("And the sea", edits=sae.steer(autoencoder, {latent: sae.of_max(3)}))
    """
    return OfMax(float(_number("of_max", factor)))


Strength = float | Num[ArrayLike, ""] | OfMax


def splice(
    autoencoder: Released, error: bool = False, *, positions: Positions | None = None, site: str | None = None
) -> Edits:
    """Returns edits that put the reconstruction in the place of the activation.

    Args:
        autoencoder: on raw activations. A transcoder replaces the value at its output site and reads its input site in
            the same forward pass.
        error: adds the reconstruction's error back as a constant: no value changes, but gradients flow through the
            latents alone.
        positions: where to act, among the tokens that count: an integer, several, a slice, a function of positions
            [B, T], or an array bool [B, T]. By default everywhere.
        site: the autoencoder's site; by default that of its `info`, which is the only one for a transcoder.

    Returns:
        Edits for `run`, `generate` and `mishax_lite.edit`.

    Raises:
        ValueError: for a crosscoder, an autoencoder that does not say its site, and positions of another kind.

    Example:
        >>> spliced = model.run("And the sea", edits=sae.splice(autoencoder))
        >>> edits = sae.splice(autoencoder) | sae.steer(autoencoder, {17: 20.0})  # one after the other
    """
    site, reads = _sites(autoencoder, site, "splice")
    return _at(site, reads, Splice(bare(autoencoder), error), positions, autoencoder.info)


def steer(
    autoencoder: Released,
    strengths: Mapping[int, Strength],
    positions: Positions | None = None,
    *,
    site: str | None = None,
) -> Edits:
    """Returns edits that add strength * W_dec[latent] to the activation.

    Args:
        autoencoder: only its decoder is used. A transcoder adds at its output site.
        strengths: {latent: strength}, in raw units or `of_max(...)`.
        positions: as for `splice`.
        site: as for `splice`. A crosscoder adds at one of its sites, which has to be named: added at all of them, the
            vectors would add up along the residual stream.

    Returns:
        Edits for `run`, `generate` and `mishax_lite.edit`.

    Raises:
        ValueError: as for `splice`; for latents that the autoencoder lacks, strengths that are no finite numbers, a
            crosscoder without `site`, and an `of_max` without a record.

    Example:
        >>> edits = sae.steer(autoencoder, {17: 20.0})  # or sae.of_max(3)
        >>> steered = model.run("And the sea", edits=edits)  # gemma.generate(model, text, edits=edits) continues a text
        >>> bool((steered.logits != model.run("And the sea").logits).any())
        True
    """
    latents, numbers = _numbers(autoencoder, strengths, "steer")
    rows = autoencoder.rows(latents)
    if autoencoder.several_sites():
        sites = () if autoencoder.info is None else autoencoder.info.site_out
        # pyrefly: ignore[unsupported-operation]  not None here
        if site not in sites:
            raise ValueError(
                f"steer: a crosscoder adds at one of its sites: name one of {', '.join(sites) or 'them in its info'} "
                f"(site=...); got {site!r}"
            )
        # pyrefly: ignore[bad-argument-type]  not None here
        return _at(site, None, Steer(rows[:, sites.index(site)], numbers), positions, autoencoder.info)
    site, _ = _sites(autoencoder, site, "steer")
    return _at(site, None, Steer(rows, numbers), positions, autoencoder.info)


def ablate(
    autoencoder: Released,
    latents: int | Sequence[int] | Integer[ArrayLike, " K"],
    positions: Positions | None = None,
    *,
    site: str | None = None,
) -> Edits:
    """Returns edits that set latents to 0: x - f W_dec, so that the reconstruction's error stays.

    Args:
        autoencoder: on raw activations; a transcoder as for `splice`.
        latents: one latent, or several different ones.
        positions: as for `splice`.
        site: as for `splice`.

    Returns:
        Edits for `run`, `generate` and `mishax_lite.edit`.

    Raises:
        ValueError: as for `splice`, and for latents that the autoencoder lacks or that are named twice.

    Example:
        >>> ablated = model.run("And the sea", edits=sae.ablate(autoencoder, [17, 4]))
    """
    site, reads = _sites(autoencoder, site, "ablate")
    part = autoencoder.part(_latents([latents] if np.ndim(latents) == 0 else latents, autoencoder.width, "ablate"))
    return _at(site, reads, Set(part, jnp.zeros(part.width), False), positions, autoencoder.info)


def clamp(
    autoencoder: Released,
    values: Mapping[int, Strength],
    where: Literal["active"] | None = None,
    positions: Positions | None = None,
    *,
    site: str | None = None,
) -> Edits:
    """Returns edits that set latents to values: x + (value - f) W_dec, so that the reconstruction's error stays.

    Args:
        autoencoder: on raw activations; a transcoder as for `splice`.
        values: {latent: value}, in raw units or `of_max(...)`.
        where: "active" acts only where the latent fires; by default the edit acts at every token that counts.
        positions: as for `splice`.
        site: as for `splice`.

    Returns:
        Edits for `run`, `generate` and `mishax_lite.edit`.

    Raises:
        ValueError: as for `steer`, and for another `where`.

    Example:
        >>> clamped = model.run("And the sea", edits=sae.clamp(autoencoder, {17: 20.0}, where="active"))
    """
    if where not in (None, "active"):
        raise ValueError(f"clamp: where is 'active' or None, got {where!r}")
    site, reads = _sites(autoencoder, site, "clamp")
    latents, numbers = _numbers(autoencoder, values, "clamp")
    change = Set(autoencoder.part(latents), numbers, where == "active")
    return _at(site, reads, change, positions, autoencoder.info)


def _at(site: str, reads: str | None, change: Change, positions: Positions | None, info: Info | None) -> Edits:
    special_ids, sink_norm = _counted(info, site if reads is None else reads)
    tokens = Tokens(narrowing(positions), special_ids, sink_norm)
    return Edits.of({site: Intervention(change, tokens, reads)})


def _counted(info: Info | None, site: str) -> tuple[tuple[int, ...] | None, float | None]:
    """Returns the ids that never count, and the norm above which a token is a sink at a site; None where they are
    unknown."""
    counted = None if info is None else info.counted
    return (None, None) if counted is None else (counted.special_ids, dict(counted.sink_limits).get(site))


def _sites(autoencoder: Released, site: str | None, caller: str) -> tuple[Any, Any]:
    """Returns the site where an autoencoder acts, and the site that it reads where that is another one.

    Raises:
        ValueError: for a crosscoder, an unknown site, and another site than a transcoder's own.
    """
    info = autoencoder.info
    if autoencoder.several_sites():
        raise ValueError(
            f"{caller}: a crosscoder reads several sites, of which the first is edited before the last is computed; "
            "sae.steer takes a crosscoder, with site=..."
        )
    if site is None and info is None:
        raise ValueError(f"{caller}: the autoencoder does not say its site: name one (site=...)")
    if info is None or info.site == info.site_out:
        # pyrefly: ignore[missing-attribute]  not None here
        return site or info.site, None
    if site not in (None, info.site_out):
        raise ValueError(f"{caller}: this transcoder acts at {info.site_out}, got site={site!r}")
    return info.site_out, info.site


def _numbers(autoencoder: Released, numbers: Mapping[int, Strength], caller: str) -> tuple[jax.Array, jax.Array]:
    """Returns latents [K] and their strengths or values, float32 [K]."""
    if not isinstance(numbers, Mapping):
        raise ValueError(f"{caller}: expected a dict {{latent: number}}, such as {{17: 20.0}}, got {numbers!r:.60}")
    latents = _latents(list(numbers), autoencoder.width, caller)
    raw = [
        value.of(autoencoder, latent) if isinstance(value, OfMax) else _number(caller, value)
        for latent, value in numbers.items()
    ]
    if any(isinstance(number, jax.Array) for number in raw):
        return latents, jnp.stack([jnp.asarray(number, jnp.float32) for number in raw])
    return latents, jnp.asarray(np.asarray(raw, np.float32))  # runs no program


def _latents(latents: Any, width: int, caller: str) -> jax.Array:
    """Returns latents as int32 [K]; traced ones are not checked.

    Raises:
        ValueError: for numbers that are no latents, and for a latent that is named twice.
    """
    if isinstance(latents, jax.core.Tracer):
        return latents.astype(jnp.int32)
    try:
        numbers = [operator.index(latent) for latent in latents]
    except TypeError:
        raise ValueError(f"{caller}: latents are integers, got {latents!r:.60}") from None
    wrong = [latent for latent in numbers if not 0 <= latent < width]
    if wrong or not numbers or len(set(numbers)) < len(numbers):
        problem = f"lacks latent {wrong[0]}" if wrong else "needs at least one latent, each once"
        raise ValueError(f"{caller}: the autoencoder has latents 0 to {width - 1} and {problem}; got {latents!r:.60}")
    return jnp.asarray(np.asarray(numbers, np.int32))


def _number(caller: str, value: Any) -> Any:
    """Returns a number, or a scalar array.

    Raises:
        ValueError: for anything else, and for a number that is not finite.
    """
    if isinstance(value, jax.Array) and value.shape == ():
        return value.astype(jnp.float32)
    if np.ndim(value) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        raise ValueError(f"{caller}: expected a finite number or sae.of_max(...), got {value!r:.60}")
    return value
