"""The small Equinox model on letters, and a text of three documents, for tests that need any model and any text."""

import jax

import sae
from sae.text import Document, Sequences, cut
from tests.sae.letters import Letters
from tests.sae.models import equinox_adapter, equinox_transformer


def model() -> sae.AdaptedModel:
    """The model, with random parameters."""
    transformer = equinox_transformer.Transformer(jax.random.key(0), len(Letters()))
    return equinox_adapter.adapt(transformer, Letters())


def sequences() -> Sequences:
    """Three documents that differ in their first words, in sequences of 12 tokens."""
    starts = ("he", "a king", "men")
    documents = [Document(f"d{i}", "s", f"{start} went to the sea") for i, start in enumerate(starts)]
    return cut(documents, Letters(), 12)
