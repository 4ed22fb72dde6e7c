"""The whole way with a language model: text, sequences, store, training, evaluation, pages, steering. For tests."""

import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

import sae
from sae.evaluation.latents import latent_statistics, top_tokens
from sae.explorer import pages
from sae.text import Document, cut

TEXT = (
    "in the beginning was the sea and the sea was calm a ship came from the north with salt and wool and nobody knew "
    "whose it was the king of the city sent his men to the gate and they said let us see what it is that came"
)
WORDS = tuple(TEXT.split())
STEPS = 30


def documents(count: int = 16, words: int = 40) -> list[Document]:
    """Texts of common words, each in an order of its own."""
    generator = np.random.default_rng(0)
    return [Document(f"d{i}", "words", " ".join(generator.choice(WORDS, words))) for i in range(count)]


def go(model: sae.LanguageModel, sites: Sequence[str], folder: Path) -> list[sae.JumpReLU]:
    """Goes the whole way with an autoencoder for each site, checks each step, and returns the autoencoders."""
    sequences = cut(documents(), model.tokenizer, 24)
    store = sae.harvest(model, sequences, sites, folder / "store")
    assert store.rows == np.sum(~np.isin(sequences.tokens, model.tokenizer.special_ids))
    runs = [sae.short_run(site, 32, STEPS, batch_size=64, l0_target=8) for site in sites]
    autoencoders, _ = sae.train(runs, store)
    for site, autoencoder in zip(sites, autoencoders, strict=True):
        assert autoencoder.info.site == site and autoencoder.info.shape == model.sites[site].shape
        measure(model, autoencoder, sequences)
        show(model, autoencoder, sequences, folder / "pages")
        if model.sites[site].writes_to_residual:
            steer(model, autoencoder)
    return autoencoders


def measure(model: sae.LanguageModel, autoencoder: sae.JumpReLU, sequences: sae.text.Sequences) -> None:
    """Evaluation gives the losses that the model itself has, with and without the autoencoder in it."""
    metrics = sae.evaluate(autoencoder, model, sequences)
    counts = ~np.isin(sequences.tokens, model.tokenizer.special_ids)
    predicted = counts[:, :-1] & counts[:, 1:]
    clean, spliced = (
        np.asarray(jax.jit(model.losses)(sequences.tokens, edits=edits))[predicted].mean()
        for edits in (None, sae.splice(autoencoder))
    )
    assert metrics.tokens == counts.sum() and metrics.l0 > 0 and metrics.fvu > 0
    assert metrics.loss == pytest.approx(clean, abs=1e-4) and metrics.loss_spliced == pytest.approx(spliced, abs=1e-4)


def show(model: sae.LanguageModel, autoencoder: sae.JumpReLU, sequences: sae.text.Sequences, folder: Path) -> None:
    """Pages have words of the text; where the site writes to the residual stream, also the tokens that are promoted."""
    site = autoencoder.info.site
    statistics = latent_statistics(autoencoder, model, sequences, site, examples=2)
    tokens = top_tokens(autoencoder, model, site) if model.sites[site].writes_to_residual else None
    about = pages.About("the text that was trained on", autoencoder.info.counted.omissions())
    index = pages.write_latents(
        folder, "", model.name, autoencoder, statistics, tokens, sequences, model.tokenizer, about
    )
    latent = int(np.argmax(statistics.fired))
    page = (index.parent / f"{latent}.html").read_text("utf-8")
    assert set(re.findall(r"\w+", re.sub(r"<[^>]*>", "", page))) & set(WORDS)


def steer(model: sae.LanguageModel, autoencoder: sae.JumpReLU) -> None:
    """Steering moves the logits of every token but BOS; other strengths compile nothing."""
    forward = model.run(["the sea was calm", "a ship"])
    for strength in (5.0, 50.0):
        steered = model.run(["the sea was calm", "a ship"], edits=sae.steer(autoencoder, {0: strength}))
        moved = np.abs(np.asarray(steered.logits - forward.logits)).max(axis=-1)
        assert (moved[:, 0] == 0).all() and (moved[:, 1:][np.asarray(forward.mask)[:, 1:]] > 1e-3).all()
