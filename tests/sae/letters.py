"""A language model that nobody's package has, with what `sae.LanguageModel` asks for and nothing that is optional: two
blocks over the letters of a text. Its sites have other names, numbers of axes and special ids than Gemma's.

Axis letters: B sequences, T tokens, D model width, N heads, H head width, V vocabulary.
"""

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mishax_lite
import sae
from mishax_lite import tap

D, N, H, BLOCKS = 12, 2, 6, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz ."


class Letters:
    """A token for each letter; before them padding, BOS and EOS, of which padding is not 0."""

    bos, eos, pad = 0, 1, 2
    special_ids = (0, 1, 2)
    sha256 = hashlib.sha256(LETTERS.encode()).hexdigest()

    def __len__(self) -> int:
        return 3 + len(LETTERS)

    def encode(self, text: str) -> list[int]:
        return [self.bos, *(3 + LETTERS.index(letter) for letter in text.lower() if letter in LETTERS), self.eos]

    def decode(self, ids) -> str:
        return "".join(self.piece(i) for i in ids)

    def piece(self, id_: int) -> str:
        return ("<bos>", "<eos>", "<pad>", *LETTERS)[id_]

    def byte(self, id_: int) -> None:
        return None


class Forward(NamedTuple):
    logits: jax.Array
    values: dict[str, jax.Array]
    tokens: jax.Array
    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LetterModel:
    """Attributes: `params`, a dict of arrays. Everything else is the same for all of them."""

    params: dict
    name = "letters"
    dtype = np.dtype("float32")
    vocab_size = 3 + len(LETTERS) + 4  # some rows have no letter
    tokenizer = Letters()
    frozen = ("block.0.weights", "block.1.weights")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(self.params))).hexdigest()

    @property
    def sites(self) -> dict[str, sae.Site]:
        return SITES

    def apply(self, tokens, *, capture=(), edits=None):
        forward = mishax_lite.edit(_logits, edits) if edits else _logits
        return mishax_lite.capture(forward, capture)(self, tokens) if capture else forward(self, tokens)

    def run(self, tokens_or_text, *, capture=(), edits=None):
        if isinstance(tokens_or_text, str):
            tokens_or_text = [self.tokenizer.encode(tokens_or_text)]
        tokens = jnp.asarray(tokens_or_text)
        out = jax.jit(lambda model, tokens: model.apply(tokens, capture=capture, edits=edits))(self, tokens)
        logits, values = out if capture else (out, {})
        return Forward(logits, values, tokens, tokens != self.tokenizer.pad)

    def losses(self, tokens, *, edits=None):
        logits = self.apply(tokens, edits=edits)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])

    def unembed(self, residual):
        return residual @ self.params["embed"].T

    def logit_directions(self, site, vectors):
        if not SITES[site].writes_to_residual:
            raise ValueError(f"{site} does not write to the residual stream")
        if SITES[site].kind == "heads":
            vectors = vectors @ self.params["out"][SITES[site].layer]
        logits = self.unembed(vectors)
        return logits - logits.mean(axis=-1, keepdims=True)


def _logits(model: LetterModel, tokens: jax.Array) -> jax.Array:
    p = model.params
    x = tap("stream.start", p["embed"][tokens])
    weights = jnp.tril(jnp.ones((tokens.shape[1],) * 2))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    for i in range(BLOCKS):
        pattern = tap(f"block.{i}.weights", jnp.broadcast_to(weights, (len(tokens), *weights.shape)))
        values = (x @ p["in"][i]).reshape(*x.shape[:2], N, H)
        heads = tap(f"block.{i}.heads", jnp.einsum("BTS,BSNH->BTNH", pattern, values))
        x = x + heads.reshape(x.shape) @ p["out"][i]
        x = tap(f"block.{i}.resid", x + tap(f"block.{i}.mlp", jnp.tanh(x @ p["up"][i]) @ p["down"][i]))
    return tap("logits", model.unembed(x))


def _site(name: str, shape: tuple[int, ...], layer: int | None, writes: bool, **more) -> sae.Site:
    return sae.Site(name, shape, layer, name.rpartition(".")[-1], writes, **more)


SITES = {
    site.name: site
    for site in (
        _site("stream.start", (D,), None, True),
        *(
            site
            for i in range(BLOCKS)
            for site in (
                _site(f"block.{i}.weights", (), i, False, per_token=False),
                _site(f"block.{i}.heads", (N, H), i, True, sharding=0),
                _site(f"block.{i}.mlp", (D,), i, True),
                _site(f"block.{i}.resid", (D,), i, True),
            )
        ),
        _site("logits", (LetterModel.vocab_size,), None, False),
    )
}


@functools.cache
def letter_model(seed: int = 0) -> LetterModel:
    """One with random weights."""
    shapes = {
        "embed": (LetterModel.vocab_size, D),
        "in": (BLOCKS, D, D),
        "out": (BLOCKS, D, D),
        "up": (BLOCKS, D, 2 * D),
        "down": (BLOCKS, 2 * D, D),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    draw = lambda key, shape: jax.random.normal(key, shape) / np.sqrt(shape[-2])  # noqa: E731
    return LetterModel({name: draw(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)})
