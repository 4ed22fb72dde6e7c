"""The compiled parts of an evaluation, and where their arguments lie.

A batch is measured by three programs: `sae.capturing.activations_at`, which goes as deep as the sites; `reconstruct`,
one for each shape of autoencoder, whatever the model and the sites; and `losses_with`, which goes on from the sites and
gives the clean, the zero-ablated and every spliced loss. So a sweep at one site compiles the two parts of the forward
pass once, and computes what lies below the site once a batch.

Axis letters: B sequences, T tokens, A dim of the activation, L sites of a crosscoder, Z latents.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from mishax_lite.compiling import jit_forward
from sae.autoencoder import bare
from sae.language_model import LanguageModel, lean
from sae.released import Released, ranked
from sae.sharding import batch_sharding, latent_sharding

LATENTS = 2**24  # of a block of tokens, which are in memory at a time: 64 MiB


@jit_forward
def losses_with(model: LanguageModel, tokens: jax.Array, values: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the losses with values in the place of whole activations.

    Args:
        model: the language model.
        tokens: int32 [B, T].
        values: {site: [B, T, A]}.

    Returns:
        float32 [B, T-1], in nats.
    """
    put = lambda new: lambda value, _: new.astype(value.dtype).reshape(value.shape)  # noqa: E731
    edits = {site: put(new) for site, new in values.items()}
    if not any(model.sites[site].kind == "logits" for site in values):
        return lean(model).losses(tokens, edits=edits)
    logits = lean(model).apply(tokens, edits=edits)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1].astype(jnp.float32), tokens[:, 1:])


@jit_forward
def reconstruct(
    autoencoder: Released, xs: tuple[jax.Array, ...], ys: tuple[jax.Array, ...], text: jax.Array
) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
    """Returns what is spliced in, and the sums that need no forward pass.

    It works in blocks of tokens, so that the latents of all tokens are never in memory.

    Args:
        autoencoder: `bare`.
        xs: [B, T, A] of each site that goes in.
        ys: [B, T, A] of each site that is replaced.
        text: bool [B, T], the tokens that count.

    Returns:
        ys with the autoencoder's output at the tokens that count, in their dtypes; and by name `active`, int32 [Z], on
        how many of these tokens each latent fires; `largest`, float32 [Z], its largest activation; `errors`, float32
        [B, T], the squared error of each of these tokens.
    """
    B, T = text.shape
    Z = autoencoder.width
    count = math.ceil(T / max(1, LATENTS // (B * Z)))
    each = math.ceil(T / count)

    def in_blocks(values: jax.Array) -> jax.Array:
        filled = jnp.pad(values, [(0, 0), (0, count * each - T)] + [(0, 0)] * (values.ndim - 2))
        return jnp.moveaxis(filled.reshape(B, count, each, *values.shape[2:]), 1, 0)

    def add(sums, block):
        active, largest = sums
        x, y, counts = block
        reconstruction, f = autoencoder(x), autoencoder.encode(x)
        on = (f > 0) & counts[..., None]
        errors = jnp.square(reconstruction - y).sum(axis=tuple(range(2, y.ndim)))
        peaks = jnp.where(on, f, 0.0).max(axis=(0, 1))
        sums = active + on.sum(axis=(0, 1), dtype=jnp.int32), jnp.maximum(largest, peaks)
        return sums, (reconstruction, jnp.where(counts, errors, 0.0))

    start = jnp.zeros(Z, jnp.int32), jnp.zeros(Z, jnp.float32)
    blocks = in_blocks(joined(xs)), in_blocks(joined(ys)), in_blocks(text)
    (active, largest), (reconstruction, errors) = jax.lax.scan(add, start, blocks)
    reconstruction, errors = (
        jnp.moveaxis(part, 0, 1).reshape(B, -1, *part.shape[3:])[:, :T] for part in (reconstruction, errors)
    )
    each_site = (reconstruction,) if len(ys) == 1 else tuple(reconstruction[:, :, i] for i in range(len(ys)))
    spliced = tuple(jnp.where(text[..., None], m.astype(y.dtype), y) for m, y in zip(each_site, ys, strict=True))
    return spliced, {"active": active, "largest": largest, "errors": errors}


@jit_forward
def moments(ys: tuple[jax.Array, ...], text: jax.Array, centre: jax.Array) -> dict[str, jax.Array]:
    """Returns sums around a centre, float32.

    Args:
        ys: [B, T, A] of each site.
        text: bool [B, T], the tokens that count.
        centre: float32 [A], or [L, A].

    Returns:
        `shifted` [B, A], the sum over each sequence's tokens that count of the distance to the centre, and `squares`
        [B, T], the squared distance of each token.
    """
    y = joined(ys)
    shifted = jnp.where(text.reshape(*text.shape, *[1] * (y.ndim - 2)), y - ranked(centre, y), 0.0)
    return {"shifted": shifted.sum(axis=1), "squares": jnp.square(shifted).sum(axis=tuple(range(2, y.ndim)))}


@jit_forward
def zeroed(ys: tuple[jax.Array, ...], text: jax.Array) -> tuple[jax.Array, ...]:
    """Returns ys [B, T, A] with zero at the tokens that count, bool [B, T]."""
    return tuple(jnp.where(text[..., None], jnp.zeros_like(y), y) for y in ys)


def joined(values: tuple[jax.Array, ...]) -> jax.Array:
    """Returns the values of several sites as one array: float32 [B, T, A] for one site, [B, T, L, A] for several."""
    wide = [value.astype(jnp.float32) for value in values]
    return wide[0] if len(wide) == 1 else jnp.stack(wide, axis=-2)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a model's parameters lie, and so everything else.

    Attributes:
        mesh: of the parameters; None where one device has them.
    """

    mesh: Mesh | None
    _device: jax.sharding.Sharding | None

    @classmethod
    def of(cls, model: LanguageModel) -> "Layout":
        sharding = getattr(jax.tree.leaves(model.params)[0], "sharding", None)  # numpy's arrays have none
        spread = isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
        # pyrefly: ignore[bad-argument-type]  not None here
        return cls(sharding.mesh if spread else None, sharding)

    def tokens(self, batch: np.ndarray) -> jax.Array:
        """Returns tokens [B, T], placed where a forward pass needs them."""
        return jnp.asarray(batch) if self.mesh is None else jax.device_put(batch, batch_sharding(self.mesh))

    def finish(self, values: Any) -> Any:
        """Returns the values, on a CPU's mesh once they are computed: collectives of programs in flight can starve each
        other of threads there."""
        if self.mesh is not None and self.mesh.devices.flat[0].platform == "cpu":
            jax.block_until_ready(values)
        return values

    def autoencoder(self, autoencoder: Released) -> Released:
        """Returns the `bare` autoencoder on the model's device, or with its latents over the axes of the mesh that are
        not `data`, where these divide them."""
        arrays = bare(autoencoder)
        if self.mesh is None:
            return jax.device_put(arrays, self._device)
        places = {
            name: jax.device_put(array, latent_sharding(self.mesh, arrays.axes[name], arrays.width))
            for name, array in arrays.arrays().items()
        }
        return dataclasses.replace(arrays, **places)
