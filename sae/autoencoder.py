"""The JumpReLU autoencoder, which `sae.train` returns, `sae.save` writes and `sae.load` reads.

f = z * 1[z > theta] with z = x W_enc + b_enc, and x^ = f W_dec + b_dec (arXiv 2408.05147, section 2.2). Axis letters:
B any leading axes, A dim of the activation, Z latents.
"""

import dataclasses
import json
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from sae import showing
from sae.counted import Counted, Sinks
from sae.fields import check_fields, of_json
from sae.records import Record
from sae.released import AnyArray, Axes, Independent, Released, above, forms, plus

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Info:
    """The model and the sites of an autoencoder, and how it was trained.

    Attributes:
        model: the model's name.
        site: the site that goes in, such as `layer_3/resid_post`; several sites, in their order, for a crosscoder.
        site_out: the site that comes out: the same for an autoencoder and a crosscoder, another for a transcoder.
        units: "raw" where activations go in and come out as the model computes them.
        training: how it was trained, as the JSON of an object (the recipe, the scales).
        counted: which tokens training counted; evaluation and pages follow it. None where it was not recorded.
        record: the model and the text of the training. None where it was not recorded.
        shape: the shape of one token's activation at `site` in the model: (A,), or (N, H) for heads, which are joined
            to A. None where it was not recorded.

    Raises:
        ValueError: for a value of another type, which no file could hold.

    Example:
        >>> info = sae.Info("gemma2-tiny", "layer_3/mlp_in", "layer_3/mlp_out")
        >>> info.label
        'layer_3/mlp_in to layer_3/mlp_out of gemma2-tiny'
        >>> autoencoder.info
        Info(layer_1/resid_post of gemma2-tiny, raw units)
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
        except (ValueError, RecursionError) as error:
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
        """Returns the record in an `info.json`. One of an earlier version has `rule` in place of `counted`.

        Raises:
            TypeError, ValueError: for an object that is no `Info`.
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
        """The sites and the model in words: `layer_3/mlp_in to layer_3/mlp_out of gemma2-tiny`."""
        into = "" if self.site_out == self.site else f" to {showing.joined(self.site_out)}"
        return f"{showing.joined(self.site)}{into} of {self.model}"

    def __repr__(self) -> str:
        return f"Info({self.label}, {self.units} units)"


@dataclasses.dataclass(frozen=True, eq=False)
class Largest:
    """The largest activation of each latent over some tokens: the measure for the strength of steering.

    Training records it with the final autoencoder (`sae.finish`), and `python -m experiments.evaluate` records it where
    it is missing. Two records are equal if their values are.

    Attributes:
        values: float32 [Z], raw units. 0 for a latent that fired on none of the tokens.
        tokens: the number of tokens.

    Raises:
        ValueError: for values that are not [Z], not finite or below 0, or for no tokens.
    """

    values: Float32[np.ndarray, " Z"]
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


@forms.register("JumpReLU")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class JumpReLU(Independent):
    """A JumpReLU autoencoder on raw activations; a pytree.

    Attributes:
        W_enc: [A, Z].
        b_enc: [Z].
        W_dec: [Z, A].
        b_dec: [A].
        threshold: [Z], theta, at least 0.
        W_skip: [A, A], the affine skip of some transcoders, or None.
        info: static; the model and the sites, or None where they are unknown.
        largest: static; the largest activation of each latent, or None where it was not recorded.

    Raises:
        ValueError: for arrays whose shapes do not belong together.

    Example:
        >>> eye, zero = jnp.eye(2), jnp.zeros(2)
        >>> jumprelu = sae.JumpReLU(eye, zero, eye, zero, threshold=jnp.ones(2))
        >>> jumprelu.encode(jnp.float32([0.5, 3])).tolist()
        [0.0, 3.0]
    """

    axes: ClassVar[Axes] = {
        "W_enc": ("A", "Z"),
        "b_enc": ("Z",),
        "W_dec": ("Z", "A'"),
        "b_dec": ("A'",),
        "threshold": ("Z",),
        "W_skip": ("A", "A'"),
    }
    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    threshold: jax.Array
    W_skip: jax.Array | None = None
    info: Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        self.check_shapes()

    def encode(self, x: Float[AnyArray, "... A"]) -> Float[jax.Array, "... Z"]:
        """Returns the latents [B, Z] of raw activations [B, A]: 0 where a pre-activation is at most its threshold.

        Heads may come as captured, [B, T, N, H]: their axes are joined.

        Raises:
            ValueError: for activations of another length.
        """
        z = plus(jnp.matmul(self.joined(x), self.W_enc, precision="highest"), self.b_enc)
        return above(z, self.threshold)


def check_values(autoencoder: Released) -> None:
    """Raises ValueError, naming the array, for an autoencoder that cannot be measured: stacked autoencoders, values
    that are not finite, thresholds below 0."""
    arrays = autoencoder.arrays()
    for name, array in arrays.items():
        if (got := jnp.ndim(array)) != (rank := len(autoencoder.axes[name])):
            raise ValueError(
                f"an autoencoder's {name} has {rank} axes, got {got}: give stacked autoencoders one at a time"
            )
    for name, array in arrays.items():
        if bad := int(jnp.sum(~jnp.isfinite(array))):
            raise ValueError(f"{name} must be finite, got {bad:,} values that are not")
    autoencoder.check_arrays(arrays)


def bare(autoencoder: T) -> T:
    """Returns an autoencoder without `info` and `largest`, so that all of one shape share compiled programs."""
    changed: Any = autoencoder
    return dataclasses.replace(changed, info=None, largest=None)
