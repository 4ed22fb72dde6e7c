"""What this package needs of a language model: a protocol, and the record of a site. It knows no model.

Anything that has these attributes and methods is harvested, trained on, measured and shown, whoever wrote it: a class
need not import this file. What is asked of sites is in `sae/sites.py`.

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
        name: what it is captured and edited by, such as `layer_3/attn_z`.
        shape: of the value, without its batch and text axes: (D,), (N, H) for heads, (V,), (1,). An autoencoder sees
            its axes joined.
        layer: the number of its block, from 0 on; None outside of blocks.
        kind: the name without the layer, such as `attn_z`. The kinds of the residual stream itself begin with `resid`
            (attention sinks are told by their norms there), and what `apply` returns is of the kind `logits`.
        writes_to_residual: whether a vector here is added to the residual stream, by itself or through one linear map.
        per_token: False for a value of each pair of tokens (attention scores), on which no autoencoder is trained.
        sharding: the axis of `shape` that the devices of one sequence divide (heads, say); None where each has it all.
        description: what it is, in words.

    Example:
        >>> Site("layer_3/attn_z", (8, 256), 3, "attn_z", writes_to_residual=True).layer
        3
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
    """What this package needs of a tokenizer.

    For chats it has a method more, `chat_turns` (`sae.text.chat.ChatTokenizer`).

    Attributes:
        bos: the id that every sequence begins with, and that no text is turned into.
        pad: the id that fills up sequences.
        special_ids: the ids that are no text: BOS, EOS, padding.
        sha256: of what decides about ids, to tell tokenizers apart.
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
        """The ids of a text, BOS first. What surrounds the ids of the empty text surrounds those of every text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    def piece(self, id_: int) -> str:
        """What one token is by itself, for people to read."""

    def byte(self, id_: int) -> int | None:
        """The byte that a token stands for, of a character that takes several tokens; None for all others."""

    def __len__(self) -> int:
        """How many ids there are. The model may have rows for more."""


class Forward(Protocol):
    """What `LanguageModel.run` returns.

    Attributes:
        logits: float32 [B, T, V].
        values: {site: value} of the sites captured.
        tokens: int32 [B, T], the ids that were read.
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
    """A language model, as a pytree whose leaves are its parameters, so that it can be an argument of `jax.jit`.

    What is static in it has to be hashable, so `sites` is best a property. Methods that are optional, which this
    package looks for with `getattr`:

    - `lean`: the same model in its fastest form. It may lack the sites of pairs of tokens, and no others.
    - `resumption(sites)`: names of sites whose values, put back beside others at `sites`, make all that lies below
      unnecessary. Evaluation then computes that part once, and not once for every autoencoder.
    - `generate`, `chat`: continue texts.
    - `lens(value)`: the logits as if the model ended at a value of the residual stream, [..., D] or a pytree of these.
    - `direct_logits(value, site=None, *, scales=None, tokens=None)`: what a component, head or latent adds to the
      logits by itself; with `scales`, the captured scales of norms, where the model knows which they are.
    - `tokenizer_problem`: why `tokenizer` is None, in words.

    Attributes:
        name: what people call it; an autoencoder says by it what it belongs to.
        params: the parameters, a pytree of arrays. Where they lie on a mesh is the model's business; batches of tokens
            are spread over the mesh's axis `data` (`sae/sharding.py`).
        dtype: of the activations.
        vocab_size: V, the ids that it has rows for.
        fingerprint: sha256 over parameters and configuration, in hex.
        tokenizer: None where it has none, and can neither be harvested nor measured.
        sites: all of its sites by name, in the order of the forward pass.
        frozen: names of the sites that a linear circuit holds still: attention patterns and norms' scales.
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

        A jit around it drops what nothing depends on: the layers above the deepest site, where the logits are not used.

        Args:
            tokens: integers [B, T], of whole sequences from BOS on.
            capture: names or patterns of the sites to return.
            edits: {name or pattern: function of a value and its site}, or `mishax_lite.Edits`.

        Returns:
            float32 [B, T, V]; where `capture` names something, the pair of it and {site: value [B, T, *shape]}.

        Raises:
            ValueError: for tokens that it cannot read, and a site that does not exist.
        """

    def run(self, tokens: Any, /, *, capture: str | Sequence[str] = (), edits: Any = None) -> Forward:
        """The same, jitted, of tokens, of a text or of several texts."""

    def losses(self, tokens: Integer[ArrayLike, "B T"], *, edits: Any = None) -> Float32[jax.Array, "B T-1"]:
        """Returns the loss of every token but the first, given those before it: float32 [B, T-1], in nats. Pure.

        Sites of the kind `logits` may be missing here, since they need not be held.
        """

    def unembed(self, residual: Float[ArrayLike, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """Returns float32 logits [..., V] of the residual stream [..., D] after the last block."""

    def logit_directions(self, site: str, vectors: Float[ArrayLike, "*B A"]) -> Float32[jax.Array, "*B V"]:
        """Returns how vectors that are added at a site move the logits directly, to first order.

        Args:
            site: one that writes to the residual stream.
            vectors: [..., A].

        Returns:
            float32 [..., V], of which the mean over the vocabulary, which softmax ignores, is taken away.

        Raises:
            ValueError: for a site that does not write to the residual stream.
        """


def lean(model: LanguageModel) -> LanguageModel:
    """Returns a model in its fastest form, as far as it has one; that form has every site of single tokens."""
    return getattr(model, "lean", model)


def resumption(model: LanguageModel, sites: Sequence[str]) -> tuple[str, ...]:
    """Returns the sites whose values, put back beside others at `sites`, make all that lies below unnecessary.

    Args:
        model: one without a method of this name has no such sites.
        sites: where other values are put in.
    """
    ask: Callable[..., Sequence[str]] | None = getattr(model, "resumption", None)
    return () if ask is None else tuple(ask(tuple(sites)))


def titled(model: LanguageModel) -> str:
    """Returns what people read of a model: `gemma2-tiny`, `gemma2-tiny in bfloat16`."""
    return model.name if model.dtype == np.float32 else f"{model.name} in {model.dtype}"


def require_model(value: object) -> None:
    """Raises ValueError for what is no language model: a name, a tokenizer, parameters."""
    if missing := [name for name in ("name", "tokenizer") if not hasattr(value, name)]:
        raise ValueError(
            f"expected a language model, such as gemma.load returns, got {showing.kind(value)}, which has no "
            f"`{missing[0]}`"
        )


def check_tokenizer(model: LanguageModel) -> None:
    """Raises ValueError, with the reason as far as the model knows it, for a model without a tokenizer, and for what is
    no model."""
    require_model(model)
    if model.tokenizer is None:
        problem = getattr(model, "tokenizer_problem", None)
        raise ValueError(
            f"{model.name} was loaded without a tokenizer, so its special tokens are unknown"
            + (f": {problem}" if problem else "")
        )
