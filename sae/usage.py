"""Usages of an autoencoder, and how well each fits: which sites go in and come out, with which conventions.

All is measured on activations in memory (`Captured`), so that one forward pass serves many usages. Axis letters: N
tokens, L sites, A dim of the activation, Z latents.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mishax_lite.compiling import jit_forward
from sae import showing
from sae.autoencoder import bare
from sae.capturing import activations_at
from sae.counted import Counted
from sae.evaluation.counting import CountedText, Sites, as_tuple
from sae.evaluation.programs import LATENTS, Layout
from sae.language_model import LanguageModel
from sae.released import Released
from sae.sharding import rounded_up
from sae.text import Sequences, is_text

BATCH_TOKENS = 4096  # tokens of a forward pass
_BYTES = 2**29  # bytes of activations in memory, unless that would be fewer tokens than _FEWEST
_FEWEST = 256


@dataclasses.dataclass(frozen=True)
class Usage:
    """One way to use an autoencoder.

    Attributes:
        site: the site that goes in; several sites, in their order, where it reads several.
        site_out: the site that comes out.
        transposed_skip: whether `W_skip` is transposed before use.
        scale: the factor by which inputs are multiplied.
        scale_out: the number by which the reconstruction is divided.
        convention: the convention that gives the scale, in words; None where none is known.

    Example:
        >>> Usage("layer_3/mlp_in", "layer_3/mlp_out", scale=0.5).words()
        'layer_3/mlp_in to layer_3/mlp_out, inputs multiplied by 0.5'
    """

    site: str | Sites
    site_out: str | Sites
    transposed_skip: bool = False
    scale: float = 1.0
    scale_out: float = 1.0
    convention: str | None = dataclasses.field(default=None, compare=False)

    def words(self) -> str:
        """Returns the usage in words."""
        text = showing.joined(self.site)
        if self.site_out != self.site:
            text += f" to {showing.joined(self.site_out)}"
        if self.transposed_skip:
            text += ", W_skip transposed"
        if self.scale != 1:
            text += f", inputs multiplied by {self.scale:.4g}"
        if self.scale_out not in (1, self.scale):
            text += f", outputs divided by {self.scale_out:.4g}"
        return text

    def folded(self, autoencoder: Released) -> Released:
        """Returns an autoencoder of raw activations for this usage, with its sites in the `info`."""
        c, out = self.scale, self.scale_out
        changes: dict[str, Any] = {
            "W_enc": autoencoder.W_enc * c,
            "W_dec": autoencoder.W_dec / out,
            "b_dec": autoencoder.b_dec / out,
        }
        if (skip := _skip(autoencoder, self.transposed_skip)) is not None:
            changes["W_skip"] = skip * (c / out)
        info = autoencoder.info
        if info is not None:
            same = self.site == info.site
            changes["info"] = dataclasses.replace(
                info, site=self.site, site_out=self.site_out, shape=info.shape if same else None
            )
        return dataclasses.replace(autoencoder, **changes)


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well one usage of an autoencoder fits.

    Attributes:
        usage: the usage.
        fvu: sum ||y - y^||^2 / sum ||y - mean(y)||^2 over the tokens, as `Metrics.fvu`; 1 is as bad as the mean.
        l0: mean number of active latents per token.
    """

    usage: Usage
    fvu: float
    l0: float

    def __repr__(self) -> str:
        return f"Fit({self.usage.words()}: FVU {self.fvu:.3f}, L0 {self.l0:.1f})"


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """Activations of some of the tokens that count, at some sites.

    Attributes:
        values: {site: float32 [N, A]}.
        special: bool [N], whether a token is special (BOS); such tokens are here where the rule counts them.
    """

    values: Mapping[str, np.ndarray]
    special: np.ndarray

    @classmethod
    def of(
        cls, model: LanguageModel, sequences: Sequences, rule: Counted, sites: Sequence[str], most: int
    ) -> "Captured":
        """Returns the activations of at most `most` tokens, in sequences that are spread evenly over the text.

        Raises:
            ValueError: where no token counts.
        """
        length = sequences.tokens.shape[1]
        counts = rule.text(sequences.tokens, sequences.left_out).sum()
        if not counts:
            raise ValueError(f"a check needs text tokens that count, and by the rule these sequences have none: {rule}")
        size = 4 * sum(math.prod(model.sites[site].shape) for site in sites)
        most = max(_FEWEST, min(most, _BYTES // size))
        rows = min(len(sequences), math.ceil(most * len(sequences) / counts))
        chosen = np.unique(np.linspace(0, len(sequences) - 1, rows).astype(int))
        text = CountedText(sequences.take(chosen), rule, model.tokenizer.pad)
        layout = Layout.of(model)
        step = rounded_up(max(1, min(len(chosen), BATCH_TOKENS // length)), layout.mesh)
        names = tuple(sorted({*sites, *rule.sink_sites}))
        parts: list[dict[str, np.ndarray]] = []
        special: list[np.ndarray] = []
        for start in range(0, len(chosen), step):
            tokens = text.batch(start, step)
            captured = layout.finish(activations_at(model, layout.tokens(tokens), names))
            mask = text.mask(start, step, captured)
            parts.append({site: np.asarray(captured[site], np.float32)[mask] for site in sites})
            special.append(~is_text(tokens, model.tokenizer.special_ids)[mask])
        values = {site: np.concatenate([part[site] for part in parts])[:most] for site in sites}
        captured = cls(values, np.concatenate(special)[:most])
        if captured.special.all():
            raise ValueError(f"a check needs text tokens that count, and by the rule these sequences have none: {rule}")
        return captured

    def at(self, sites: str | Sites) -> np.ndarray:
        """Returns the activations [N, A] at one site, or [N, L, A] at several."""
        several = [self.values[site] for site in as_tuple(sites)]
        return several[0] if len(several) == 1 else np.stack(several, axis=1)

    def fits(
        self,
        autoencoder: Released,
        usage: Usage,
        sites_out: Sequence[str | Sites],
        *,
        special: bool = False,
        free_scale_out: bool = False,
    ) -> list[Fit]:
        """Returns how well the output of one usage fits each of several sites.

        Args:
            autoencoder: the autoencoder, whose arrays do not change with `usage`.
            usage: the usage; its `site_out` is not read.
            sites_out: the sites that the output is compared with, one fit for each.
            special: whether special tokens count, where the rule counts them.
            free_scale_out: whether to take the `scale_out` that fits best.
        """
        out, active = self.reconstruction(autoencoder, usage)
        rows = slice(None) if special else ~self.special
        out, l0 = out[rows], float(active[rows].mean())
        fits = []
        for sites in sites_out:
            y = self.at(sites)[rows]
            scale_out = usage.scale_out
            if free_scale_out:
                along = float(np.vdot(out, y))
                scale_out = float(np.vdot(out, out)) / along if along > 0 else math.inf
            errors = np.square(out / scale_out - y).sum(dtype=np.float64)
            spread = np.square(y - y.mean(axis=0)).sum(dtype=np.float64)
            fvu = float(errors / spread) if spread > 0 else math.inf
            changed = dataclasses.replace(usage, site_out=sites, scale_out=scale_out)
            fits.append(Fit(changed, fvu if math.isfinite(fvu) else math.inf, l0))
        return fits

    def special_error(self, autoencoder: Released, usage: Usage) -> float | None:
        """Returns the squared error at special tokens over their squared distance from the mean of the others; None
        where no special token counts."""
        if not self.special.any():
            return None
        out, _ = self.reconstruction(autoencoder, usage)
        y = self.at(usage.site_out)
        y_special, mean = y[self.special], y[~self.special].mean(axis=0)
        errors = np.square(out[self.special] / usage.scale_out - y_special).sum(dtype=np.float64)
        return float(errors / np.square(y_special - mean).sum(dtype=np.float64))

    def first(self, tokens: int) -> "Captured":
        """Returns the first tokens that are not special."""
        rows = np.flatnonzero(~self.special)[:tokens]
        return Captured({site: value[rows] for site, value in self.values.items()}, self.special[rows])

    def fit(self, autoencoder: Released, usage: Usage, *, special: bool = False) -> Fit:
        """Returns how well one usage fits."""
        return self.fits(autoencoder, usage, [usage.site_out], special=special)[0]

    def reconstruction(self, autoencoder: Released, usage: Usage) -> tuple[np.ndarray, np.ndarray]:
        """Returns the output [N, A] or [N, L, A], before its division by `scale_out`, and the numbers of active latents
        [N]."""
        turned = bare(autoencoder)
        if usage.transposed_skip:
            turned = dataclasses.replace(turned, W_skip=_skip(autoencoder, True))
        x = self.at(usage.site)
        size = max(1, min(len(x), LATENTS // turned.width))
        outs, actives = [], []
        for start in range(0, len(x), size):
            block = x[start : start + size]
            filled = np.pad(block, [(0, size - len(block))] + [(0, 0)] * (x.ndim - 1))  # one program for all blocks
            out, active = jax.device_get(_reconstruct(turned, jnp.asarray(filled) * usage.scale))
            outs.append(out[: len(block)])
            actives.append(active[: len(block)])
        return np.concatenate(outs), np.concatenate(actives)


@jit_forward
def _reconstruct(autoencoder: Released, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return autoencoder(x), (autoencoder.encode(x) > 0).sum(axis=-1)


def _skip(autoencoder: Released, transposed: bool) -> jax.Array | None:
    skip = getattr(autoencoder, "W_skip", None)
    return skip if skip is None or not transposed else jnp.swapaxes(skip, -1, -2)


def can_transpose(autoencoder: Released) -> bool:
    """Returns whether an autoencoder has a skip with equal axes, which may be used transposed."""
    skip = getattr(autoencoder, "W_skip", None)
    return skip is not None and skip.shape[-1] == skip.shape[-2]
