"""The base of all released autoencoders: arrays with named axes. By the names they are checked, spread over a mesh, cut
to some latents, and written to files.

A released form is a frozen dataclass that derives from `Released` and is registered as a pytree and in `forms`. One
file adds one (`sae/topk.py` is the shortest). This file knows none of them. Axis letters: B any leading axes, A dim of
the activation, L sites, Z latents.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from mishax_lite.promotion import common_dtype
from sae import showing
from sae.registry import Registry

if TYPE_CHECKING:
    from sae.autoencoder import Info, Largest


AnyArray = jax.Array | np.ndarray
Axes = Mapping[str, tuple[str, ...]]


def above(z: jax.Array, threshold: jax.Array | float, values: jax.Array | None = None) -> jax.Array:
    """Returns values, by default z itself, where z is above a threshold, else 0. A z that is not a number stays."""
    return jnp.where(z <= ranked(threshold, z), 0.0, z if values is None else values)


def ranked(values: Any, x: AnyArray) -> Any:
    """Returns values [*shape] with axes of one before theirs, as many as x [..., *shape] has; a scalar as it is."""
    return jnp.expand_dims(values, tuple(range(x.ndim - jnp.ndim(values)))) if jnp.ndim(values) else values


def plus(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns x [..., *shape] plus a bias [*shape]."""
    return x + ranked(bias, x)


class Released(abc.ABC):
    """A released autoencoder: raw activations go in and come out.

    A form has the fields of its `axes`, those of its `numbers`, `info` and `largest`. It calls `check_shapes` in
    `__post_init__`.

    Attributes:
        axes: {array: its axes}. The axes are "A" (of inputs), "A'" (of outputs), "L" and "Z". Along "Z" an array may be
            spread over a mesh and cut. An array may be None where the class has None as its default.
        numbers: names of static fields that are plain numbers, such as k.
        noun: what errors call the form.
    """

    axes: ClassVar[Axes]
    numbers: ClassVar[tuple[str, ...]] = ()
    noun: ClassVar[str] = "autoencoder"
    W_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    info: "Info | None"
    largest: "Largest | None"
    if TYPE_CHECKING:  # forms are dataclasses
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    @abc.abstractmethod
    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... Z"]:
        """Returns the latents [B, Z], at least 0, of raw activations [B, A], or [B, L, A] of several sites.

        Raises:
            ValueError: for activations of another length.
        """

    @classmethod
    def optional(cls) -> set[str]:
        """Returns the names of the fields that may be None."""
        return {field.name for field in dataclasses.fields(cls) if field.default is None}

    @classmethod
    def several_sites(cls) -> bool:
        """Returns whether the form reads several sites at once."""
        return "L" in cls.axes["W_enc"]

    @property
    def width(self) -> int:
        """Z, the number of latents."""
        return self.W_enc.shape[-1]

    @property
    def dims(self) -> tuple[int, int]:
        """A of the inputs, and A of the outputs."""
        return self.W_enc.shape[-2], self.b_dec.shape[-1]

    @property
    def site_count(self) -> int:
        """L, the number of sites that it reads."""
        return self.W_enc.shape[0] if self.several_sites() else 1

    @property
    def thresholds(self) -> Float[AnyArray, " Z"]:
        """[Z]: a latent's activation is above its threshold, or 0. Zeros where a form has no array `threshold`."""
        return getattr(self, "threshold", jnp.zeros(self.width))

    def decode(self, f: Float[AnyArray, "*B Z"]) -> Float[jax.Array, "*B A"]:
        """Returns raw activations [B, A], without the skip, of latents [B, Z]."""
        return plus(jnp.matmul(f, self.W_dec, precision="highest"), self.b_dec)

    def __call__(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "..."]:
        """Returns the reconstruction [B, A] of raw activations [B, A]. Joined heads are separated again, unless the
        output has another A."""
        flat = self.joined(x)
        out, skip = self.decode(self.encode(flat)), getattr(self, "W_skip", None)
        out = out if skip is None else out + jnp.matmul(flat, skip, precision="highest")
        return out.reshape(jnp.shape(x)) if out.shape == flat.shape else out

    def rows(self, latents: Integer[AnyArray, " K"]) -> Float[AnyArray, "K ..."]:
        """Returns W_dec's rows of latents [K]: [K, A], or [K, L, A] of several sites."""
        return self.W_dec[latents]

    def part(self, latents: Integer[AnyArray, " K"]) -> "Released | Part":
        """Returns latents [K] alone, with the same activations: an object with `encode`, `W_dec` and `width`."""
        return Part(dataclasses.replace(self, info=None, largest=None), latents)

    def reordered(self, order: Integer[AnyArray, " Z"]) -> Self:
        """Returns the autoencoder with its latents in another order, without `largest`. `order` [Z] has their
        numbers."""
        return dataclasses.replace(self, **self._taken(order), largest=None)

    def shifted(self, shift: Float[AnyArray, " A"]) -> Self:
        """Returns the autoencoder whose latents are the same where a shift [A] was added to activations. A form with
        another bias than `b_enc` overrides this."""
        b_enc = self.arrays()["b_enc"]
        return dataclasses.replace(self, b_enc=b_enc - jnp.matmul(shift, self.W_enc, precision="highest"))

    def scaled(self, gain: Float[AnyArray, ""] | Float[AnyArray, " Z"]) -> Self:
        """Returns the autoencoder with its biases and thresholds, which are in units of the latents, multiplied by a
        gain, [] or [Z]. A form with others than `b_enc` and `threshold` overrides this."""
        names = [name for name in ("b_enc", "threshold") if name in self.axes]
        return dataclasses.replace(self, **{name: gain * getattr(self, name) for name in names})

    def _taken(self, latents: AnyArray) -> dict[str, jax.Array]:
        """Returns the arrays that have an axis Z, with these latents alone, in this order."""
        return {
            name: jnp.take(array, latents, axis=self.axes[name].index("Z"))
            for name, array in self.arrays().items()
            if "Z" in self.axes[name]
        }

    def joined(self, x: Float[AnyArray, "..."]) -> Float[AnyArray, "... A"]:
        """Returns activations as the autoencoder takes them: heads joined, [B, T, N, H] to [B, T, A], and in its dtype
        where that is wider."""
        flat = with_axes_joined(x, self.W_enc.shape[-3 if self.several_sites() else -2 : -1], self.info)
        return flat.astype(common_dtype(flat.dtype, self.W_enc.dtype))

    def arrays(self) -> dict[str, jax.Array]:
        """Returns the arrays by name, without those that are None."""
        return {name: array for name in self.axes if (array := getattr(self, name)) is not None}

    @classmethod
    def check_arrays(cls, values: Mapping[str, np.ndarray | jax.Array]) -> None:
        """Raises ValueError, naming the array, for values that this form cannot have, such as thresholds below 0."""
        if "threshold" in values and (low := int((values["threshold"] < 0).sum())):
            raise ValueError(
                f"threshold must be at least 0, got {low:,} below it, the least {float(values['threshold'].min()):g}: "
                "a latent would be active where its activation is negative"
            )

    def check_shapes(self) -> None:
        """Raises ValueError for arrays whose shapes do not belong together. It passes tracers, placeholders of a
        transformation and stacked autoencoders."""
        shapes: dict[str, Any] = {name: getattr(getattr(self, name), "shape", None) for name in self.axes}
        shapes = {name: shape for name, shape in shapes.items() if shape is not None or name not in self.optional()}
        if None in shapes.values() or any(len(shapes[name]) != len(self.axes[name]) for name in shapes):
            return
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            for axis, size in zip(self.axes[name], shape, strict=True):
                sizes.setdefault(axis, size)
        want = {name: tuple(sizes[axis] for axis in self.axes[name]) for name in shapes}
        if (got := {name: tuple(shape) for name, shape in shapes.items()}) != want:
            raise ValueError(f"these arrays make no {self.noun}: expected {want}, got {got}")
        if self.largest is not None and len(self.largest.values) != self.width:
            raise ValueError(
                f"the largest activations are of {len(self.largest.values)} latents, the autoencoder has {self.width}"
            )

    def __repr__(self) -> str:
        first, *rest = (name for name in self.axes if name not in ("W_enc", "W_dec", "W_skip"))
        names = ["W_enc", first, "W_dec", *rest]  # in the order that `showing.autoencoder` wants
        return showing.autoencoder(self, names, [len(self.axes[name]) for name in names])


forms: Registry[type[Released]] = Registry("form of autoencoder")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Latents [K] of an autoencoder in which the activation of one latent depends on others."""

    autoencoder: Released
    latents: AnyArray

    @property
    def width(self) -> int:
        return self.latents.shape[-1]

    @property
    def W_dec(self) -> AnyArray:
        return self.autoencoder.rows(self.latents)

    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... K"]:
        """Returns the latents [B, K] of raw activations [B, A]."""
        return self.autoencoder.encode(x)[..., self.latents]


class Independent(Released):
    """A released autoencoder in which no latent's activation depends on another latent."""

    def rows(self, latents: Integer[AnyArray, " K"]) -> Float[AnyArray, "K ..."]:
        """Returns W_dec's rows of latents [K]: [K, A], or [K, L, A] of several sites."""
        return self.W_dec[latents]

    def part(self, latents: Integer[AnyArray, " K"]) -> Self:
        """Returns latents [K] alone, cut out of the arrays."""
        cut: dict[str, Any] = {**self._taken(latents)}
        if "W_skip" in self.axes:
            cut["W_skip"] = None  # moves no latent
        return dataclasses.replace(self, **cut, info=None, largest=None)


def with_axes_joined(x: Any, shape: tuple[int, ...], info: "Info | None") -> Any:
    """Returns activations [..., *shape] of activations as the model computes them: [..., N, H] becomes [..., N * H].

    Args:
        x: activations as captured, or with their axes joined already.
        shape: an autoencoder's input for one token: (A,), or (L, A) for a crosscoder.
        info: the autoencoder's. Where it does not record the shape of a token's activation, the last axes that make A
            are joined, and at least two axes, B and T, have to come before them. Otherwise tokens might be taken for
            heads, [4, 192] for 768.

    Raises:
        ValueError: for activations of another shape.
    """
    given = jnp.shape(x)
    if given[-len(shape) :] == shape:
        return x
    *sites, length = shape
    if info is not None and info.shape is not None:
        counts = [len(info.shape)] if given[-len(info.shape) :] == info.shape else []
    else:
        counts = range(2, len(given) - len(sites) - 1)
    for count in counts:
        before = given[: len(given) - count]
        if math.prod(given[len(before) :]) == length and before[len(before) - len(sites) :] == tuple(sites):
            return jnp.reshape(x, (*before, length))
    raise ValueError(
        f"the autoencoder takes activations [..., {', '.join(map(str, shape))}], got {list(given)}: are they of "
        "another site or model?"
    )
