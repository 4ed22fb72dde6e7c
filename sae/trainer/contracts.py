"""Checks that parts keep their promises, by shapes alone, while a step is traced or before the first: at no cost.

Parts of users are checked like the parts of this package. A part that breaks its promise is named, and no run ends in a
broken release.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sae import showing
from sae.architectures import Architecture, Encoded
from sae.parts import Part, Sizes
from sae.released import Released


def check_encoded(architecture: Architecture, encoded: Encoded, tokens: int, sizes: Sizes) -> None:
    """Raises ValueError for latents, or what is read of them, of other shapes than `Encoded` says.

    Args:
        architecture: the one whose `encode` returned `encoded`.
        encoded: may be traced.
        tokens: B, tokens of the batch.
        sizes: of the run.
    """
    latents = (tokens, sizes.width)
    expected = {"f": latents, "z": latents, "l0": (tokens,), "fired": (sizes.width,)}
    if encoded.magnitude is not None:
        expected["magnitude"] = latents
    for name, shape in expected.items():
        if (got := jnp.shape(getattr(encoded, name))) != shape:
            raise ValueError(
                f"{type(architecture).__name__}.encode: {name} has the shape {list(got)}, expected {list(shape)}"
            )


def check_scalar(part: Part, method: str, value: Any) -> None:
    """Raises ValueError unless a method of a part returned one number.

    Args:
        part: the part.
        method: the method's name.
        value: what the method returned; may be traced.
    """
    if (got := jnp.shape(value)) != ():
        raise ValueError(
            f"{type(part).__name__}.{method} returned an array of shape {list(got)}, expected one number, such as "
            "a mean over the batch"
        )


def check_release(architecture: Architecture, params: Any, kept: Any, sizes: Sizes) -> None:
    """Raises ValueError for an architecture whose `release` returns what cannot be saved.

    Args:
        architecture: the one whose `release` is checked.
        params: its parameters, or their shapes.
        kept: the state that it keeps from step to step, or its shapes.
        sizes: of the run.
    """
    released = jax.eval_shape(lambda params, kept: architecture.release(params, kept, sizes), params, kept)
    name = f"{type(architecture).__name__}.release"
    if not isinstance(released, Released):
        raise ValueError(f"{name} returned {showing.kind(released)}: return a released form, such as sae.JumpReLU")
    for array, value in released.arrays().items():
        axes = released.axes[array]
        if len(value.shape) != len(axes):
            raise ValueError(f"{name}: {array} has the shape {list(value.shape)}, expected [{', '.join(axes)}]")
    released.check_shapes()
    if released.width != sizes.width:
        raise ValueError(f"{name} returned {released.width} latents, and the run has {sizes.width}")
