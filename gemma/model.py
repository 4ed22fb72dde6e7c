"""A model that is ready to run: its configuration, its parameters and its tokenizer."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Bool, Float32, Integer

from gemma import arguments, configs, editing, fingerprints, losses, running, sites
from gemma.arguments import TokenIds
from gemma.cache import Cache
from gemma.configs import Config
from gemma.editing import AnyEdits
from gemma.logit_methods import LogitMethods
from gemma.running import Forward
from gemma.site_records import Site
from gemma.tokenizer import Tokenizer
from gemma.transformer import Transformer
from mishax_lite.applying import hooked

Attention = Literal["plain", "fused"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model(LogitMethods):
    """A model that is ready to run, as `gemma.load` returns it.

    It is a pytree of its parameters, so it can be an argument of a jitted function.

    Attributes:
        params: the parameters, named as in DeepMind's checkpoints, without their leading `transformer/`.
        config: the model's shape.
        tokenizer: the tokenizer; None if the checkpoint has none, or one that cannot be read.
        dtype: the dtype of the activations.
        tokenizer_problem: why the tokenizer cannot be read; None if it can, or if the checkpoint has none.
        end_tokens: the ids at which its texts end, as the checkpoint says; None if it says nothing.
        attention: "plain", or "fused", which is faster and has no sites of pairs of tokens.

    Example:
        >>> model = gemma.load("gemma2-tiny")
        >>> model, model.tokenizer
        (Model(gemma2-tiny: 6 layers, 3.2M parameters, float32), Tokenizer(4,096 pieces))
    """

    params: dict
    config: Config = dataclasses.field(metadata={"static": True})
    tokenizer: Tokenizer | None = dataclasses.field(default=None, metadata={"static": True})
    dtype: jnp.dtype = dataclasses.field(default=jnp.dtype("float32"), metadata={"static": True})
    tokenizer_problem: str | None = dataclasses.field(default=None, metadata={"static": True}, compare=False)
    end_tokens: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True}, compare=False)
    attention: Attention = dataclasses.field(default="plain", metadata={"static": True})

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        config, dtype = self.config, jnp.dtype(self.dtype).name
        # Leaves may be tracers or shapes; under a transformation they may be anything.
        has_shapes = bool(leaves) and all(isinstance(getattr(leaf, "shape", None), tuple) for leaf in leaves)
        count = f"{in_short(sum(math.prod(leaf.shape) for leaf in leaves))} parameters, " if has_shapes else ""
        return f"Model({config.name}: {config.num_layers} layers, {count}{dtype})"

    @property
    def name(self) -> str:
        """The name of the configuration, such as "gemma2-2b"."""
        return self.config.name

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens that the model has logits for."""
        return self.config.vocab_size

    @property
    def fingerprint(self) -> str:
        """The sha256, in hex, of the parameters and the configuration (`gemma.fingerprints`)."""
        return fingerprints.fingerprint(self.config, self.params)

    @property
    def sites(self) -> Mapping[str, Site]:
        """The record of each site by name, in the order of the forward pass; fused attention lacks some sites."""
        return sites.of(self.config, fused=self.attention == "fused")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the sites that a linear circuit holds still."""
        return sites.frozen(self.config, fused=self.attention == "fused")

    @property
    def lean(self) -> "Model":
        """The same model in its fastest form: with fused attention, which lacks sites of pairs of tokens."""
        return dataclasses.replace(self, attention="fused")

    def resumption(self, names: str | Sequence[str]) -> tuple[str, ...]:
        """Returns the sites whose recorded values make the layers below `names` unnecessary (`sites.resumption`)."""
        return sites.resumption(names)

    def apply(
        self,
        tokens: TokenIds,
        *,
        capture: str | Sequence[str] = (),
        edits: AnyEdits | None = None,
        positions: Integer[ArrayLike, "B T"] | None = None,
        mask: Bool[ArrayLike, "B T T"] | None = None,
        cache: Cache | None = None,
        attention: Attention | None = None,
        last: bool = False,
    ) -> Any:
        """Returns the logits float32 [B, T, V] of tokens [B, T]. A pure function, for jit, grad and vmap of your own.

        Args:
            tokens: integers [B, T], ids of whole sequences from their first token on; with a cache, the ids that follow
                its tokens.
            capture: names of sites or patterns (`mishax_lite.capture`), whose values are returned too.
            edits: as for `mishax_lite.edit`: a dict, `mishax_lite.Edits` such as those of `sae.steer`, or a function of
                the positions [B, T] that returns either. A result in a wider float than the site's is rounded to the
                site's.
            positions: integers [B, T]; by default 0 … T-1, or with a cache those after its last ones. In a cache, a
                negative position marks padding, which no other token sees.
            mask: bool [B, T, T], the keys that a query may see; causal by default. Local layers narrow it further.
            cache: a cache from `gemma.empty_cache`, or from an earlier call.
            attention: "fused" never holds all scores [B, N, T, S], so memory grows with T and not with its square; the
                sites `attn_scores` and `attn_pattern` exist in "plain" only. None: the model's own.
            last: whether to compute the logits of the last token alone, [B, 1, V].

        Returns:
            The logits; with a cache, the logits and the cache with these tokens in it. With `capture`, the pair of that
            and a dict of the captured values.

        Raises:
            ValueError: for tokens that are no integers [B, T] or have no row in the embedding (traced tokens have no
                concrete values: the logits of such a sequence are NaN), positions or a mask of other shapes or dtypes,
                a mask beside a cache, a cache for another batch or without room, another `attention`, a Gemma 3 in
                float16, and names of sites that match nothing.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> forward = jax.jit(lambda model, tokens: model.apply(tokens, capture="layer_3/attn_z"))
            >>> logits, values = forward(model, jnp.array([[2, 23, 213]]))
            >>> values["layer_3/attn_z"].shape
            (1, 3, 4, 48)
        """
        tokens, positions, mask, attention = self._checked(tokens, positions, mask, attention)
        if cache is not None:
            cache.check_room(*tokens.shape)
            if mask is not None:
                raise ValueError("a mask is given with a cache: leave it out, since positions say what a token sees")
        transformer = Transformer(self.config, self.dtype, attention, last)

        def forward(tokens):
            # Products in full float32: by default, accelerators multiply float32 matrices in bfloat16 or TF32 passes.
            with jax.default_matmul_precision("highest"):
                return transformer.apply({"params": self.params}, tokens, positions, mask, cache)

        return hooked(forward, tokens, lambda: editing.positions_of(tokens, positions, cache), capture, edits)

    def losses(
        self,
        tokens: TokenIds,
        *,
        edits: AnyEdits | None = None,
        positions: Integer[ArrayLike, "B T"] | None = None,
        mask: Bool[ArrayLike, "B T T"] | None = None,
        attention: Attention | None = None,
    ) -> Float32[jax.Array, "B T-1"]:
        """Returns the loss of every token but the first, given those before it: float32 [B, T-1], in nats.

        The logits of all tokens, [B, T, V], are never held: `gemma.losses` computes them in blocks of the vocabulary,
        forward and backward. All sites but `logits` exist. A pure function, as `apply`, for jit, grad and vmap.

        Args:
            tokens: integers [B, T], T at least 2: ids of whole sequences from their first token on.
            edits: as for `apply`.
            positions: as for `apply`.
            mask: as for `apply`.
            attention: as for `apply`.

        Returns:
            float32 [B, T-1], nats; index t has the loss of token t + 1. Padding has losses too: the caller decides
            which losses count.

        Raises:
            ValueError: as for `apply`, and for sequences of one token, in which nothing is predicted.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> losses = jax.jit(lambda model, tokens: model.losses(tokens))
            >>> losses(model, jnp.array([model.tokenizer.encode("In the beginning")])).shape
            (1, 3)
        """
        tokens, positions, mask, attention = self._checked(tokens, positions, mask, attention)
        if tokens.shape[1] < 2:
            raise ValueError(f"losses need sequences of two tokens at least, got [B, T] = {list(tokens.shape)}")
        transformer = Transformer(self.config, self.dtype, attention, unembeds=False)

        def forward(tokens):
            with jax.default_matmul_precision("highest"):
                x: Any = transformer.apply({"params": self.params}, tokens, positions, mask)
                table = self.params["embedder"]["input_embedding"]
                return losses.cross_entropy(x[:, :-1], table, tokens[:, 1:], cap=self.config.final_softcap)

        return hooked(forward, tokens, lambda: editing.positions_of(tokens, positions, None), edits=edits)

    # By this `mishax_lite.edit` finds the text in the arguments, for edits that need it.
    vars(apply)["text_of"] = vars(losses)["text_of"] = editing.text_of

    def run(
        self,
        text_or_tokens: str | Sequence[str] | TokenIds,
        *,
        capture: str | Sequence[str] = (),
        edits: AnyEdits | None = None,
        attention: Attention | None = None,
    ) -> Forward:
        """Runs the model once over texts or tokens, by a program compiled once for each shape and set of names.

        Args:
            text_or_tokens: a text; a list of texts, which are padded at the end to one length; or token ids [B, T], in
                which the tokenizer's padding id at the end of a row counts as padding. Texts get BOS put before them.
            capture: names of sites or patterns (`mishax_lite.capture`).
            edits: as for `apply`; at padding, positions are -1. The arrays in `Edits` and in a
                `jax.tree_util.Partial` are arguments of the program, so that other numbers compile nothing; a plain
                function that is new on each call is compiled on each call.
            attention: as for `apply`.

        Returns:
            The logits, the captured values, the tokens, and the mask that is True where a token is no padding.

        Raises:
            ValueError: as for `apply`; for texts where the model has no tokenizer; inside `jax.jit`.

        Example:
            >>> forward = gemma.load("gemma2-tiny").run(["The sea", "A"], capture="layer_3/resid_post")
            >>> forward.values["layer_3/resid_post"].shape, forward.mask.sum(axis=1).tolist()
            ((2, 3, 192), [3, 2])
        """
        model = self if attention is None else dataclasses.replace(self, attention=attention)
        return running.run(model, text_or_tokens, capture, edits)

    def _checked(
        self, tokens: TokenIds, positions: Any, mask: Any, attention: Attention | None
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None, Attention]:
        """Returns tokens, positions and mask as arrays, and the attention; raises ValueError as `apply` does."""
        configs.check_dtype(self.config, self.dtype)
        tokens = arguments.token_ids(tokens, self.config)
        positions, mask = arguments.positions_and_mask(tokens, positions, mask)
        attention = self.attention if attention is None else attention
        if attention not in ("plain", "fused"):
            raise ValueError(f"attention is 'plain' or 'fused', got {attention!r}")
        return tokens, positions, mask, attention


def in_short(number: int) -> str:
    """Returns a large number in short, as the names of models have it.

    Example:
        >>> gemma.model.in_short(268_098_176), gemma.model.in_short(3_224_256), gemma.model.in_short(192)
        ('268M', '3.2M', '192')
    """
    for unit, power in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        # 999,950 is 1.0M.
        if number >= power * (0.9995 if power > 1000 else 1):
            return f"{number / power:.1f}{unit}" if number < 9.95 * power else f"{number / power:.0f}{unit}"
    return str(number)


def param_shapes(config: Config, dtype: jnp.dtype = jnp.float32) -> dict:
    """Returns the tree of parameters as `jax.ShapeDtypeStruct`, without computing anything."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
