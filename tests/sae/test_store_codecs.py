"""A store's codec is one class: rows go through it from a harvest to a training, whatever it keeps them as."""

import numpy as np
import pytest

import sae
from sae.store import verifying
from sae.store.codec import Codec, codec, codecs
from tests.registering import registered
from tests.sae import examples

SITE = "layer_0/resid_post"


class Halves(Codec):
    """Whole numbers of 4 bits, two in a byte, with the least and the step of each row beside them."""

    about = "half a byte a number, and eight for a row"

    def parts(self, dim):
        return {
            "": (np.dtype("u1"), (-(-dim // 2),)),
            ".range": (np.dtype("<f4"), (2,)),
            ".dim": (np.dtype("<i4"), ()),
        }

    def encode(self, x):
        x = x.astype(np.float32)
        least = x.min(axis=1)
        step = np.maximum((x.max(axis=1) - least) / 15, 1e-30)
        whole = np.rint((x - least[:, None]) / step[:, None]).astype(np.uint8)
        whole = np.pad(whole, [(0, 0), (0, x.shape[1] % 2)])
        pairs = whole[:, ::2] << 4 | whole[:, 1::2]
        return {"": pairs, ".range": np.stack([least, step], axis=1), ".dim": np.full(len(x), x.shape[1], np.int32)}

    def decode(self, stored, out, rows=None):
        rows = slice(None) if rows is None else rows
        pairs, span = stored[""][rows], stored[".range"][rows]
        whole = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(len(pairs), -1)[:, : out.shape[1]]
        out[...] = span[:, :1] + whole * span[:, 1:]


@pytest.fixture
def halves():
    codec("float32")  # the others are found
    with registered((codecs, "halves", Halves)):
        yield


def test_a_codec_of_ones_own_goes_from_harvest_to_training(halves, tiny, tmp_path):
    texts = [
        sae.text.Document(str(n), "made up", f"The sea is {n} and the king said no more of it.") for n in range(40)
    ]
    sequences = sae.text.cut(texts, tiny.tokenizer, 12)
    store = sae.harvest(tiny, sequences, [SITE], tmp_path / "s", dtype="halves", progress=False)
    exact = sae.harvest(tiny, sequences, [SITE], tmp_path / "exact", progress=False)
    assert (store.manifest.dtype, store.rows) == ("halves", exact.rows)
    got, want = (s.rows_between(SITE, 0, 0, 50) for s in (store, exact))
    step = (want.max(axis=1) - want.min(axis=1)) / 15
    assert (np.abs(got - want) <= step[:, None] * 0.501).all() and np.abs(got - want).max() > 0
    assert 0 < store.rounding(SITE) < 0.05
    assert verifying.damaged(store) == {}
    opened = sae.ActivationStore.open(tmp_path / "s")
    result = sae.train(sae.short_run(SITE, 32, 3, batch_size=64, l0_target=8), opened, progress=False)
    assert result.autoencoder.width == 32


def test_rows_of_an_odd_length_survive_in_batches(halves, tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    store = examples.make_store(tmp_path / "s", {"a": x}, dtype="halves", segment_rows=100)
    batches, rows = store.batches(50, ["a", "token"]), {}
    for _ in range(6):
        batch = next(batches)
        rows |= dict(zip(batch["token"].tolist(), batch["a"], strict=True))
    batches.close()
    got = np.stack([rows[number] for number in range(300)])
    step = (x.max(axis=1) - x.min(axis=1)) / 15
    assert (np.abs(got - x) <= step[:, None] * 0.501).all()


def test_float16_halves_the_bytes_and_refuses_what_it_has_no_number_for(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    store = examples.make_store(tmp_path / "s", {"a": x}, dtype="float16")
    token = store.rows_between("token", 0, 0, 200)
    np.testing.assert_array_equal(store.rows_between("a", 0, 0, 200), x[token].astype(np.float16).astype(np.float32))
    assert codec("float16").row_bytes(6) == 12 and 0 < store.rounding("a") < 1e-6
    x[3, 2] = 70_000
    with pytest.raises(OSError, match=r"float16 has no number above 65504, got 1 beyond it: choose bfloat16"):
        examples.make_store(tmp_path / "beyond", {"a": x}, dtype="float16")


def test_an_unknown_dtype_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"a store's dtype is one of .*float32.*; got 'float8'"):
        examples.manifest({"a": (3,)}, 10, dtype="float8")
