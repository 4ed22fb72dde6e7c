"""The JumpReLU autoencoder: what `sae.train` returns, `sae.save` writes and `sae.load` reads.

f = z * 1[z > theta] with z = x W_enc + b_enc, and x^ = f W_dec + b_dec (arXiv 2408.05147, section 2.2). Axis letters:
B any leading axes, A width of the activation, Z latents.
"""

import dataclasses
import json
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sae import showing
from sae.counted import Counted, Sinks
from sae.fields import check_fields, of_json
from sae.records import Record

T = TypeVar("T")

_NAMES, _RANKS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), (2, 1, 2, 1, 1)


@dataclasses.dataclass(frozen=True)
class Info:
    """Where an autoencoder belongs and how it came about.

    Attributes:
      model: the model's name.
      site: what goes in, for example `layer_3/resid_post`; several sites, in their order, for a crosscoder.
      site_out: what comes out; the same for an autoencoder and a crosscoder, another site for a transcoder.
      units: "raw" when activations go in and come out as the model computes them.
      training: how it was trained, as the JSON of an object (the recipe, the scales).
      counted: which tokens training counted; evaluation and pages follow it. None where this was not recorded.
      record: the model and the text that it was trained on. None where this was not recorded.
      shape: of one token's activation at `site`, as the model computes it: (A,), or (N, H) for heads, which are joined
        to A. None where this was not recorded.

    Raises:
      ValueError: when made with a value of another type, which no file could hold.
    """

    model: str
    site: str | tuple[str, ...]
    site_out: str | tuple[str, ...]
    units: str = "raw"
    training: str = "{}"
    counted: Counted | None = None
    record: Record | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self):
        for field in ("site", "site_out"):  # JSON knows lists
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))
            sites = getattr(self, field)
            if (
                not all(isinstance(site, str) for site in (sites if isinstance(sites, tuple) else (sites,)))
                or not sites
            ):
                raise ValueError(f"Info: {field} is a site's name, or several; got {sites!r}")
        check_fields(self, ("model", "units", "training", "shape"))
        try:
            facts = json.loads(self.training)
        except ValueError as error:
            raise ValueError(f"Info: training is the JSON of an object, got {self.training!r:.60} ({error})") from None
        if not isinstance(facts, dict):
            raise ValueError(f"Info: training is the JSON of an object, got {self.training!r:.60}")
        if self.shape is not None and (not self.shape or min(self.shape) < 1):
            raise ValueError(f"Info: shape is one or more sizes above 0, got {self.shape!r:.60}")
        for field, kind in (("counted", Counted), ("record", Record)):  # and no dataclasses
            if isinstance(getattr(self, field), dict):
                object.__setattr__(self, field, of_json(kind, getattr(self, field)))
            if not isinstance(getattr(self, field), kind | None):
                raise ValueError(f"Info: {field} is a {kind.__name__}, or None; got {getattr(self, field)!r:.60}")

    @classmethod
    def of_json(cls, facts: dict) -> "Info":
        """Returns what an `info.json` says, also one of an earlier version, which has `rule` in place of `counted`.

        Raises:
          TypeError, ValueError: for what is no `Info`.
        """
        facts = dict(facts)
        if rule := facts.pop("rule", None):
            if missing := {"dropped_tokens", "left_out", "sink_limits"} - set(rule):
                raise ValueError(f"Info: the rule of which tokens count has no {min(missing)}")
            limits = rule["sink_limits"]
            sinks = Sinks(limits=limits) if limits else None
            facts["counted"] = Counted(tuple(rule["dropped_tokens"]), rule["left_out"], sinks)
        return cls(**facts)

    @property
    def label(self) -> str:
        """Where the autoencoder belongs, in words: `layer_3/mlp_in to layer_3/mlp_out of gemma2-tiny`."""
        into = "" if self.site_out == self.site else f" to {showing.joined(self.site_out)}"
        return f"{showing.joined(self.site)}{into} of {self.model}"

    def __repr__(self) -> str:
        return f"Info({self.label}, {self.units} units)"


@dataclasses.dataclass(frozen=True, eq=False)
class Largest:
    """The largest activation of each latent over some tokens: the measure for the strength of steering.

    Training records it over its last tokens and more, with the autoencoder as it ends (`sae.finish`), and
    `python -m experiments.evaluate` where no record is. Two are equal if their values are.

    Attributes:
        values: float32 [Z], raw units. 0 for a latent that fired on none of the tokens.
        tokens: how many tokens there were.

    Raises:
        ValueError: for values that are not [Z], not finite or below 0, or no tokens.
    """

    values: np.ndarray
    tokens: int

    def __post_init__(self):
        values = np.array(self.values, np.float32)
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"the largest activations are [Z], finite and at least 0; got shape {list(values.shape)}")
        check_fields(self, ("tokens",))
        if self.tokens < 1:
            raise ValueError(f"the largest activations are over one token at least, got {self.tokens}")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return f"Largest({showing.count(len(self.values), 'latent')}, over {showing.count(self.tokens, 'token')})"

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Largest) and self.tokens == other.tokens
        return same and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash((self.tokens, len(self.values)))  # of a static field, at each call: not over all values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JumpReLU:
    """A sparse autoencoder on raw activations; a pytree.

    Attributes:
      W_enc: [A, Z]. b_enc: [Z]. W_dec: [Z, A]. b_dec: [A]. threshold: [Z], theta, at least 0.
      W_skip: [A, A], the affine skip of some transcoders, or None.
      info: static; None where it is not known.
      largest: static; the largest activation of each latent, None where nobody has recorded it.

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
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        arrays = {field: getattr(self, field) for field in _NAMES}
        if not all(hasattr(array, "shape") for array in arrays.values()):
            return  # a transformation's placeholders
        shapes = {field: tuple(array.shape) for field, array in arrays.items()}
        if any(len(shapes[field]) != rank for field, rank in zip(_NAMES, _RANKS, strict=True)):
            return  # under vmap or stacked: the leading axes are somebody else's
        A_in, Z = shapes["W_enc"]
        A_out = shapes["b_dec"][0]
        want = {"W_enc": (A_in, Z), "b_enc": (Z,), "W_dec": (Z, A_out), "b_dec": (A_out,), "threshold": (Z,)}
        if hasattr(self.W_skip, "shape"):
            shapes["W_skip"], want["W_skip"] = tuple(self.W_skip.shape), (A_in, A_out)
        if shapes != want:
            raise ValueError(f"these arrays make no autoencoder: expected {want}, got {shapes}")
        check_largest(self.largest, Z)

    @property
    def width(self) -> int:
        """Z, the number of latents."""
        return self.W_enc.shape[-1]

    def __repr__(self) -> str:
        return showing.autoencoder(self, _NAMES, _RANKS)

    def scaled(self, gain: jax.Array) -> "JumpReLU":
        """Returns it with what is in units of the latents, beside the weights and biases, multiplied by a gain, [] or
        [Z]."""
        return dataclasses.replace(self, threshold=gain * self.threshold)

    def reordered(self, order: jax.Array) -> "JumpReLU":
        """Returns it with its latents in another order, [Z] of their numbers; without `largest`."""
        latents = {"W_enc": self.W_enc[:, order], "b_enc": self.b_enc[order], "W_dec": self.W_dec[order]}
        return dataclasses.replace(self, **latents, threshold=self.threshold[order], largest=None)

    def encode(self, x: jax.Array) -> jax.Array:
        """Raw activations [B, A] -> latents [B, Z], zero where the pre-activation is not above its threshold.

        Axes of a token are joined: heads are taken as captured, [B, T, N, H].

        Raises:
          ValueError: for activations of another length.
        """
        x = with_axes_joined(x, self.W_enc.shape[-2:-1], self.info)
        z = jnp.matmul(x, self.W_enc, precision="highest") + self.b_enc
        return jnp.where(z > self.threshold, z, 0.0)

    def decode(self, f: jax.Array) -> jax.Array:
        """Latents [B, Z] -> raw activations [B, A], without the skip."""
        return jnp.matmul(f, self.W_dec, precision="highest") + self.b_dec

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction [B, A] of [B, A]. Heads that were joined are apart again, unless A is another at the
        output."""
        flat = with_axes_joined(x, self.W_enc.shape[-2:-1], self.info)
        out = self.decode(self.encode(flat))
        out = out if self.W_skip is None else out + jnp.matmul(flat, self.W_skip, precision="highest")
        return out.reshape(jnp.shape(x)) if out.shape == flat.shape else out


def with_axes_joined(x: jax.Array, shape: tuple[int, ...], info: Info | None) -> jax.Array:
    """Activations [..., *shape], where they may have been given as the model computes them: [..., N, H] for N * H.

    Args:
      x: as captured.
      shape: what an autoencoder takes for one token: (A,), or (L, A) for a crosscoder.
      info: the autoencoder's. Where it does not record the shape of a token's activation, the last axes are joined that
        make A, and two axes at least, B and T, have to come before: else tokens might be taken for heads, [4, 192] for
        768.

    Raises:
      ValueError: for activations that are neither.
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


def check_values(autoencoder) -> None:
    """Raises ValueError, naming the array, for a JumpReLU or a crosscoder by which nothing can be measured: one of
    several stacked ones, values that are not finite, thresholds below 0."""
    names = [name for name in (*_NAMES, "W_skip") if getattr(autoencoder, name, None) is not None]
    if (rank := jnp.ndim(autoencoder.threshold)) != 1:
        raise ValueError(f"one autoencoder has thresholds [Z], got {rank} axes: of stacked ones, each goes by itself")
    for name in names:
        if bad := int(jnp.sum(~jnp.isfinite(getattr(autoencoder, name)))):
            raise ValueError(f"{name} must be finite, got {bad:,} values that are not")
    if low := int(jnp.sum(autoencoder.threshold < 0)):
        raise ValueError(
            f"threshold must be at least 0, got {low:,} below it: a latent would be active where its activation is "
            "negative"
        )


def check_largest(largest: Largest | None, width: int) -> None:
    """Raises ValueError for a record of another number of latents."""
    if largest is not None and len(largest.values) != width:
        raise ValueError(f"the largest activations are of {len(largest.values)} latents, the autoencoder has {width}")


def bare(autoencoder: T) -> T:
    """Returns a JumpReLU or a crosscoder without what is static: those of one shape then share compiled programs."""
    return dataclasses.replace(autoencoder, info=None, largest=None)
