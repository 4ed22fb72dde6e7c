"""What a user prints is one line, whatever a transformation has put in the place of arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import showing
from sae.autoencoder import Largest
from sae.evaluation.latents import LatentStatistics, TopTokens
from sae.evaluation.measuring import Baseline
from sae.text import Document, Duplicates, Message, Sequences
from tests.sae.examples import make_store

SITE, OUT = "layer_3/resid_post", "layer_3/mlp_out"
INFO = sae.Info("gemma2-tiny", SITE, SITE)


def jumprelu(A=64, Z=512, A_out=None, skip=False, dtype=jnp.float32, info=INFO):
    out = A if A_out is None else A_out
    shapes = [(A, Z), (Z,), (Z, out), (out,), (Z,)] + ([(A, out)] if skip else [])
    return sae.JumpReLU(*(jnp.zeros(shape, dtype) for shape in shapes), info=info)


def crosscoder(info=None):
    shapes = [(2, 64, 512), (512,), (512, 2, 64), (2, 64), (512,)]
    return sae.Crosscoder(*(jnp.zeros(shape) for shape in shapes), info=info)


@pytest.mark.parametrize(
    ("autoencoder", "line"),
    [
        (jumprelu(), "JumpReLU(layer_3/resid_post of gemma2-tiny: 64 -> 512 latents, float32)"),
        (jumprelu(Z=1, dtype=jnp.bfloat16, info=None), "JumpReLU(64 -> 1 latent, bfloat16)"),
        (
            jumprelu(A_out=32, skip=True, info=sae.Info("gemma2-tiny", SITE, OUT)),
            f"JumpReLU({SITE} to {OUT} of gemma2-tiny: 64 -> 512 latents -> 32, skip, float32)",
        ),
        (
            crosscoder(sae.Info("gemma2-tiny", (OUT, SITE), (OUT, SITE))),
            f"Crosscoder({OUT}, {SITE} of gemma2-tiny: 2 x 64 -> 512 latents, float32)",
        ),
        (
            jax.tree.map(lambda a: jnp.stack([a, a, a]), jumprelu(info=None)),
            "JumpReLU(3 stacked, 64 -> 512 latents, float32)",
        ),
        (jax.tree.map(np.asarray, crosscoder()), "Crosscoder(2 x 64 -> 512 latents, float32)"),
    ],
)
def test_an_autoencoder_is_one_line(autoencoder, line):
    assert repr(autoencoder) == str(autoencoder) == line


def test_repr_works_in_every_transformation():
    seen = []

    def look(autoencoder, x):
        seen.append(repr(autoencoder))
        return autoencoder(x)

    a, x = jumprelu(info=None), jnp.ones((4, 64))
    jax.jit(look)(a, x)
    jax.grad(lambda a: look(a, x).sum())(a)
    jax.eval_shape(lambda a, x: look(a, x), a, x)  # not the trace that jit has kept
    jax.vmap(look, in_axes=(0, None))(jax.tree.map(lambda leaf: leaf[None], a), x)
    assert seen == ["JumpReLU(64 -> 512 latents, float32)"] * 4


def test_what_is_no_array_any_more_is_shown_by_its_fields():
    a = jumprelu(info=None)
    assert repr(jax.tree.map(lambda leaf: None, a)) == "JumpReLU()"
    assert repr(jax.tree.map(lambda leaf: leaf.ndim, a)) == "JumpReLU(W_enc=2, b_enc=1, W_dec=2, b_dec=1, threshold=1)"
    norms = repr(jax.tree.map(jnp.linalg.norm, a))
    assert norms.startswith("JumpReLU(W_enc=float32[], ") and "\n" not in norms
    assert repr(jax.tree.map(lambda leaf: object(), a)).count("\n") == 0
    assert "W_enc=P" in repr(jax.tree.map(lambda leaf: jax.sharding.PartitionSpec("latent"), a))
    # A structure shows the static fields.
    assert "\n" not in repr(jax.tree.structure(dataclasses.replace(a, info=INFO)))


def test_autoencoders_are_the_pytrees_that_they_were():
    for a in (jumprelu(skip=True), crosscoder(INFO)):
        leaves, structure = jax.tree.flatten(a)
        again = jax.tree.unflatten(structure, leaves)
        assert type(again) is type(a) and again.info == a.info and len(leaves) == 5 + isinstance(a, sae.JumpReLU)


def statistics():
    Z, E, T = 16, 2, 8
    return LatentStatistics(
        1000, np.arange(Z), np.ones(Z), np.ones((Z, 32)), np.ones(Z), np.zeros((Z, E)), np.zeros((Z, E)),
        np.zeros((Z, E, T)),
    )  # fmt: skip


LONG = "And the king said unto him, " * 5000
RECORDS = [
    (Largest(np.ones(512), 4096), "Largest(512 latents, over 4,096 tokens)"),
    (INFO, "Info(layer_3/resid_post of gemma2-tiny, raw units)"),
    (
        sae.Metrics(SITE, 12345, 12000, 20.13, 0.1239, 3.0, 3.3, 6.0, 0.3121, 0.9641, 3, 512, 60),
        "Metrics(layer_3/resid_post: L0 20.1, FVU 0.124, delta loss 0.312 nats, loss recovered 0.964, 3 of 512 "
        "latents dead, 12,345 tokens of 60 documents)",
    ),
    (
        Baseline(
            SITE,
            np.zeros(640),
            {"loss": 30.0, "loss_zero": 60.0, "predictions": 10.0, "tokens": 11.0},
            sae.Counted((0, 1, 2)),
            "3 sequences",
            "0",
            "gemma3-270m",
            "0",
        ),
        "Baseline(layer_3/resid_post: loss 3.000, with zero in its place 6.000, 11 tokens)",
    ),
    (
        sae.short_run(SITE, 1536, 600, l0_target=20.0),
        "Run(layer_3/resid_post: 1,536 latents, target L0 20, 600 steps of 1,024 tokens)",
    ),
    (
        sae.gemma_scope(SITE, 2**14, 1_000_000, site_out=OUT),
        f"Run({SITE} to {OUT}: 16,384 latents, lambda 0.0006, 1,000,000 steps of 4,096 tokens)",
    ),
    (
        sae.short_run([f"layer_{i}/resid_post" for i in range(26)], 64, 1),
        "Run(26 sites: 64 latents, lambda 0.0008, 1 step of 1,024 tokens)",
    ),
    (statistics(), "LatentStatistics(15 of 16 latents fired on 1,000 tokens, 2 examples of each)"),
    (TopTokens(*[np.zeros((16, 10))] * 4), "TopTokens(10 tokens of 16 latents)"),
    (Document("a:7", "a", "one"), "Document(id='a:7', source='a', text='one', messages=())"),
    (
        Document("d", "s", LONG),
        f"Document(id='d', source='s', text='{LONG[:40]}...' (140,000 characters), messages=())",
    ),
    (
        Document("d", "s", messages=(Message("user", LONG),) * 4),
        f"Document(id='d', source='s', text='', messages=(Message(role='user', content='{LONG[:40]}...' (140,000 "
        "characters)), ... 4 in all))",
    ),
]


@pytest.mark.parametrize(("record", "line"), RECORDS, ids=lambda value: type(value).__name__)
def test_a_record_is_one_line(record, line):
    assert repr(record) == str(record) == line


def test_duplicates_are_one_line():
    assert repr(Duplicates()) == "Duplicates(no duplicates among 0 documents)"


def test_sequences_say_of_how_many_they_are():
    tokens = np.ones((2000, 256), np.int32)
    rows = np.arange(2000, dtype=np.int32)
    s = Sequences(tokens, rows, rows, tuple((f"d{k}", "s") for k in range(2000)))
    assert repr(s) == "Sequences(2,000 sequences of 256 tokens, 2,000 documents)"
    some = s.take(np.arange(150)).take(slice(0, 100))
    assert repr(some) == "Sequences(100 of 2,000 sequences of 256 tokens, 2,000 documents)"
    assert some.fingerprint() == Sequences(*(a[:100] for a in (tokens, rows, rows)), s.documents).fingerprint()
    left_out = dataclasses.replace(s, left_out=np.zeros(tokens.shape, bool)).take([3])
    assert (
        repr(left_out)
        == "Sequences(1 of 2,000 sequences of 256 tokens, 2,000 documents, some of their tokens left out)"
    )


def test_a_store_and_its_manifest_are_one_line(tmp_path):
    store = make_store(tmp_path / "s", {"x": np.ones((1500, 8), np.float32)})
    assert repr(store) == f"ActivationStore({tmp_path / 's'}: 1,500 tokens at x of made-up, float32)"
    assert repr(store.manifest) == "Manifest(x of made-up, float32, 1,500 sequences of 2 tokens in 2 segments)"
    part = dataclasses.replace(store, segments=store.segments[:1], growing=True)
    assert repr(part) == f"ActivationStore({tmp_path / 's'}: 1,000 tokens at x of made-up, float32, 1 of 2 segments)"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_152_000_000, "1.15 GB"), (3e12, "3 TB")]
)
def test_bytes_for_people(number, text):
    assert showing.size(number) == text
