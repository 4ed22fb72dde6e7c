# %% [markdown]
# # A first hour
#
# Train a sparse autoencoder on a small language model, look at its latents, and steer the model with one of them. The
# model and its text come with the package, so nothing is downloaded. All of it takes about a minute on a CPU, and
# runs unchanged on a TPU or a GPU. Change numbers and run the cells again: that is what the hour is for.
#
# The next cell installs the package where it is missing. In a checkout you need not change it (after `make env` the
# package is installed). In Colab, choose a TPU or a CPU under *Runtime > Change runtime type*, and let `SOURCE` say
# where the package is: `git+https://...`, the address of your copy of the repository, or the path of a wheel that you
# have uploaded.

# %%
import glob
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = ""
if importlib.util.find_spec("sae") is None:
    here = (Path.cwd(), *Path.cwd().parents)
    source = SOURCE or next((str(folder) for folder in here if (folder / "mishax_lite").is_dir()), None)
    if source is None:
        raise RuntimeError("the package is not installed, and this is no checkout: let SOURCE say where it is")
    # The extra `tpu` brings the libtpu that goes with JAX's version.
    extra = "[tpu]" if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") else ""
    wanted = f"mishax-lite{extra} @ {source}" if "://" in source else source + extra
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)

# %%
import jax
import numpy as np

import gemma
import sae

print(jax.devices())

# %% [markdown]
# ## A model, opened up
#
# Every value of the forward pass has a name. `capture` takes names or patterns, and returns their values.

# %%
model = gemma.load("gemma2-tiny")
forward = model.run("And the king said unto him", capture=["layer_3/resid_post", "layer_*/attn_pattern"])
for name, value in forward.values.items():
    print(f"{name:24} {value.shape}")

# %%
print(gemma.generate(model, "And the king said unto him", max_new_tokens=20).texts[0])

# %% [markdown]
# ## Activations of a text
#
# `cut` makes sequences of one length, each begun by BOS. `harvest` runs the model over them and keeps the activations
# of a site, shuffled, in a folder: the residual stream after block 3. BOS and padding do not count.

# %%
shipped = Path(gemma.__file__).parent / "tiny"
SITE, LENGTH = "layer_3/resid_post", 128
rng = np.random.default_rng(0)


def some(file: str, count: int) -> sae.text.Sequences:
    sequences = sae.text.cut(sae.text.read_documents(shipped / file), model.tokenizer, LENGTH)
    return sequences.take(np.sort(rng.permutation(len(sequences))[:count]))


text, held_out = some("text.jsonl", 600), some("held_out.jsonl", 64)
store = sae.harvest(model, text, [SITE], "runs/first_hour/store")
store

# %% [markdown]
# ## An autoencoder
#
# A run says what is trained: 768 latents, of which about 16 fire on a token. `estimate` says beforehand what training
# takes.

# %%
run = sae.short_run(SITE, 768, steps=300, batch_size=1024, l0_target=16)
print(sae.estimate(run, store))

# %%
result = sae.train(run, store)
autoencoder = result.autoencoder
sae.save(autoencoder, "runs/first_hour/autoencoder")

# %% [markdown]
# How well does it do on new text? L0 counts the latents that fire on a token. FVU is the part of the
# variance that the reconstruction misses. The loss recovered is 1 where the model predicts with the reconstruction as
# well as without it, and 0 where it predicts no better than with zeros in its place.

# %%
metrics = sae.evaluate(autoencoder, model, held_out)
print(f"L0 {metrics.l0:.1f}   FVU {metrics.fvu:.3f}   loss recovered {metrics.loss_recovered:.3f}")

# %% [markdown]
# ## Look
#
# Which latents fire on a text, and on which of its tokens?

# %%
for latent in sae.top_latents(autoencoder, model, "And the king said unto him", 5):
    print(
        f"latent {latent.latent:4}   {latent.activation:6.1f} at {latent.token!r:12} fires on {' '.join(latent.tokens)}"
    )

# %% [markdown]
# And what is a latent about? See where it fires most strongly over a text, and which tokens it makes likelier. These
# latents move a token's logit furthest, among those that promote words and fire on at most one token in fifty:

# %%
latents = sae.latents(autoencoder, model, held_out)
word = lambda token: token.startswith(" ") and token.strip().isalpha()
rare = [
    latent
    for latent in latents
    if 0.001 < latent.frequency < 0.02 and all(word(token) for token, _ in latent.promoted[:3])
]
clear = sorted(rare, key=lambda latent: latent.largest * latent.promoted[0][1], reverse=True)
for latent in clear[:8]:
    peaks = " ".join(example.token for example in latent.examples[:6])
    promoted = " ".join(token for token, _ in latent.promoted[:6])
    print(f"latent {latent.latent:4}   fires on {latent.frequency:.2%}: {peaks:40}   promotes {promoted}")

# %% [markdown]
# ## Steer
#
# Steering adds a latent's direction to the residual stream at every token. Take one of the latents above, and set its
# strength in units of the largest activation that training recorded. The strength is no part of the compiled program:
# another strength needs no second compilation.

# %%
chosen = clear[0].latent
print("promotes", " ".join(token for token, _ in latents[chosen].promoted[:8]))
for strength in (0.0, 0.5, 1.0, 2.0):
    steer = sae.steer(autoencoder, {chosen: sae.of_max(strength)})
    written = gemma.generate(model, "And it came to pass", max_new_tokens=20, edits=steer)
    print(f"{strength:.1f} x largest: {written.texts[0]}")

# %% [markdown]
# Did steering do what the promoted tokens say? Compare their probability with and without it:

# %%
ids = latents.effects.promoted[chosen]
steer = sae.steer(autoencoder, {chosen: sae.of_max(2)})
plain, steered = (
    jax.nn.softmax(model.run("And it came to pass", edits=edits).logits[0, -1])[np.asarray(ids)].sum()
    for edits in (None, steer)
)
print(f"probability of the ten tokens that it promotes most: {plain:.2g}, steered {steered:.2g}")

# %% [markdown]
# ## From here
#
# - More latents, steps and sites: `sae.train` takes several runs and reads the store once for all of them.
# - `sae.explore([autoencoder], model, held_out, "runs/first_hour/pages")` writes a page for each latent (the extra
#   `pages`).
# - `sae.ablate`, `sae.clamp` and `sae.splice` are edits too; `a | b` joins two.
# - Real models: `gemma.load("google/gemma-2-2b")`, or a folder; nothing else changes.
# - *Hooks on your own model*, beside this notebook, has the hooks without Gemma.
