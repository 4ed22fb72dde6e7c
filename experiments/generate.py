"""Continues prompts, as the model does by itself and, with --sae, with a latent's direction added.

python -m experiments.generate --prompt="The sea" --prompt="The king" --temperature=0.8 --seed=1
python -m experiments.generate --prompt="The sea" --sae=runs/scope/saes/… --latent=17 --strength=3max
"""

from pathlib import Path

from absl import flags

import gemma
import sae
from mishax_lite import Edits
from sae import steering as library
from sae.files import local_path
from sae.interventions import OfMax
from sae.steering import parse_strength

from . import autoencoders, common, running

PROMPTS = flags.DEFINE_multi_string("prompt", None, "Text to continue; may be given several times.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "The most tokens that are added.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token.", lower_bound=0.0)
TOP_K = flags.DEFINE_integer("top_k", None, "Draw from this many of the most likely tokens.", lower_bound=1)
TOP_P = flags.DEFINE_float("top_p", None, "Draw from the fewest tokens that have this probability together.")
SAE = flags.DEFINE_string("sae", None, "An autoencoder's folder: a latent's direction is added at its site.")
LATENT = flags.DEFINE_integer("latent", None, "The latent to steer with.", lower_bound=0)
STRENGTH = flags.DEFINE_string(
    "strength",
    None,
    "How much of the latent is added: a number in raw units, as on its page, or a multiple of its largest recorded "
    "activation, such as 3max.",
)
# What --help lists.
flags.declare_key_flag("model")
flags.declare_key_flag("dtype")
flags.declare_key_flag("seed")
flags.declare_key_flag("site")
flags.declare_key_flag("compilation_cache")
flags.declare_key_flag("expanded_cache")


def strength_of(text: str, autoencoder: sae.JumpReLU, latent: int, folder: Path) -> float:
    """Returns a strength in raw units: a number itself; for `3max`, three times the latent's largest activation.

    Args:
        text: the value of the flag.
        autoencoder: with a record of its largest activations, where the strength is a multiple of one.
        latent: the number of the latent.
        folder: of the autoencoder, for errors.

    Raises:
        ValueError: for another text, a number that is not finite, an autoencoder without the record, or a latent that
            fired on none of the record's tokens.
    """
    amount = parse_strength(text, "--strength takes")
    if not isinstance(amount, OfMax):
        return amount
    record = autoencoder.largest
    if record is None:
        raise ValueError(
            f"{folder} has no record of its latents' largest activations, which --strength={text} multiplies. "
            f"`python -m experiments.evaluate --model={common.MODEL.value} --saes_dir={folder}` records them; or give "
            "a number in raw units"
        )
    if not record.values[latent]:
        raise ValueError(
            f"latent {latent} of {folder} fired on none of the {record.tokens:,} tokens of its record, so "
            f"--strength={text} is 0: give a number in raw units, or another latent"
        )
    return amount.of(autoencoder, latent)


def steering(model: gemma.Model, folder: Path, latent: int | None, strength: str | None) -> tuple[str, Edits]:
    """Returns in words what is added, and the edits that add `strength` times a latent's decoder row.

    Raises:
      ValueError: for an autoencoder of another model or without a site, a latent that it lacks, or a strength that
        `strength_of` refuses.
    """
    autoencoder = autoencoders.load(folder, model)
    # pyrefly: ignore[bad-argument-type]  not None here
    library.check_steers(autoencoder, model, latent, str(folder), "--latent")
    # pyrefly: ignore[bad-argument-type]  checked above
    strength_of(strength, autoencoder, latent, folder)  # its errors name flags
    # pyrefly: ignore[bad-argument-type]  not None here
    steered = library.steering(autoencoder, model, latent, strength, name=str(folder))
    return steered.title, steered.edits


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another, or are out of their range."""
    if not PROMPTS.value:
        raise ValueError("a prompt is missing: give --prompt='…', once or several times")
    if SAE.value is None and (LATENT.value is not None or STRENGTH.value is not None):
        raise ValueError("--latent and --strength go with --sae")
    if SAE.value is None and flags.FLAGS["site"].present:
        raise ValueError("--site is for an autoencoder: it goes with --sae")
    if SAE.value is not None and (LATENT.value is None or STRENGTH.value is None):
        raise ValueError("--sae goes with --latent and --strength")
    if STRENGTH.value is not None:
        parse_strength(STRENGTH.value, "--strength takes")
    if common.SEED.value >= 2**32:
        raise ValueError(f"--seed is from 0 to {2**32 - 1} here, got {common.SEED.value}")
    if TOP_P.value is not None and not 0 < TOP_P.value <= 1:
        raise ValueError(f"--top_p must be above 0 and at most 1, got {TOP_P.value:g}")
    if TEMPERATURE.value == 0 and (TOP_K.value is not None or TOP_P.value is not None):
        raise ValueError("--top_k and --top_p say what to draw from: they go with a --temperature above 0")
    if TEMPERATURE.value == 0:
        running.refuse(["seed"], "nothing is drawn at --temperature=0")


def main():
    common.keep_compiled_programs()
    model = common.load_model([common.activation_dtype(local_path(SAE.value))] if SAE.value is not None else [])
    runs = {"": None}
    if SAE.value is not None:
        title, edits = steering(model, local_path(SAE.value), LATENT.value, STRENGTH.value)
        runs[title] = edits
    for title, edits in runs.items():
        texts = gemma.generate(
            model,
            # pyrefly: ignore[bad-argument-type]  not None here
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
        # pyrefly: ignore[missing-attribute,bad-argument-type]  without `stream` it is a Generation
        for prompt, text in zip(PROMPTS.value, texts.texts or map(str, texts.tokens.tolist()), strict=True):
            print(f"{prompt}|{text}")


if __name__ == "__main__":
    running.run(main, check_flags)
