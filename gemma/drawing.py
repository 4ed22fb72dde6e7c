"""Draws the next token from logits: penalty, temperature, `top_k`, `top_p` and `min_p`, in transformers' order."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules for drawing a token. A rule that is None is not computed; numbers may change without compiling anew.

    Attributes:
        temperature: logits are divided by it.
        top_p: see `gemma.generate`.
        min_p: see `gemma.generate`.
        penalty: the repetition penalty, see `gemma.generate`.
        top_k: see `gemma.generate`. It is static.
        greedy: whether to take the most likely token. It is static.
    """

    temperature: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    penalty: jax.Array | None = None
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})
    greedy: bool = dataclasses.field(default=False, metadata={"static": True})

    def draw(self, logits: jax.Array, keys: jax.Array, seen: jax.Array | None) -> jax.Array:
        """Draws a token [B] from each row of logits.

        Args:
            logits: float32 [B, V].
            keys: random keys [B].
            seen: bool [B, V], the tokens that the penalty is for; None without a penalty.
        """
        if self.penalty is not None:
            # pyrefly: ignore[bad-argument-type]  seen is there with a penalty
            logits = penalise(logits, seen, self.penalty)
        if self.greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        # pyrefly: ignore[bad-argument-type]  None where greedy alone
        return sample(logits, keys, self.temperature, self.top_k, self.top_p, self.min_p)


def penalise(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Returns logits that make the seen tokens less likely (CTRL, arXiv 1909.05858).

    Positive logits are divided by the penalty, negative ones multiplied by it.

    Args:
        logits: float32 [B, V].
        seen: bool [B, V].
        penalty: a scalar; above 1 the tokens become less likely.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_k: int | None = None,
    top_p: jax.Array | None = None,
    min_p: jax.Array | None = None,
) -> jax.Array:
    """Draws a token [B] from each row of logits: `top_k`, `top_p`, then `min_p` cut the tempered distribution.

    Args:
        logits: float32 [B, V].
        keys: random keys [B].
        temperature: logits are divided by it.
        top_k: see `gemma.generate`.
        top_p: see `gemma.generate`.
        min_p: see `gemma.generate`.
    """
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
    """Returns the log-probabilities [B] of tokens [B] under logits [B, V]."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
