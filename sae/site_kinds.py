"""Kinds of sites: an adapter gives one `SiteKind` for each kind, from which the record of every site derives."""

import collections
import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sae.language_model import Site

# (parameters, layer or None) -> the matrix [*shape, D] through which a value at the site is added.
Map = Callable[[Any, int | None], jax.Array]


@dataclasses.dataclass(frozen=True)
class SiteKind:
    """The sites of one kind, one in every layer.

    Attributes:
        name: what people call the kind, such as `resid_post`. Kinds of the residual stream itself begin with `resid`.
        shape: the value's shape without its batch and text axes: (D,), (N, H), (V,), (1,); (N,) for pairs of tokens.
        writes: how a value at the site reaches the residual stream. True: it is added as it is. A function of
            (parameters, layer): it is added through the matrix [*shape, D] that the function returns. False: it does
            not reach the stream by itself.
        in_layers: whether each layer has one; otherwise the model has one.
        per_token: False for a value [B, ..., T, T] for each pair of tokens, such as attention scores.
        frozen: whether a linear circuit holds the site still: attention patterns, norms' scales.
        sharding: the axis of `shape` that the devices of one sequence divide; None where each device has all of it.
        path: the name that the value is tapped under, with {} for the layer's index, such as `blocks/{}/mlp`. By
            default `layer_{}/` and the kind's name; outside of layers the kind's name.
        description: the value in words.

    Example:
        >>> kind = sae.SiteKind("attn_z", (4, 16), writes=lambda params, layer: params[f"block_{layer}"]["out"])
        >>> kind.site(layer=3).name
        'layer_3/attn_z'
    """

    name: str
    shape: tuple[int, ...]
    writes: bool | Map = False
    in_layers: bool = True
    per_token: bool = True
    frozen: bool = False
    sharding: int | None = None
    path: str = ""
    description: str = ""

    def __post_init__(self):
        if self.path and ("{}" in self.path) != self.in_layers:
            raise ValueError(
                f"the path of the site kind {self.name!r} is {self.path!r}: with in_layers={self.in_layers} it "
                f"{'needs' if self.in_layers else 'has no'} {{}}, which stands for the layer's index"
            )

    def added(self, params: Any, layer: int | None, vectors: Float[jax.Array, "*B A"]) -> Float[jax.Array, "*B D"]:
        """Returns what vectors [..., A] at the site add to the residual stream, [..., D].

        Raises:
            ValueError: for a matrix whose shape is not [*shape, D].
        """
        if self.writes is True:
            return vectors
        # pyrefly: ignore[not-callable]  a function, where anything is added
        matrix = self.writes(params, layer)
        if matrix.shape[:-1] != self.shape:
            raise ValueError(
                f"the site kind {self.name!r} writes through a matrix of shape {list(matrix.shape)}, expected "
                f"{list(self.shape)} and then D"
            )
        return vectors @ matrix.reshape(-1, matrix.shape[-1])

    def site(self, layer: int | None) -> Site:
        """Returns the record of this kind's site in a layer; `layer` is None for a kind outside of layers."""
        path = self.path or (f"layer_{{}}/{self.name}" if self.in_layers else self.name)
        return Site(
            name=path.format(layer),
            shape=self.shape,
            layer=layer,
            kind=self.name,
            writes_to_residual=bool(self.writes),
            per_token=self.per_token,
            sharding=self.sharding,
            description=self.description,
        )


def one_by_one(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns heads [..., N, H] as vectors [..., N, N·H], each with zeros in the place of the other heads. Values of
    another shape stay unchanged.

    Example:
        >>> one_by_one(jnp.array([[1, 2], [3, 4]]), (2, 2)).tolist()
        [[1, 2, 0, 0], [0, 0, 3, 4]]
    """
    if len(shape) != 2 or value.shape[-2:] != shape:
        return value
    N, H = shape
    eye = jnp.expand_dims(jnp.eye(N, dtype=value.dtype), (*range(value.ndim - 2), value.ndim))
    return (value[..., None, :] * eye).reshape(*value.shape[:-1], N * H)


@functools.lru_cache(64)
def records(kinds: tuple[SiteKind, ...], layers: int) -> Mapping[str, Site]:
    """Returns the record of every site by name, in the order of the forward pass.

    Args:
        kinds: kinds before the layers, kinds of a layer, kinds after the layers.
        layers: the number of layers.

    Raises:
        ValueError: for two sites of one name.

    Example:
        >>> list(records((SiteKind("embed", (8,), in_layers=False), SiteKind("resid_post", (8,))), 2))
        ['embed', 'layer_0/resid_post', 'layer_1/resid_post']
    """
    first = next((index for index, kind in enumerate(kinds) if kind.in_layers), len(kinds))
    sites = [
        *(kind.site(None) for kind in kinds[:first]),
        *(kind.site(layer) for layer in range(layers) for kind in kinds if kind.in_layers),
        *(kind.site(None) for kind in kinds[first:] if not kind.in_layers),
    ]
    twice = [name for name, count in collections.Counter(site.name for site in sites).items() if count > 1]
    if twice:
        raise ValueError(f"two site kinds have the site {twice[0]!r}: name each kind once; `logits` exists already")
    return types.MappingProxyType({site.name: site for site in sites})
