"""The JumpReLU autoencoder: what `sae.train` returns, `sae.save` writes and `sae.load` reads.

f = z * 1[z > theta] with z = x W_enc + b_enc, and x^ = f W_dec + b_dec (arXiv 2408.05147, section 2.2). Axis letters:
B any leading axes, A width of the activation, Z latents.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Info:
    """Where an autoencoder belongs and how it came about.

    Attributes:
      model: the model's name.
      site: what goes in, for example `layer_3/resid_post`; several sites, in their order, for a crosscoder.
      site_out: what comes out; the same for an autoencoder and a crosscoder, another site for a transcoder.
      units: "raw" when activations go in and come out as the model computes them.
      training: how it was trained, as JSON (the recipe, the store's fingerprint, what training left out).
    """

    model: str
    site: str | tuple[str, ...]
    site_out: str | tuple[str, ...]
    units: str = "raw"
    training: str = "{}"

    def __post_init__(self):
        for field in ("site", "site_out"):  # JSON knows lists
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JumpReLU:
    """A sparse autoencoder on raw activations; a pytree.

    Attributes:
      W_enc: [A, Z]. b_enc: [Z]. W_dec: [Z, A]. b_dec: [A]. threshold: [Z], theta, at least 0.
      W_skip: [A, A], the affine skip of some transcoders, or None.
      info: static; None where it is not known.

    Raises:
      ValueError: when made with arrays whose shapes do not belong together.
    """

    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    threshold: jax.Array
    W_skip: jax.Array | None = None
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        arrays = {field: getattr(self, field) for field in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
        if not all(hasattr(array, "shape") for array in arrays.values()):
            return  # a transformation's placeholders
        shapes = {field: tuple(array.shape) for field, array in arrays.items()}
        if any(len(shapes[field]) != rank for field, rank in zip(arrays, (2, 1, 2, 1, 1), strict=True)):
            return  # under vmap or stacked: the leading axes are somebody else's
        A_in, Z = shapes["W_enc"]
        A_out = shapes["b_dec"][0]
        want = {"W_enc": (A_in, Z), "b_enc": (Z,), "W_dec": (Z, A_out), "b_dec": (A_out,), "threshold": (Z,)}
        if shapes != want:
            raise ValueError(f"these arrays make no autoencoder: expected {want}, got {shapes}")

    @property
    def width(self) -> int:
        """Z, the number of latents."""
        return self.W_enc.shape[-1]

    def encode(self, x: jax.Array) -> jax.Array:
        """Raw activations [B, A] -> latents [B, Z], zero where the pre-activation is not above its threshold."""
        z = jnp.matmul(x, self.W_enc, precision="highest") + self.b_enc
        return jnp.where(z > self.threshold, z, 0.0)

    def decode(self, f: jax.Array) -> jax.Array:
        """Latents [B, Z] -> raw activations [B, A], without the skip."""
        return jnp.matmul(f, self.W_dec, precision="highest") + self.b_dec

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction [B, A] of [B, A]."""
        out = self.decode(self.encode(x))
        return out if self.W_skip is None else out + jnp.matmul(x, self.W_skip, precision="highest")
