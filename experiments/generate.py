"""Continues prompts, as the model does by itself and, with --sae, with one latent's direction added.

python -m experiments.generate --prompt="The sea" --prompt="The king" --temperature=0.8 --seed=1
python -m experiments.generate --prompt="The sea" --sae=runs/scope/saes/… --latent=17 --strength=20
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

import gemma
import sae
from experiments import common
from sae.evaluation.latents import writes_to_residual

PROMPTS = flags.DEFINE_multi_string("prompt", None, "Text to continue; may be given several times.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "The most tokens that are added.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token.", lower_bound=0.0)
TOP_K = flags.DEFINE_integer("top_k", None, "Only so many of the most likely tokens.", lower_bound=1)
TOP_P = flags.DEFINE_float("top_p", None, "Only the fewest that have this probability together.")
SAE = flags.DEFINE_string("sae", None, "An autoencoder's folder: its latent's direction is added at its site.")
LATENT = flags.DEFINE_integer("latent", None, "The latent to steer with.", lower_bound=0)
STRENGTH = flags.DEFINE_float("strength", None, "How much of the latent is added, in raw units, as on its page.")
# What --help lists.
flags.declare_key_flag("model")
flags.declare_key_flag("seed")


def _add(shift: jax.Array, positions: jax.Array) -> dict:
    """Adds a vector [A] at a site, at every token but BOS and padding."""
    (site, direction), *_ = shift.items()
    moved = jnp.where(positions[..., None] > 0, direction, 0.0)
    return {site: lambda value, _: value + moved.reshape(value.shape).astype(value.dtype)}


def steering(model: gemma.Model, folder: Path, latent: int | None, strength: float | None) -> jax.tree_util.Partial:
    """The edits that add `strength` times a latent's decoder row.

    Raises:
      ValueError: for an autoencoder of another model, one that does not say its site, or a latent that it has not.
    """
    autoencoder = sae.load(folder)
    if autoencoder.info is None:
        raise ValueError(f"{folder} has no info.json, so its site is unknown")
    site = autoencoder.info.site_out
    if autoencoder.info.model != model.config.name:
        raise ValueError(f"{folder} was trained on {autoencoder.info.model}, the model given is {model.config.name}")
    if not writes_to_residual(site):
        raise ValueError(f"{folder} is of {site}, which does not write to the residual stream")
    if latent is None or strength is None:
        raise ValueError("--sae goes with --latent and --strength")
    if latent >= autoencoder.width:
        raise ValueError(f"{folder} has latents 0 to {autoencoder.width - 1}, got --latent={latent}")
    return jax.tree_util.Partial(_add, {site: strength * autoencoder.W_dec[latent]})


def main():
    if not PROMPTS.value:
        raise ValueError("give something to continue: --prompt='…', once or several times")
    if SAE.value is None and (LATENT.value is not None or STRENGTH.value is not None):
        raise ValueError("--latent and --strength go with --sae")
    model = gemma.load(common.MODEL.value)
    runs = {"": None}
    if SAE.value is not None:
        runs[f"with {STRENGTH.value} of latent {LATENT.value}"] = steering(
            model, Path(SAE.value), LATENT.value, STRENGTH.value
        )
    for title, edits in runs.items():
        made = gemma.generate(
            model,
            PROMPTS.value,
            max_new_tokens=MAX_NEW_TOKENS.value,
            temperature=TEMPERATURE.value,
            top_k=TOP_K.value,
            top_p=TOP_P.value,
            seed=common.SEED.value,
            edits=edits,
        )
        if title:
            print(f"\n{title}:")
        for prompt, text in zip(PROMPTS.value, made.texts or map(str, made.tokens.tolist()), strict=True):
            print(f"{prompt}|{text}")


if __name__ == "__main__":
    common.run(main)
