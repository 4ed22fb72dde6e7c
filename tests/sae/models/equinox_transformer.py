"""A small transformer in Equinox, whose modules `mishax_lite.modules` taps, as a language model.

Axis letters: B sequences, T tokens, S keys, D width, N heads, H head width, F hidden width, V vocabulary.
"""

import equinox as eqx
import jax
import jax.numpy as jnp


def draw(key, *shape):
    return jax.random.normal(key, shape) / jnp.sqrt(shape[0])


class Linear(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return x @ self.weight


class Norm(eqx.Module):
    gain: jax.Array

    def __call__(self, x):
        x = x - x.mean(axis=-1, keepdims=True)
        return self.gain * x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


class Mix(eqx.Module):
    """Causal attention [B, T, N, H]; keys that are far away count less."""

    def __call__(self, q, k, v):
        distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / q.shape[-1] ** 0.5 - 0.2 * distance
        return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(jnp.where(distance >= 0, scores, -jnp.inf)), v)


class Attention(eqx.Module):
    qkv: jax.Array  # [D, 3, N, H]
    mix: Mix
    out: jax.Array  # [N, H, D]

    def __call__(self, x):
        q, k, v = jnp.einsum("BTD,DiNH->iBTNH", x, self.qkv)
        return jnp.einsum("BTNH,NHD->BTD", self.mix(q, k, v), self.out)


class MLP(eqx.Module):
    up: Linear
    down: Linear

    def __call__(self, x):
        return self.down(jax.nn.gelu(self.up(x)))


class Block(eqx.Module):
    norms: tuple[Norm, Norm]
    attention: Attention
    mlp: MLP

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class Embedding(eqx.Module):
    table: jax.Array

    def __call__(self, tokens):
        return self.table[tokens]


class Transformer(eqx.Module):
    embed: Embedding
    blocks: list[Block]
    norm: Norm
    head: Linear

    def __init__(self, key, V: int, D: int = 24, N: int = 3, H: int = 8, F: int = 48, layers: int = 2):
        keys = jax.random.split(key, 4 * layers + 2)
        self.embed, self.head = Embedding(draw(keys[0], V, D) * V**0.5), Linear(draw(keys[1], D, V))
        self.norm = Norm(jnp.linspace(0.5, 1.5, D))
        self.blocks = [
            Block(
                (Norm(jnp.ones(D)), Norm(jnp.ones(D))),
                Attention(draw(a, D, 3, N, H), Mix(), draw(b, N, H, D)),
                MLP(Linear(draw(c, D, F)), Linear(draw(d, F, D))),
            )
            for a, b, c, d in keys[2:].reshape(layers, 4)
        ]

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
