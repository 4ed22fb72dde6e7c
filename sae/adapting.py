"""`AdaptedModel`: a `LanguageModel` that is made of a forward pass with taps in it and a list of kinds of sites.

The rest of the protocol follows from these: the records of sites, capturing and editing, `run` over texts, losses, the
way of a direction to the logits, the fingerprint. It knows no framework: parameters are a pytree, and a model is three
functions of them.

Axis letters: B sequences, T tokens, D width of the residual stream, V vocabulary, A length of the activation at a site.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Int32, Integer, Shaped

import mishax_lite
from mishax_lite import Edits
from mishax_lite.applying import hooked
from mishax_lite.compiling import jit_forward
from mishax_lite.hashing import fingerprint
from sae import model_inputs, site_kinds
from sae.language_model import Site, Tokenizer
from sae.site_kinds import SiteKind
from sae.sites import dim, site_of

_STATIC = {"static": True}


class AdaptedForward(NamedTuple):
    """The result of `AdaptedModel.run`: logits, values, tokens and mask, as in `sae.language_model.Forward`."""

    logits: Float32[jax.Array, "B T V"]
    values: dict[str, Shaped[jax.Array, "B ..."]]
    tokens: Int32[jax.Array, "B T"]
    mask: Bool[jax.Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedModel:
    """A language model made of functions of its parameters; it speaks `sae.LanguageModel`.

    All fields but the parameters are static. Functions are compared by identity, so a function of a module, or one that
    is made once, keeps programs compiled. A subclass that is a registered dataclass may add the protocol's optional
    methods.

    Attributes:
        name: what people call the model.
        params: a pytree of arrays.
        tokenizer: an object with the methods of `sae.language_model.Tokenizer`, such as `gemma.load(...).tokenizer`.
        vocab_size: V.
        layers: the number of layers.
        kinds: the kinds of its sites, in the order of the forward pass, without `logits`.
        forward: (params, tokens [B, T]) -> logits [B, T, V]. Its taps (`mishax_lite.tap`, `modules` or a `Patch`) have
            the names of the sites; the logits need no tap. Sequences are padded at their ends, so a causal model needs
            no mask.
        readout: (params, residual [R, D], of R tokens) -> logits [R, V]: the last norm and the unembedding.
        direct: (params, vectors [..., D]) -> [..., V]: `readout` without the steps that depend on the token (the norm's
            division and any softcap); linear in the vectors.
        config: all that decides the forward pass beside the parameters, for the fingerprint. Hashable, such as a frozen
            dataclass or a string.
        dtype: the dtype of the activations.

    Example:
        >>> model = sae.AdaptedModel(
        ...     name="bigrams", params=jnp.ones((4, 4)), tokenizer=None, vocab_size=4, layers=0,
        ...     kinds=(sae.SiteKind("embed", (4,), writes=True, in_layers=False),),
        ...     forward=lambda table, tokens: mishax_lite.tap("embed", table[tokens]),
        ...     readout=lambda table, residual: residual, direct=lambda table, vectors: vectors,
        ... )
        >>> model.run([[1, 2, 3]], capture="embed").values["embed"].shape
        (1, 3, 4)
    """

    name: str = dataclasses.field(metadata=_STATIC)
    params: Any
    tokenizer: Tokenizer | None = dataclasses.field(metadata=_STATIC)
    vocab_size: int = dataclasses.field(metadata=_STATIC)
    layers: int = dataclasses.field(metadata=_STATIC)
    kinds: tuple[SiteKind, ...] = dataclasses.field(metadata=_STATIC)
    forward: Callable[[Any, jax.Array], jax.Array] = dataclasses.field(metadata=_STATIC)
    readout: Callable[[Any, jax.Array], jax.Array] = dataclasses.field(metadata=_STATIC)
    direct: Callable[[Any, jax.Array], jax.Array] = dataclasses.field(metadata=_STATIC)
    config: Any = dataclasses.field(metadata=_STATIC, default=None)
    dtype: Any = dataclasses.field(metadata=_STATIC, default=np.dtype("float32"))

    def __repr__(self) -> str:
        return f"AdaptedModel({self.name}: {self.layers} layers, {jnp.dtype(self.dtype).name})"

    @property
    def _all_kinds(self) -> tuple[SiteKind, ...]:
        return (*self.kinds, SiteKind("logits", (self.vocab_size,), in_layers=False, description="the logits"))

    @property
    def sites(self) -> Mapping[str, Site]:
        """The record of each site, by name, in the order of the forward pass."""
        return site_kinds.records(self._all_kinds, self.layers)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the sites that a linear circuit holds still."""
        kinds = {kind.name for kind in self.kinds if kind.frozen}
        return tuple(name for name, site in self.sites.items() if site.kind in kinds)

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of parameters and `config` (`sae.fingerprint`)."""
        return fingerprint(self.params, self.config)

    def apply(self, tokens: Integer[ArrayLike, "B T"], *, capture: str | Sequence[str] = (), edits: Any = None) -> Any:
        """Returns float32 logits [B, T, V]; with `capture`, the pair of the logits and {site: value}. Pure.

        Args:
            tokens: integers [B, T], whole sequences.
            capture: names or patterns of sites.
            edits: what `mishax_lite.Edits.of` takes. A result in a wider float than the site's is rounded to the
                site's dtype.

        Raises:
            ValueError: for tokens that are no integers [B, T] of the vocabulary (traced ids are not checked), names
                that match no tap, and values of another shape than their site's record says.
        """
        tokens = model_inputs.checked(self, tokens)
        return self._apply(tokens, model_inputs.positions(tokens), capture, Edits.of(edits))

    def losses(self, tokens: Integer[ArrayLike, "B T"], *, edits: Any = None) -> Float32[jax.Array, "B T-1"]:
        """Returns the loss of every token but the first, float32 [B, T-1] in nats. Pure.

        All logits [B, T, V] of `forward` are in memory: 4·B·T·V bytes, 16 GB for 16 sequences of 1024 tokens and
        250,000 words. Give it fewer sequences at a time, or compute `losses` in blocks of tokens in a subclass.

        Raises:
            ValueError: as for `apply`, and for sequences of one token.
        """
        tokens = model_inputs.checked(self, tokens)
        if tokens.shape[1] < 2:
            raise ValueError(f"losses need sequences of at least two tokens, got [B, T] = {list(tokens.shape)}")
        log_probabilities = jax.nn.log_softmax(self.apply(tokens, edits=edits)[:, :-1])
        return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1)[..., 0]

    # For `mishax_lite.edit`: where edits find the text in the arguments.
    vars(apply)["text_of"] = vars(losses)["text_of"] = lambda *args, tokens=None, **_: model_inputs.bindable(
        args[-1] if tokens is None else tokens
    )

    def run(self, tokens_or_text: Any, *, capture: str | Sequence[str] = (), edits: Any = None) -> AdaptedForward:
        """Runs the model in a program that is compiled once for each shape and set of names.

        Args:
            tokens_or_text: a text, a list of texts, which are padded at the end, or tokens [B, T].
            capture: as for `apply`.
            edits: as for `apply`; positions are -1 at padding. Arrays in edits are arguments of the program.

        Raises:
            ValueError: as for `apply`, for texts where the model has no tokenizer, and inside of `jax.jit`.
        """
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self.params)):
            raise ValueError("run compiles its own program: inside of jax.jit call model.apply, a pure function")
        tokens, mask = model_inputs.placed(self.params, *model_inputs.read(self, tokens_or_text))
        names = (capture,) if isinstance(capture, str) else tuple(capture)
        logits, values = _run(self, tokens, mask, Edits.of(edits), capture=names)
        order = [*(name for name in self.sites if name in values), *(name for name in values if name not in self.sites)]
        return AdaptedForward(logits, {name: values[name] for name in order}, tokens, mask)

    def unembed(self, residual: Float[ArrayLike, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """Returns float32 logits [..., V] of the residual stream [..., D] after the last layer."""
        residual = jnp.asarray(residual)
        logits = self.readout(self.params, residual.reshape(-1, residual.shape[-1])).astype(jnp.float32)
        return logits.reshape(*residual.shape[:-1], self.vocab_size)

    def lens(self, value: Any) -> Any:
        """Returns the logits as if the model ended at a value of the residual stream: the logit lens.

        Args:
            value: [..., D], or a pytree of such arrays, such as `forward.values`.

        Returns:
            The value with float32 [..., V] in the place of each array.

        Example:
            >>> model = sae.AdaptedModel(
            ...     name="bigrams", params=jnp.ones((4, 4)), tokenizer=None, vocab_size=4, layers=0,
            ...     kinds=(sae.SiteKind("embed", (4,), writes=True, in_layers=False),),
            ...     forward=lambda table, tokens: mishax_lite.tap("embed", table[tokens]),
            ...     readout=lambda table, residual: residual, direct=lambda table, vectors: vectors,
            ... )
            >>> model.lens(model.run([[1, 2, 3]], capture="embed").values)["embed"].shape
            (1, 3, 4)
        """
        return jax.tree.map(self.unembed, value)

    def logit_directions(self, site: str, vectors: Float[ArrayLike, "*B A"]) -> Float32[jax.Array, "*B V"]:
        """Returns how vectors [..., A] at a site move the logits to first order, float32 [..., V] of mean 0.

        Raises:
            ValueError: for a site that does not write to the residual stream, and for another A.
        """
        logits = self.direct(self.params, self._added(site, jnp.asarray(vectors, jnp.float32))).astype(jnp.float32)
        return logits - logits.mean(axis=-1, keepdims=True)

    def direct_logits(
        self,
        value: Float[ArrayLike, "..."],
        site: str | None = None,
        *,
        tokens: Integer[ArrayLike, " K"] | Sequence[int] | None = None,
    ) -> Float32[jax.Array, "..."]:
        """Returns what a component, a head or a latent adds to the logits by itself, by `direct`.

        The steps that depend on the token, such as the last norm's division, are left out: an adapter does not name
        them.

        Args:
            value: [..., *shape] at the site. Heads [..., N, H] are taken one by one; joined, [..., N·H], together.
            site: a site that writes to the residual stream. None: a vector [..., D] of the stream itself.
            tokens: ids [K] of the wanted logits; all by default.

        Returns:
            float32 [..., V], or [..., K] with `tokens`; heads one by one, [..., N, V].

        Raises:
            ValueError: as for `logit_directions`, and for ids of another shape or outside the vocabulary.
        """
        if tokens is not None and np.ndim(tokens) != 1:
            raise ValueError(f"tokens are ids [K], the same for every value; got an array {list(np.shape(tokens))}")
        vectors = jnp.asarray(value, jnp.float32)
        if site is not None:
            vectors = self._added(site, site_kinds.one_by_one(vectors, tuple(site_of(self, site).shape)))
        logits = self.direct(self.params, vectors).astype(jnp.float32)
        return logits if tokens is None else logits[..., model_inputs.checked(self, jnp.asarray(tokens)[None])[0]]

    def _added(self, site: str, vectors: jax.Array) -> jax.Array:
        """Returns what vectors [..., A] at a site add to the residual stream, [..., D]."""
        record = site_of(self, site)
        kind = next(kind for kind in self._all_kinds if kind.name == record.kind)
        if not kind.writes:
            writing = ", ".join(kind.name for kind in self.kinds if kind.writes)
            raise ValueError(
                f"{site} does not write to the residual stream, so a vector there has no direct effect on logits: "
                f"name a site that does ({writing or 'this model has none'})"
            )
        if vectors.shape[-1:] != (dim(record),):
            raise ValueError(f"vectors at {site} are [..., {dim(record)}], got {list(vectors.shape)}")
        return kind.added(self.params, record.layer, vectors)

    def _apply(self, tokens: jax.Array, positions: jax.Array, capture: str | Sequence[str], edits: Edits) -> Any:
        def function(tokens):
            return mishax_lite.tap("logits", self.forward(self.params, tokens).astype(jnp.float32))

        out = hooked(function, tokens, lambda: positions, capture, edits)
        for name, value in out[1].items() if capture else ():
            self._check_shape(name, value, tokens.shape)
        return out

    def _check_shape(self, name: str, value: Any, text: tuple[int, ...]) -> None:
        """Raises ValueError for a value at a site of another shape than its record says."""
        site = self.sites.get(name)
        if site is None:
            return
        B, T = text
        shape = (B, T, *site.shape) if site.per_token else (B, *site.shape, T, T)
        if getattr(value, "shape", None) != shape:
            raise ValueError(
                f"the value at {name} has shape {list(jnp.shape(value))}, and its SiteKind says {list(shape)}: tap it "
                "with its batch and text axes first, once in each layer, or correct the kind's shape"
            )


@jit_forward(static_argnames="capture")
def _run(model: AdaptedModel, tokens: jax.Array, mask: jax.Array, edits: Edits, *, capture: tuple[str, ...]):
    out = model._apply(tokens, jnp.where(mask, model_inputs.positions(tokens), -1), capture, edits)
    return out if capture else (out, {})
