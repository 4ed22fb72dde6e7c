"""From logits to the next token: penalty, temperature, `top_k`, `top_p` and `min_p`, in transformers' order."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """How a token is drawn. What is None is not computed; numbers may change without compiling anew.

    Attributes:
      temperature: logits are divided by it.
      top_p, min_p, penalty: see `gemma.generate`.
      top_k: static.
      greedy: static, whether the most likely token is taken.
    """

    temperature: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    penalty: jax.Array | None = None
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})
    greedy: bool = dataclasses.field(default=False, metadata={"static": True})

    def draw(self, logits: jax.Array, keys: jax.Array, seen: jax.Array | None) -> jax.Array:
        """A token [B] from each row of logits [B, V]; `seen` [B, V] are the tokens that the penalty is for."""
        if self.penalty is not None:
            # pyrefly: ignore[bad-argument-type]  seen is there with a penalty
            logits = penalise(logits, seen, self.penalty)
        if self.greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        # pyrefly: ignore[bad-argument-type]  None where greedy alone
        return sample(logits, keys, self.temperature, self.top_k, self.top_p, self.min_p)


def penalise(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Logits that make the tokens seen less likely: positive ones divided by the penalty, negative ones times it
    (CTRL, arXiv 1909.05858)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_k: int | None = None,
    top_p: jax.Array | None = None,
    min_p: jax.Array | None = None,
) -> jax.Array:
    """Draws a token [B] from each row of logits [B, V]: of the tempered distribution `top_k`, `top_p`, then `min_p`."""
    logits = logits / temperature
    ids = None
    if top_k is not None or top_p is not None:  # from here on, columns are in falling order
        logits, ids = jax.lax.top_k(logits, logits.shape[-1] if top_k is None else top_k)
    if top_p is not None:
        probabilities = jax.nn.softmax(logits, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        first = jnp.arange(logits.shape[-1]) == 0
        logits = jnp.where((before < top_p) | first[None], logits, -jnp.inf)
    if min_p is not None:
        logits = jnp.where(logits < jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p), -jnp.inf, logits)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    return (drawn if ids is None else jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]).astype(jnp.int32)


def log_probabilities(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The log-probability [B] of tokens [B] by logits [B, V]."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
