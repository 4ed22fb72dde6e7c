"""A model that is ready to run: its configuration, its parameters and its tokenizer."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Integer, Shaped

from gemma import arguments, configs, editing, fingerprints, losses, readout, running, sites
from gemma.arguments import TokenIds
from gemma.cache import Cache
from gemma.configs import Config
from gemma.editing import AnyEdits
from gemma.running import Forward
from gemma.site_records import Site
from gemma.tokenizer import Tokenizer
from gemma.transformer import Transformer
from mishax_lite.applying import hooked

Attention = Literal["plain", "fused"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """What `gemma.load` returns: a pytree of its parameters, so it can be an argument of a jitted function.

    Attributes:
      params: the parameters, named as in DeepMind's checkpoints, without their leading `transformer/`.
      config: the model's shape.
      tokenizer: None where the checkpoint's folder has none.
      dtype: of the activations.
      tokenizer_problem: why `tokenizer` is None, None where the checkpoint simply has none or one is there.
      end_tokens: the ids at which its texts end, as the checkpoint says; None where it says nothing.
      attention: "plain", or "fused", which is faster and has no sites of pairs of tokens.
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
        """The name of its configuration, such as "gemma2-2b"."""
        return self.config.name

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens that it has logits for."""
        return self.config.vocab_size

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of its parameters and configuration (`gemma.fingerprints`)."""
        return fingerprints.fingerprint(self.config, self.params)

    @property
    def sites(self) -> Mapping[str, Site]:
        """The record of each site by name, in the order of the forward pass, as far as its attention has them."""
        return sites.of(self.config, fused=self.attention == "fused")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the sites that a linear circuit holds still."""
        return sites.frozen(self.config, fused=self.attention == "fused")

    @property
    def lean(self) -> "Model":
        """The same model in its fastest form: with fused attention, in which sites of pairs of tokens are missing."""
        return dataclasses.replace(self, attention="fused")

    def resumption(self, names: str | Sequence[str]) -> tuple[str, ...]:
        """Returns the sites whose values, put back beside others at `names`, make the layers below unnecessary."""
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
        """float32 logits [B, T, V] of tokens [B, T]. A pure function, for jit, grad and vmap of one's own.

        Args:
          tokens: ids of whole sequences from their first token on; with a cache, those that follow what is in it.
          capture: names of sites or patterns (`mishax_lite.capture`), whose values are returned too.
          edits: as for `mishax_lite.edit`: a dict, `mishax_lite.Edits` such as those of `sae.steer`, or a function of
            the positions [B, T] that returns either. A result in a wider float than the site's is rounded to it.
          positions: [B, T]; by default 0 … T-1, or with a cache those after the last ones. In a cache, a negative
            position marks padding, which no other token sees.
          mask: [B, T, T] of bool, which keys a query may see; causal by default. Local layers narrow it further.
          cache: from `gemma.empty_cache`, or from an earlier call.
          attention: "fused" never holds all scores [B, N, T, S], so memory grows with T and not with its square; the
            sites `attn_scores` and `attn_pattern` exist in "plain" only. None: the model's own.
          last: the logits of the last token alone, [B, 1, V]; of the others none are computed.

        Returns:
          The logits; with a cache, the logits and the cache with these tokens in it. With `capture`, the pair of that
          and a dict of the captured values.

        Raises:
          ValueError: for tokens that are no [B, T] integers or have no row in the embedding (where tokens are traced,
            their values are not known: the logits of such a sequence are NaN), positions or a mask of other shapes or
            dtypes, a mask beside a cache, a cache for another batch or with no room left, another `attention`, a
            Gemma 3 in float16, and names of sites that match nothing.

        Example:
          >>> model = gemma.load("gemma2-tiny")
          >>> logits, values = model.apply([[2, 23, 213]], capture="layer_3/attn_z")
          >>> values["layer_3/attn_z"].shape
          (1, 3, 4, 48)
        """
        tokens, positions, mask, attention = self._checked(tokens, positions, mask, attention)
        if cache is not None:
            cache.check_room(*tokens.shape)
            if mask is not None:
                raise ValueError("with a cache there is no mask: what a token sees follows from the positions")
        transformer = Transformer(self.config, self.dtype, attention, last)

        def forward(tokens):
            # float32 means float32: by default, accelerators multiply float32 matrices in bfloat16 or TF32 passes.
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
            float32 [B, T-1], nats; number t is the loss of token t + 1. That of a token that is padding counts too:
            which ones are meant, the caller decides.

        Raises:
            ValueError: as for `apply`, and for sequences of one token, in which nothing is predicted.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> model.losses([model.tokenizer.encode("In the beginning")]).shape
            (1, 3)
        """
        tokens, positions, mask, attention = self._checked(tokens, positions, mask, attention)
        if tokens.shape[1] < 2:
            raise ValueError(f"losses are of sequences of two tokens at least, got [B, T] = {list(tokens.shape)}")
        transformer = Transformer(self.config, self.dtype, attention, unembeds=False)

        def forward(tokens):
            with jax.default_matmul_precision("highest"):
                x: Any = transformer.apply({"params": self.params}, tokens, positions, mask)
                table = self.params["embedder"]["input_embedding"]
                return losses.cross_entropy(x[:, :-1], table, tokens[:, 1:], cap=self.config.final_softcap)

        return hooked(forward, tokens, lambda: editing.positions_of(tokens, positions, None), edits=edits)

    # For `mishax_lite.edit`: how edits that need the text find it in the arguments.
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
            text_or_tokens: a text; a list of texts, which are padded at the end to one length; or token ids [B, T],
                the tokenizer's padding at the end of a row being padding. Texts get BOS put before them.
            capture: names of sites or patterns (`mishax_lite.capture`).
            edits: as for `apply`; at padding, positions are -1. The arrays in `Edits` and in a
                `jax.tree_util.Partial` are arguments of the program, so that other numbers compile nothing; a plain
                function that is new on each call is compiled on each call.
            attention: as for `apply`.

        Returns:
            The logits, the captured values, the tokens and the mask that says which of these are no padding.

        Raises:
            ValueError: as for `apply`; for texts where the model has no tokenizer; inside `jax.jit`.

        Example:
            >>> forward = gemma.load("gemma2-tiny").run(["The sea", "A"], capture="layer_3/resid_post")
            >>> forward.values["layer_3/resid_post"].shape, forward.mask.sum(axis=1).tolist()
            ((2, 3, 192), [3, 2])
        """
        model = self if attention is None else dataclasses.replace(self, attention=attention)
        return running.run(model, text_or_tokens, capture, edits)

    def unembed(self, residual: Float[ArrayLike, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """Returns the logits of a last residual stream: final norm, unembedding, final softcap. A pure function.

        Args:
            residual: [..., D], such as the value at the last layer's `resid_post`; computed in its own dtype.

        Returns:
            float32 [..., V].

        Raises:
            ValueError: for another width than D.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> model.unembed(jnp.ones(192)).shape
            (4096,)
        """
        with jax.default_matmul_precision("highest"):
            return readout.unembed(self.config, self.params, jnp.asarray(residual))

    def lens(self, value: Any) -> Any:
        """Returns the logits that the model would give if it ended at a value of the residual stream: the logit lens.

        It is `unembed` of any value in the stream, or of many at once (nostalgebraist 2020,
        https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens). A pure function.

        Args:
            value: [..., D], or a pytree of such arrays, such as `forward.values`.

        Returns:
            float32 [..., V] in the place of each array.

        Raises:
            ValueError: for another width than D.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> forward = model.run("The sea", capture="*/resid_post")
            >>> model.lens(forward.values)["layer_3/resid_post"].shape
            (1, 3, 4096)
        """
        return jax.tree.map(self.unembed, value)

    def direct_logits(
        self,
        value: Float[ArrayLike, "..."],
        site: str | None = None,
        *,
        scales: Mapping[str, Shaped[jax.Array, "..."]] | None = None,
        tokens: Integer[ArrayLike, " K"] | Sequence[int] | None = None,
    ) -> Float32[jax.Array, "..."]:
        """Returns what a component adds to the logits by itself, before the final softcap: direct logit attribution.

        The residual stream is a sum, so with `scales` the contributions of `embed` and of every layer's `attn_out` and
        `mlp_out` add up to the model's logits (before the softcap), and those of the heads to that of `attn_out`. A
        latent's contribution is that of its activation times its decoder row. A pure function.

        Args:
            value: [..., *shape] at the site. Heads [..., N, H] are taken one by one; joined, [..., N·H], together.
            site: a site that writes to the residual stream. None: a vector [..., D] of the stream itself.
            scales: captured values of the same tokens, such as `forward.values`, with those norms' scales that
                `gemma.sites.divisions` names: `final_scale`, and for heads their layer's `post_attn_scale`. A value may
                have further axes after the tokens'. None leaves the norms' divisions out.
            tokens: ids [K] of the logits that are meant, all by default.

        Returns:
            float32 [..., V], or [..., K] with `tokens`; heads one by one, [..., N, V].

        Raises:
            ValueError: for an unknown site or one that does not write to the residual stream, a value of another shape,
                scales that are missing or of other tokens, and ids that the model lacks.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> v = model.run("The sea", capture=["layer_3/attn_z", "layer_3/post_attn_scale", "final_scale"]).values
            >>> model.direct_logits(v["layer_3/attn_z"], "layer_3/attn_z", scales=v, tokens=[5, 6]).shape
            (1, 3, 4, 2)
        """
        record, way, shape = None, readout.unchanged, (self.config.d_model,)
        if site is not None:
            sites.check(self.config, site)
            record = sites.of(self.config)[site]
            way, shape = sites.way(record), record.shape
        vectors = readout.one_by_one(jnp.asarray(value, jnp.float32), shape)
        if vectors.shape[-1:] != (math.prod(shape),):
            raise ValueError(
                f"a value {'of the residual stream' if site is None else f'at {site}'} is [..., "
                f"{', '.join(map(str, shape))}], got {list(jnp.shape(value))}"
            )
        ids = None if tokens is None else jnp.asarray(tokens)
        if ids is not None and ids.ndim != 1:
            raise ValueError(f"tokens are ids [K], the same for every value; got an array {list(ids.shape)}")
        ids = None if ids is None else arguments.token_ids(ids[None], self.config)[0]
        *within, last = sites.divisions(record)
        if scales is not None and (missing := [name for name in (*within, last) if name not in scales]):
            raise ValueError(f"scales lack {missing[0]}: capture it with the value, or give no scales")
        with jax.default_matmul_precision("highest"):
            added = way(self.params, None if record is None else record.layer, vectors)
            if scales is not None:
                for name in (*within, last):
                    added = readout.multiplied(added, scales[name], name)
            return readout.direct_logits(self.params, added, ids)

    def logit_directions(self, site: str, vectors: Float[ArrayLike, "*B A"]) -> Float32[jax.Array, "*B V"]:
        """Returns how vectors at a site, added to the residual stream, would move the logits to first order.

        A vector passes the final norm's gain and the unembedding; what depends on the token, the norm's division and
        the softcap, is left out. Vectors of `attn_z` go through the output projection and the post-attention norm's
        gain first. The mean over the vocabulary, which softmax ignores, is taken away. A pure function.

        Args:
            site: a site that writes to the residual stream.
            vectors: [..., A], A being the product of the site's axes.

        Returns:
            float32 [..., V].

        Raises:
            ValueError: for an unknown site or one that does not write to the residual stream, and for another A.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> model.logit_directions("layer_3/attn_z", jnp.eye(192)[:5]).shape
            (5, 4096)
        """
        sites.check(self.config, site)
        record = sites.of(self.config)[site]
        way, dim = sites.way(record), math.prod(record.shape)
        vectors = jnp.asarray(vectors, jnp.float32)
        if vectors.shape[-1:] != (dim,):
            raise ValueError(f"vectors at {site} are [..., {dim}], got {list(vectors.shape)}")
        with jax.default_matmul_precision("highest"):
            return readout.logits_of_directions(self.params, way(self.params, record.layer, vectors))

    def _checked(
        self, tokens: TokenIds, positions: Any, mask: Any, attention: Attention | None
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None, Attention]:
        """Tokens, positions and mask as arrays, and the attention; raises ValueError for what `apply` refuses."""
        configs.check_dtype(self.config, self.dtype)
        tokens = arguments.token_ids(tokens, self.config)
        positions, mask = arguments.positions_and_mask(tokens, positions, mask)
        attention = self.attention if attention is None else attention
        if attention not in ("plain", "fused"):
            raise ValueError(f"attention is 'plain' or 'fused', got {attention!r}")
        return tokens, positions, mask, attention


def in_short(number: int) -> str:
    """A large number for people, as the names of models have it.

    Example:
      >>> in_short(268_098_176), in_short(3_224_256), in_short(192)
      ('268M', '3.2M', '192')
    """
    for unit, power in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        # 999,950 is 1.0M.
        if number >= power * (0.9995 if power > 1000 else 1):
            return f"{number / power:.1f}{unit}" if number < 9.95 * power else f"{number / power:.0f}{unit}"
    return str(number)


def param_shapes(config: Config, dtype: jnp.dtype = jnp.float32) -> dict:
    """The tree of parameters as `jax.ShapeDtypeStruct`, nothing computed."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
