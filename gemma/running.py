"""`Model.run`: from texts or tokens to logits and values, by a program that is compiled once."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float32, Int32, Shaped

from gemma import arguments, editing, sharding
from mishax_lite import Edits
from mishax_lite.applying import hooked
from mishax_lite.compiling import jit_forward

if TYPE_CHECKING:
    from gemma.model import Model

Text = str | Sequence[str]


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Forward:
    """The results of one forward pass; a pytree.

    Attributes:
        logits: float32 [B, T, V].
        values: the value at each captured site by name, in the order of the forward pass.
        tokens: int32 [B, T], with the tokenizer's padding at the ends of the shorter texts.
        mask: bool [B, T], True where a token is no padding.

    Example:
        >>> model.run(["The sea", "A"], capture="layer_3/resid_post")
        Forward(tokens [2, 3], logits [2, 3, 4096], 1 site)
    """

    logits: Float32[jax.Array, "B T V"]
    values: dict[str, Shaped[jax.Array, "B ..."]]
    tokens: Int32[jax.Array, "B T"]
    mask: Bool[jax.Array, "B T"]

    def __repr__(self) -> str:
        # Under a transformation, leaves may be anything.
        shapes = [
            f"{name} {list(value.shape)}"
            for name, value in (("tokens", self.tokens), ("logits", self.logits))
            if isinstance(getattr(value, "shape", None), tuple)
        ]
        count = len(self.values)
        return f"Forward({', '.join([*shapes, f'{count} site' if count == 1 else f'{count} sites'])})"

    # A dict as a pytree is sorted by its keys, so the names are kept beside the values.
    def tree_flatten_with_keys(self) -> tuple[tuple, tuple[str, ...]]:
        values = tuple(self.values.values())
        key = jax.tree_util.GetAttrKey
        parts = {"logits": self.logits, "values": values, "tokens": self.tokens, "mask": self.mask}
        return tuple((key(name), part) for name, part in parts.items()), tuple(self.values)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], parts: tuple) -> "Forward":
        logits, values, tokens, mask = parts
        return cls(logits, dict(zip(names, values, strict=True)), tokens, mask)


def run(
    model: "Model",
    text_or_tokens: Text | arguments.TokenIds,
    capture: str | Sequence[str],
    edits: editing.AnyEdits | None,
) -> Forward:
    """Runs `Model.run` for a model that already has the attention to use."""
    capture = (capture,) if isinstance(capture, str) else tuple(capture)
    check_concrete(model, "run", "call model.apply, which is a pure function")
    tokens, mask = _tokens_and_mask(model, text_or_tokens)
    return _run(model, *_placed(model, tokens, mask), Edits.of(edits), capture=capture)


@jit_forward(static_argnames="capture")
def _run(model, tokens, mask, edits, *, capture):
    if mask is None:
        mask = _unpadded(tokens, model.tokenizer)
    # Edits see -1 where padding is, as in `generate`. The forward pass need not: padding stands last.
    positions = jnp.where(mask, jnp.arange(tokens.shape[1], dtype=jnp.int32), -1)
    out = hooked(model.apply, tokens, lambda: positions, capture, edits)
    logits, values = out if capture else (out, {})
    return Forward(logits, values, tokens, mask)


def _unpadded(tokens: jax.Array, tokenizer) -> jax.Array:
    """Returns bool [B, T]: True except at the tokenizer's padding at the end of a row."""
    if tokenizer is None:
        return jnp.ones(tokens.shape, bool)
    return jnp.flip(jnp.cumsum(jnp.flip(tokens != tokenizer.pad, axis=1), axis=1), axis=1) > 0


def _tokens_and_mask(model: "Model", text_or_tokens: Any) -> tuple[jax.Array | np.ndarray, np.ndarray | None]:
    """Returns token ids [B, T] and the mask that the texts' lengths give; None as the mask of tokens."""
    texts = [text_or_tokens] if isinstance(text_or_tokens, str) else text_or_tokens
    if not (isinstance(texts, list | tuple) and any(isinstance(text, str) for text in texts)):
        tokens = arguments.token_ids(text_or_tokens, model.config)
        return tokens.astype(jnp.int32), None
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("run takes a text, a list of texts, or token ids [B, T]; got a list with texts and others")
    if model.tokenizer is None:
        raise ValueError(f"{without_tokenizer(model)}: give token ids [B, T] in place of texts")
    ids = [model.tokenizer.encode(text) for text in texts]
    lengths = np.array([len(row) for row in ids])
    tokens = np.full((len(ids), lengths.max()), max(model.tokenizer.pad, 0), np.int32)
    for row, values in zip(tokens, ids, strict=True):
        row[: len(values)] = values
    arguments.token_ids(tokens, model.config)
    return tokens, np.arange(lengths.max()) < lengths[:, None]


def _placed(model: "Model", tokens: Any, mask: Any) -> tuple[Any, Any]:
    """Returns tokens and mask, spread over the mesh's axis `data` if the parameters' mesh divides the sequences."""
    mesh = mesh_of(model)
    if mesh is None or tokens.shape[0] % mesh.shape.get(sharding.DATA, 1):
        return tokens, mask
    return jax.device_put((tokens, mask), sharding.batch_sharding(mesh))


def check_concrete(model: "Model", name: str, advice: str) -> None:
    """Raises ValueError within `jax.jit` and other transformations of the model, where no program can be called.

    Args:
        model: the model.
        name: the name of the calling function.
        advice: what to do instead.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(model.params)):
        raise ValueError(
            f"{name} compiles its own program, so it cannot be called inside jax.jit or another transformation: "
            f"{advice}"
        )


def without_tokenizer(model: "Model") -> str:
    """Returns a message that a model has no tokenizer, and why."""
    reason = f" ({model.tokenizer_problem})" if model.tokenizer_problem else ""
    return f"{model.config.name} was loaded without a tokenizer{reason}"


def mesh_of(model: "Model") -> Any:
    """Returns the mesh that the parameters lie on, or None."""
    placed = getattr(jax.tree.leaves(model.params)[0], "sharding", None)
    return placed.mesh if isinstance(placed, NamedSharding) else None
