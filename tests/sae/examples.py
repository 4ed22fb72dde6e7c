"""Made-up stores, autoencoders and texts that several tests use."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sae
from sae.store import claims, writing
from sae.store import manifest as manifests
from sae.store.places import Place, place
from sae.text import Document, cut

SITE = "layer_2/resid_post"


DOCUMENTS = (("doc", "made-up"),)


def manifest(shapes: dict[str, tuple[int, ...]], rows: int, segment_rows: int = 1000, **changes) -> manifests.Manifest:
    """Of a store with so many rows at sites of these shapes."""
    return manifests.Manifest(
        **{
            "model": "made-up",
            "model_fingerprint": "0",
            "tokenizer_sha256": "0",
            "sites": shapes,
            "dtype": "float32",
            "corpus_sha256": "0",
            "sequences": rows,
            "length": 2,
            "sequences_per_segment": segment_rows,
            "seed": 0,
            "counted": sae.Counted((0, 1, 2)),
            "documents_sha256": manifests.documents_sha256(DOCUMENTS),
            **changes,
        }
    )


def make_store(
    path: Path | Place, sites: dict[str, np.ndarray], *, segment_rows: int = 1000, dtype: str = "float32", **changes
):
    """A store with rows `sites[name]` [rows, A], shuffled within segments. `token` is the row's number."""
    rows = len(next(iter(sites.values())))
    shapes = {site: (values.shape[1],) for site, values in sites.items()}
    about = manifest(shapes, rows, segment_rows, dtype=dtype, **changes)
    where = place(path)
    manifests.write(where, about, DOCUMENTS)
    for index in writing.missing_segments(where, about):
        part = slice(index * segment_rows, min(rows, (index + 1) * segment_rows))
        number = np.arange(part.start, part.stop)
        facts = {"token": number, "position": np.ones_like(number), "document": np.zeros_like(number)}
        claim = claims.claim(where, index)
        writing.write_segment(where, claim, {site: v[part] for site, v in sites.items()}, facts, about)
    return sae.ActivationStore.open(where)


def autoencoder_for(model, width, site=SITE, seed=0, scale=1.0):
    """Random weights, a common threshold."""
    keys = jax.random.split(jax.random.key(seed), 2)
    W = jax.random.normal(keys[0], (width, 3 * width)) / np.sqrt(width)
    return sae.JumpReLU(
        W_enc=W,
        b_enc=jnp.zeros(3 * width),
        W_dec=scale * W.T,
        b_dec=jax.random.normal(keys[1], (width,)),
        threshold=jnp.full(3 * width, 0.5),
        info=sae.Info(model.config.name, site, site),
    )


def sequences(tiny, count=21):
    """Token sequences [S, 24] of short documents."""
    documents = [
        Document(f"d{i}", "s", f"And {i} days went by, and the king said unto him, Go." * 2) for i in range(count)
    ]
    return cut(documents, tiny.tokenizer, 24).tokens
