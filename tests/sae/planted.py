"""Autoencoders that fit their sites without training, and a small model whose sites lie far apart.

A latent looks along the direction of one token's activation; what it writes is fitted by least squares.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import sae
from mishax_lite import tap
from sae.capturing import activations_at
from tests.sae.letters import Letters

LAYERS, D, F = 3, 32, 64


def _forward(params, tokens):
    x = tap("embed", params["embed"][tokens])
    counts = jnp.arange(1, tokens.shape[1] + 1)[:, None]
    for i in range(LAYERS):
        x = tap(f"layer_{i}/resid_pre", x)
        mixed = (jnp.cumsum(x, axis=1) - x[:, :1]) / counts  # BOS is a sink: nobody reads what it has
        x = tap(f"layer_{i}/resid_mid", x + tap(f"layer_{i}/attn_out", mixed @ params["mix"][i]))
        normed = tap(f"layer_{i}/mlp_normed", x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True)))
        mlp_in = tap(f"layer_{i}/mlp_in", normed * params["gain"][i])
        out = jax.nn.gelu(mlp_in @ params["up"][i]) @ params["down"][i]
        x = tap(f"layer_{i}/resid_post", x + tap(f"layer_{i}/mlp_out", out))
    return x @ params["embed"].T


@functools.cache
def small_model() -> sae.AdaptedModel:
    """Three layers over letters, whose norms have gains from about a tenth to ten."""
    rng, V = np.random.default_rng(0), len(Letters())
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    embed = 3 * normal(V, D)
    embed[Letters.bos] *= 10  # as real models have it
    params = {
        "embed": embed,
        "mix": 2 * normal(LAYERS, D, D) / D**0.5,
        "gain": np.exp(normal(LAYERS, D)),
        "up": normal(LAYERS, D, F) / D**0.5,
        "down": 3 * normal(LAYERS, F, D) / F**0.5,
    }
    inside = ("resid_pre", "attn_out", "resid_mid", "mlp_normed", "mlp_in", "mlp_out", "resid_post")
    return sae.AdaptedModel(
        name="small",
        params=jax.tree.map(jnp.asarray, params),
        tokenizer=Letters(),
        vocab_size=V,
        layers=LAYERS,
        kinds=(sae.SiteKind("embed", (D,), in_layers=False), *(sae.SiteKind(kind, (D,)) for kind in inside)),
        forward=_forward,
        readout=lambda params, residual: residual @ params["embed"].T,
        direct=lambda params, vectors: vectors @ params["embed"].T,
    )


def random_tokens(model, sequences: int, length: int, seed: int = 0) -> np.ndarray:
    """[S, T], each sequence begun by BOS."""
    tokenizer = model.tokenizer
    plain = sorted(set(range(model.vocab_size)) - set(tokenizer.special_ids))
    tokens = np.random.default_rng(seed).choice(plain, (sequences, length)).astype(np.int32)
    tokens[:, 0] = tokenizer.bos
    return tokens


def activations(model, tokens: np.ndarray, sites) -> dict[str, np.ndarray]:
    """[S, T, A] of each site."""
    values = activations_at(model, jnp.asarray(tokens), tuple(sites))
    return {site: np.asarray(value, np.float32) for site, value in values.items()}


def fitted(x, y, info, *, width=256, share=0.9, skip=False, seed=0) -> sae.JumpReLU:
    """A JumpReLU from x [N, A] to y [N, A'], each of whose latents is active on a share 1 - `share` of the tokens."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    rng, mean = np.random.default_rng(seed), x.mean(axis=0)
    rows = (x - mean)[rng.choice(len(x), width)]
    W_enc = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    z = (x - mean) @ W_enc
    threshold = np.quantile(z, share, axis=0).clip(1e-3)
    f = z * (z > threshold)
    parts = np.concatenate([f, np.ones((len(x), 1)), *([x] if skip else [])], axis=1).astype(np.float64)
    products = parts.T @ parts
    sizes = np.diag(products)
    ridge = np.diag(1e-4 * sizes + 1e-9 * sizes.max())
    solved = np.linalg.solve(products + ridge, parts.T @ y).astype(np.float32)
    arrays = (W_enc, -mean @ W_enc, solved[:width], solved[width], threshold)
    W_skip = jnp.asarray(solved[width + 1 :]) if skip else None
    return sae.JumpReLU(*(jnp.asarray(array, jnp.float32) for array in arrays), W_skip=W_skip, info=info)


def claiming(autoencoder: sae.JumpReLU, **changes) -> sae.JumpReLU:
    """The same, whose `info` says something else."""
    return dataclasses.replace(autoencoder, info=dataclasses.replace(autoencoder.info, **changes))
