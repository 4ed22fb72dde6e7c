"""The protocol of a language model, and the record of a site. This package knows no model but by this protocol.

Any object with these attributes and methods is harvested, trained on, measured and shown: its class need not import
this file. Functions of sites are in `sae/sites.py`.

Axis letters: B sequences, T tokens of a sequence, D width of the residual stream, V vocabulary, A length of the
activation at a site, its axes joined.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Int32, Integer, Shaped

from sae import showing


@dataclasses.dataclass(frozen=True)
class Site:
    """One named value in a model. A model's own class with the same attributes serves as well.

    Attributes:
        name: the name for capturing and editing, such as `layer_3/attn_z`.
        shape: the value's shape without its batch and text axes: (D,), (N, H) for heads, (V,), (1,). An autoencoder
            reads it with its axes joined.
        layer: the index of its layer; None outside of layers.
        kind: the name without the layer, such as `attn_z`. Kinds of the residual stream itself begin with `resid`
            (attention sinks are recognised by their norms there); the result of `apply` is of the kind `logits`.
        writes_to_residual: whether a vector here is added to the residual stream, by itself or through one linear map.
        per_token: False for a value of each pair of tokens (attention scores), on which no autoencoder is trained.
        sharding: the axis of `shape` (heads, say) that the devices of one sequence divide; None where each device has
            all of it.
        description: the value in words.

    Example:
        >>> sae.Site("layer_3/attn_z", (8, 256), 3, "attn_z", writes_to_residual=True).layer
        3
        >>> model.sites["layer_1/attn_z"].kind
        'attn_z'
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    kind: str
    writes_to_residual: bool
    per_token: bool = True
    sharding: int | None = None
    description: str = ""


class SiteRecord(Protocol):
    """What this package reads of a site: `Site`, or a model's own record with the same attributes."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def layer(self) -> int | None: ...

    @property
    def kind(self) -> str: ...

    @property
    def writes_to_residual(self) -> bool: ...

    @property
    def per_token(self) -> bool: ...

    @property
    def sharding(self) -> int | None: ...

    @property
    def description(self) -> str: ...


class Tokenizer(Protocol):
    """A tokenizer as this package needs it.

    For chats it also has the method `chat_turns` (`sae.text.chat.ChatTokenizer`).

    Attributes:
        bos: the id with which every sequence begins; no text contains it.
        pad: the id that fills up sequences.
        special_ids: the ids that are no text: BOS, EOS, padding.
        sha256: a hash of all that decides the ids, in hex: it tells tokenizers apart.
    """

    @property
    def bos(self) -> int: ...

    @property
    def pad(self) -> int: ...

    @property
    def special_ids(self) -> tuple[int, ...]: ...

    @property
    def sha256(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, BOS first. The ids of the empty text surround those of every text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""

    def piece(self, id_: int) -> str:
        """Returns one token as a person reads it."""

    def byte(self, id_: int) -> int | None:
        """Returns the byte that a token stands for, where a character takes several tokens; None for other tokens."""

    def __len__(self) -> int:
        """Returns the number of ids. The model may have rows for more."""


class Forward(Protocol):
    """The result of `LanguageModel.run`.

    Attributes:
        logits: float32 [B, T, V].
        values: {site: value} of the captured sites.
        tokens: int32 [B, T], the ids that the model read.
        mask: bool [B, T], False at padding.
    """

    @property
    def logits(self) -> Float32[jax.Array, "B T V"]: ...

    @property
    def values(self) -> Mapping[str, Shaped[jax.Array, "B ..."]]: ...

    @property
    def tokens(self) -> Int32[jax.Array, "B T"]: ...

    @property
    def mask(self) -> Bool[jax.Array, "B T"]: ...


class LanguageModel(Protocol):
    """A language model: a pytree whose leaves are its parameters, so that it can be an argument of `jax.jit`.

    Its static fields have to be hashable, so `sites` is best a property. Some methods are optional; this package looks
    for them with `getattr`:

    - `lean`: the same model in its fastest form. It may lack the sites of pairs of tokens, and no others.
    - `resumption(sites)`: names of sites whose values, put back beside others at `sites`, make all layers below
      unnecessary. Evaluation then computes that part once, and not once for every autoencoder.
    - `generate`, `chat`: continue texts.
    - `lens(value)`: the logits as if the model ended at a value of the residual stream, [..., D] or a pytree of these.
    - `direct_logits(value, site=None, *, scales=None, tokens=None)`: what a component, head or latent adds to the
      logits by itself; with `scales`, the captured scales of norms, where the model knows which they are.
    - `tokenizer_problem`: the reason why `tokenizer` is None, in words.

    Attributes:
        name: what people call the model; an autoencoder records it.
        params: the parameters, a pytree of arrays. The model decides where they lie on a mesh; batches of tokens are
            spread over the mesh's axis `data` (`sae/sharding.py`).
        dtype: the dtype of the activations.
        vocab_size: V, the number of ids that have a row.
        fingerprint: sha256 over parameters and configuration, in hex.
        tokenizer: None for a model without one, which can neither be harvested nor measured.
        sites: all of its sites by name, in the order of the forward pass.
        frozen: names of the sites that a linear circuit holds still: attention patterns and norms' scales.

    Example:
        >>> def norms(model: sae.LanguageModel, text: str, site: str) -> jax.Array:
        ...     return jnp.linalg.norm(model.run(text, capture=site).values[site], axis=-1)
        >>> norms(model, "And the sea", "layer_1/resid_post").shape
        (1, 4)
    """

    @property
    def name(self) -> str: ...

    @property
    def params(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...  # a `Tokenizer`, or None, which `check_tokenizer` refuses

    @property
    def sites(self) -> Mapping[str, SiteRecord]: ...

    @property
    def frozen(self) -> tuple[str, ...]: ...

    def apply(self, tokens: Integer[ArrayLike, "B T"], *, capture: str | Sequence[str] = (), edits: Any = None) -> Any:
        """Computes the logits of tokens; pure, for jit, grad and vmap of one's own.

        Where the logits are not used, a jit around it drops the layers above the deepest site.

        Args:
            tokens: integers [B, T], whole sequences from BOS on.
            capture: names or patterns of the sites to return.
            edits: {name or pattern: function of a value and its site}, or `mishax_lite.Edits`.

        Returns:
            float32 logits [B, T, V]; with `capture`, the pair of the logits and {site: value [B, T, *shape]}.

        Raises:
            ValueError: for tokens that it cannot read, and a site that does not exist.
        """

    def run(self, tokens: Any, /, *, capture: str | Sequence[str] = (), edits: Any = None) -> Forward:
        """Runs the same computation, jitted, on tokens, a text or several texts."""

    def losses(self, tokens: Integer[ArrayLike, "B T"], *, edits: Any = None) -> Float32[jax.Array, "B T-1"]:
        """Returns the loss of every token but the first, given those before it: float32 [B, T-1], in nats. Pure.

        Sites of the kind `logits` may be missing here, since all logits need not be in memory at once.
        """

    def unembed(self, residual: Float[ArrayLike, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """Returns float32 logits [..., V] of the residual stream [..., D] after the last block."""

    def logit_directions(self, site: str, vectors: Float[ArrayLike, "*B A"]) -> Float32[jax.Array, "*B V"]:
        """Returns how vectors that are added at a site move the logits directly, to first order.

        Args:
            site: one that writes to the residual stream.
            vectors: [..., A].

        Returns:
            float32 [..., V], less the mean over the vocabulary, which softmax ignores.

        Raises:
            ValueError: for a site that does not write to the residual stream.
        """


def lean(model: LanguageModel) -> LanguageModel:
    """Returns the fastest form of a model, or the model itself where it has no `lean`. That form has every site of
    single tokens."""
    return getattr(model, "lean", model)


def resumption(model: LanguageModel, sites: Sequence[str]) -> tuple[str, ...]:
    """Returns the sites whose values, put back beside others at `sites`, make all layers below unnecessary.

    Args:
        model: a model without a method `resumption` has no such sites.
        sites: the sites where other values are put in.
    """
    ask: Callable[..., Sequence[str]] | None = getattr(model, "resumption", None)
    return () if ask is None else tuple(ask(tuple(sites)))


def titled(model: LanguageModel) -> str:
    """Returns a model's name for people: `gemma2-tiny`, `gemma2-tiny in bfloat16`."""
    return model.name if model.dtype == np.float32 else f"{model.name} in {model.dtype}"


def require_model(value: object) -> None:
    """Raises ValueError for a value that is no language model, such as a name, a tokenizer or parameters."""
    if missing := [name for name in ("name", "tokenizer") if not hasattr(value, name)]:
        raise ValueError(
            f"expected a language model, such as gemma.load returns, got {showing.kind(value)}, which has no "
            f"`{missing[0]}`"
        )


def check_tokenizer(model: LanguageModel) -> None:
    """Raises ValueError for a model without a tokenizer, with the reason where the model knows it, and for a value that
    is no model."""
    require_model(model)
    if model.tokenizer is None:
        problem = getattr(model, "tokenizer_problem", None)
        raise ValueError(
            f"{model.name} was loaded without a tokenizer, so its special tokens are unknown"
            + (f": {problem}" if problem else "")
        )
