"""How far bfloat16 activations and parameters are from float32, layer by layer, as a Markdown table.

    python -m experiments.benchmarks.bfloat16 --model=gemma3-270m

Norms, softmax, softcaps and logits are computed in float32 either way; matrix products and the residual stream are not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import gemma
import mishax_lite
from experiments import common, running
from sae.text import is_text

SEQUENCES = flags.DEFINE_integer("sequences", 4, "Sequences of held-out text.", lower_bound=1)
flags.declare_key_flag("model")
flags.declare_key_flag("length")


@functools.partial(jax.jit, static_argnames="sites")
def values_at(model: gemma.Model, tokens: jax.Array, sites: tuple[str, ...]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the logits [B, T, V] and the values of some sites [B, T, …]."""
    return mishax_lite.capture(model.apply, sites)(tokens)


def deviations(model: gemma.Model, tokens: np.ndarray, kinds: tuple[str, ...] = ("attn_out", "mlp_out", "resid_post")):
    """For each layer and kind of site, the mean over text tokens of ||bfloat16 - float32|| / ||float32||.

    Args:
      model: in float32.
      tokens: [B, T].

    Returns:
      [L, kinds], and the share of tokens whose most likely next token is the same, and the mean KL divergence of the
      next token's distribution in nats.
    """
    lower = gemma.Model(
        jax.tree.map(lambda w: w.astype(jnp.bfloat16), model.params), model.config, model.tokenizer, jnp.bfloat16
    )
    sites = tuple(f"layer_{i}/{kind}" for i in range(model.config.num_layers) for kind in kinds)
    logits, want = values_at(model, tokens, sites)
    logits_lower, got = values_at(lower, tokens, sites)
    # pyrefly: ignore[missing-attribute]  not None here
    text = is_text(np.asarray(tokens), model.tokenizer.special_ids)
    relative = []
    for site in sites:
        exact = np.asarray(want[site], np.float32)[text]
        error = np.linalg.norm(np.asarray(got[site], np.float32)[text] - exact, axis=-1)
        relative.append(np.mean(error / np.linalg.norm(exact, axis=-1)))
    logp, logq = (jax.nn.log_softmax(x[text]) for x in (logits, logits_lower))
    same = jnp.mean(jnp.argmax(logp, -1) == jnp.argmax(logq, -1))
    divergence = jnp.mean(jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1))
    return np.reshape(relative, (model.config.num_layers, len(kinds))), float(same), float(divergence)


def main():
    model = gemma.load(common.MODEL.value)
    tokens = common.texts(model)[1].tokens[: SEQUENCES.value]
    table, same, divergence = deviations(model, tokens)
    print(f"{model.config.name}, bfloat16 against float32, {len(tokens)} sequences of {tokens.shape[1]} tokens:\n")
    print("| layer | kind | attn_out | mlp_out | resid_post |\n| --- | --- | --- | --- | --- |")
    for i, (kind, row) in enumerate(zip(model.config.layer_kinds, table, strict=True)):
        print(f"| {i} | {kind} | " + " | ".join(f"{x:.2%}" for x in row) + " |")
    print(f"\nsame most likely next token: {same:.1%}; KL divergence {divergence:.2g} nats a token")


if __name__ == "__main__":
    running.run(main)
