"""The records about sites: a `Kind` for all layers, and a `Site` for one place in one model.

Every other fact about sites derives from a kind: shapes, and the axis that devices divide, from its axis letters;
whether it writes to the residual stream from its way to the logits. The kinds themselves stand in
`gemma/site_kinds.py`.

Axis letters: B batch, T query positions, S key positions, D model width, N query heads, K key/value heads, H head
width, F feed-forward width, V vocabulary.
"""

import dataclasses
import types
from collections.abc import Callable

import jax

from gemma.configs import Config
from mishax_lite import Rewrite

# Lengths of the axes of one token's value.
_LENGTHS: dict[str, Callable[[Config], int]] = {
    "D": lambda c: c.d_model,
    "N": lambda c: c.num_heads,
    "K": lambda c: c.num_kv_heads,
    "H": lambda c: c.head_dim,
    "F": lambda c: c.d_ff,
    "V": lambda c: c.vocab_size,
    "1": lambda c: 1,
}
# The axes that the devices of one sequence divide: parameters are spread by them (`gemma/sharding.py`).
_DIVIDED = "NKFV"

# (parameters of the model, layer or None, vectors [..., A]) -> what they add to the residual stream, [..., D].
Way = Callable[[dict, int | None, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Edit:
    """A rewrite of one function of the model.

    Attributes:
        module: the module that has the function.
        member: the function's name in it, as `mishax_lite.Patch` takes it.
        rewrite: the edit of its source.
    """

    module: types.ModuleType
    member: str
    rewrite: Rewrite


@dataclasses.dataclass(frozen=True)
class Kind:
    """The facts about the sites of one kind, in every layer of every model.

    Attributes:
        name: the last part of a site's name.
        axes: letters of the value's axes, such as "B T N H". With both T and S it is a value for each pair of tokens.
        description: the value in words; its line in the documentation.
        edits: the rewrites that put its tap into the model.
        in_layers: whether each layer has one; otherwise the model has one.
        way: the function that maps a vector at the site to the residual stream; None if a vector does not reach it, by
            itself or through one linear map.
        division: the kind of the site with the scale of the norm on the way; None if the way passes no norm.
        frozen: whether a linear circuit holds the site still.
        float32: whether the value is float32 in every model; otherwise it has the dtype of the model's activations.
    """

    name: str
    axes: str
    description: str
    edits: tuple[Edit, ...]
    in_layers: bool = True
    way: Way | None = None
    division: str | None = None
    frozen: bool = False
    float32: bool = False

    @property
    def per_token(self) -> bool:
        """Whether the value is a vector for each token, not for each pair of tokens."""
        return not {"T", "S"} <= set(self.axes.split())

    def site(self, config: Config, layer: int | None) -> "Site":
        """Returns the record of this kind's site in a layer of a model."""
        letters = [letter for letter in self.axes.split() if letter not in "BTS"]
        return Site(
            name=self.name if layer is None else f"layer_{layer}/{self.name}",
            shape=tuple(_LENGTHS[letter](config) for letter in letters),
            layer=layer,
            kind=self.name,
            writes_to_residual=self.way is not None,
            per_token=self.per_token,
            sharding=next((axis for axis, letter in enumerate(letters) if letter in _DIVIDED), None),
            description=self.description,
        )


@dataclasses.dataclass(frozen=True)
class Site:
    """One named value in the forward pass of one model.

    Attributes:
        name: such as "layer_3/attn_z".
        shape: the value's shape without the axes of batch and text: (D,), (N, H), (V,), (1,).
        layer: the layer's index; None outside of layers.
        kind: the last part of the name.
        writes_to_residual: whether a vector here is added to the residual stream, by itself or through one linear map.
        per_token: False for a value for each pair of tokens (`attn_scores`, `attn_pattern`).
        sharding: the axis of `shape` that the devices of one sequence divide; None where each device has all of it.
        description: the value in words.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    kind: str
    writes_to_residual: bool
    per_token: bool = True
    sharding: int | None = None
    description: str = ""
