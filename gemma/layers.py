"""The parts of a Gemma 2 or 3 block, in Flax linen, with parameters named as in DeepMind's checkpoints.

Axis letters: B batch, T query positions, S key positions, D model width, N query heads, K key/value heads, G = N/K,
H head width, F feed-forward width, V vocabulary. Query heads are key-head major: n = k*G + g.

Nothing here knows of hooks: `gemma/sites.py` puts them in by rewriting this source. Where a site is, a statement
computes one value.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gemma.attention import MASKED, Reach, fused, softcap
from gemma.cache import LayerCache, extend
from gemma.configs import LOCAL, Config

FEW_TOKENS = 16  # in all sequences together


class Weight(nn.Module):
    """A weight `w` of a given shape."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, dtype: jnp.dtype) -> jax.Array:
        return self.param("w", nn.initializers.normal(0.02), self.shape).astype(dtype)


def product(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns `jnp.einsum` of activations x [B, T, …] and a weight, without moving the weight in memory.

    The contracted axes are joined. For a few tokens, as in decoding, the weight's axes before them become batch axes:
    else the compiler would transpose the weight first, which on CPU takes 4 to 7 times as long as the product. For many
    tokens the transposition costs nothing beside the product, and one large product is faster.

    Args:
        equation: as for `jnp.einsum`, of two operands.
        x: [B, T, …].
        w: the weight.
    """
    inputs, out = equation.split("->")
    xs, ws = inputs.split(",")
    joined = [letter for letter in ws if letter in xs]
    if len(joined) > 1:
        x = x.reshape(*x.shape[: -len(joined)], -1)
        w = w.reshape(-1, *w.shape[len(joined) :])
        xs, ws = xs[: -len(joined) + 1], ws[:1] + ws[len(joined) :]
    before = ws[: ws.index(joined[0])]
    if before and x.shape[0] * x.shape[1] <= FEW_TOKENS:
        x, xs = jnp.broadcast_to(x, (*w.shape[: len(before)], *x.shape)), before + xs
    return jnp.einsum(f"{xs},{ws}->{out}", x, w)


def products(equation: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `product` with each half of a weight [2, …]: keys and values, gate and up.

    For many tokens two products are faster; for few tokens one product is, which need not cut the weight.
    """
    if x.shape[0] * x.shape[1] > FEW_TOKENS:
        return product(equation, x, w[0]), product(equation, x, w[1])
    inputs, out = equation.split("->")
    first, second = product(f"{inputs.replace(',', ',C')}->C{out}", x, w)
    return first, second


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + 1e-6) * (1 + scale), computed in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
        normed = x32 * inverse
        gain = jnp.expand_dims(1.0 + scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
        return (normed * gain).astype(x.dtype)


class Embedder(nn.Module):
    """Token embeddings, which are the input embeddings and, tied, the output embeddings."""

    vocab_size: int
    d_model: int

    def setup(self):
        """Declares the parameter."""
        self.input_embedding = self.param(
            "input_embedding", nn.initializers.normal(0.02), (self.vocab_size, self.d_model)
        )

    def encode(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Returns the embeddings [B, T, D] of token ids [B, T] times sqrt(D); NaN for ids without a row.

        The factor is rounded to `dtype` first, as in DeepMind's code.
        """
        ids = jnp.where(tokens < 0, self.vocab_size, tokens)  # negative ids would count from the end
        rows = self.input_embedding.at[ids].get(mode="fill", fill_value=jnp.nan)
        return rows.astype(dtype) * jnp.sqrt(self.d_model).astype(dtype)

    def decode(self, x: jax.Array) -> jax.Array:
        """Returns the logits float32 [B, T, V] of x [B, T, D], before the final softcap."""
        table = self.input_embedding.astype(x.dtype)
        return jnp.einsum("BTD,VD->BTV", x, table, preferred_element_type=jnp.float32)


def rope(x: jax.Array, positions: jax.Array, base: float, scale: float = 1.0) -> jax.Array:
    """Returns x with rotary position embeddings: split-half, with sines in float32.

    Args:
        x: [B, T, heads, H].
        positions: integers [B, T].
        base: the base of the frequencies.
        scale: positions are divided by it.
    """
    half = x.shape[-1] // 2
    timescale = base ** (jnp.arange(half, dtype=jnp.float32) / half)
    radians = positions[:, :, None, None].astype(jnp.float32) / scale / timescale[None, None, None]
    # XLA would compute separate sin and cos anew for every layer and head: it takes them for cheap.
    turn = jnp.exp(jax.lax.complex(jnp.zeros_like(radians), radians))
    sin, cos = turn.imag, turn.real
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention, in a local or a global layer."""

    config: Config
    kind: str

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, allowed: jax.Array | Reach, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Computes attention.

        Args:
            x: [B, T, D].
            positions: integers [B, T].
            allowed: the keys that a query may see, as a mask [B, T, S]; or as a `Reach`, with which attention is fused.
            cache: the keys and values before x, or None.

        Returns:
            The output [B, T, D], and the new cache.
        """
        c = self.config
        B, T, D = x.shape
        N, K, H = c.num_heads, c.num_kv_heads, c.head_dim

        q = product("BTD,NDH->BTNH", x, Weight((N, D, H), name="q_einsum")(x.dtype))
        k, v = products("BSD,KDH->BSKH", x, Weight((2, K, D, H), name="kv_einsum")(x.dtype))
        if c.qk_norm:
            q = RMSNorm(name="_query_norm")(q)
            k = RMSNorm(name="_key_norm")(k)
        base, scale = (c.local_rope_base, 1.0) if self.kind == LOCAL else (c.rope_base, c.rope_scale)
        q = rope(q, positions, base, scale) * jnp.asarray(c.query_scale, x.dtype)
        k = rope(k, positions, base, scale)
        if cache is not None:
            k, v, cache = extend(cache, k, v)

        if isinstance(allowed, Reach):
            z = fused(q, k, v, allowed, c.attn_softcap)
        else:
            # The queries are transposed before the product, since its result has T * S numbers and is larger.
            grouped = jnp.einsum("BTKGH->BKGTH", q.reshape(B, T, K, N // K, H))
            scores = jnp.einsum("BKGTH,BSKH->BKGTS", grouped, k).reshape(B, N, T, -1)
            capped = softcap(scores.astype(jnp.float32), c.attn_softcap)
            masked = jnp.where(allowed[:, None], capped, MASKED)
            pattern = jax.nn.softmax(masked, axis=-1).astype(x.dtype)
            weights = pattern.reshape(B, K, N // K, T, -1)
            z = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)
        return product("BTNH,NHD->BTD", z, Weight((N, H, D), name="attn_vec_einsum")(x.dtype)), cache


class FeedForward(nn.Module):
    """GeGLU: gelu (tanh approximation) of the gate times up, then down."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, F = self.config.d_model, self.config.d_ff
        gating = self.param("gating_einsum", nn.initializers.normal(0.02), (2, D, F)).astype(x.dtype)
        linear = self.param("linear", nn.initializers.normal(0.02), (F, D)).astype(x.dtype)
        gate, up = products("BTD,DF->BTF", x, gating)
        hidden = nn.gelu(gate, approximate=True) * up
        return jnp.einsum("BTF,FD->BTD", hidden, linear)
