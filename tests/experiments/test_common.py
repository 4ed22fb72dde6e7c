"""The text that launches share, and its held-out part."""

import importlib.metadata
import json
import os
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from experiments import common


def corpus(path, *sizes):
    path.write_text("\n".join(json.dumps({"text": f"{k} went up. " * n, "id": f"d{k}"}) for k, n in enumerate(sizes)))
    return str(path)


def words(tiny, sequences):
    return tiny.tokenizer.decode(sequences.tokens.ravel())


@pytest.mark.parametrize("packed", [False, True])
def test_no_document_is_harvested_and_held_out(tiny, tmp_path, launch, packed):
    for seed in range(3):
        launch(corpus=corpus(tmp_path / "c.jsonl", *[20] * 30), length=16, packed=packed, seed=seed)
        train, held_out = common.texts(tiny)
        ids = [{part.documents[number][0] for number in np.unique(part.document_at())} for part in (train, held_out)]
        assert not ids[0] & ids[1] and ids[0] | ids[1] == {f"d{k}" for k in range(30)}
        assert 0.05 < len(held_out) / (len(held_out) + len(train)) < 0.2
        padded = (train.tokens == tiny.tokenizer.pad).any(axis=1).sum()
        assert (padded <= 1) == packed
        assert not set(words(tiny, train).split(".")) & set(words(tiny, held_out).split(".")) - {" ", ""}


def test_packed_text_that_is_nearly_all_one_document(tiny, tmp_path, launch, capsys):
    for seed in range(4):
        launch(corpus=corpus(tmp_path / "c.jsonl", 1, 300, 1), length=16, packed=True, seed=seed, max_sequences=10**6)
        train, held_out = common.texts(tiny)
        assert "d1" in [id_ for id_, _ in train.documents] and "d1" not in [id_ for id_, _ in held_out.documents]
        assert len(train) > 8 * len(held_out) > 0
    assert (
        capsys.readouterr().out.splitlines()
        == [
            "c.jsonl: no duplicates among 3 documents",
            "document 'd1' is 99% of the text: its end, 10% of it, is held out",
            "2 documents to harvest, 2 held out",
        ]
        * 4
    )


def test_of_a_single_packed_document_the_end_is_held_out(tiny, tmp_path, launch):
    launch(corpus=corpus(tmp_path / "c.jsonl", 300), length=16, packed=True)
    train, held_out = common.texts(tiny)
    assert len(train) > 8 * len(held_out) > 0 and words(tiny, held_out).strip().startswith("0 went up.")
    assert [part.documents[0][0] for part in (train, held_out)] == ["d0", "d0 (end)"]
    launch(corpus=corpus(tmp_path / "c.jsonl", 1))
    with pytest.raises(ValueError, match="makes a single sequence of 16 tokens"):
        common.texts(tiny)


def test_what_is_harvested_and_what_is_held_out_is_said(tiny, tmp_path, launch):
    said = []
    launch(corpus=corpus(tmp_path / "c.jsonl", *[20] * 60), length=16)
    train, held_out = common.texts(tiny, say=said.append)
    assert f"{len(train.documents)} documents to harvest, {len(held_out.documents)} held out" in said
    assert len(train.documents) + len(held_out.documents) == 60


def test_only_the_models_turns_of_chats(tiny, tmp_path, launch):
    chats = [[("user", f"Who went up, {number}?"), ("model", "He did.")] for number in range(20)]
    lines = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    launch(corpus=str(tmp_path / "c.jsonl"), length=16, only_model_turns=True)
    for part in common.texts(tiny):
        kept = tiny.tokenizer.decode(part.tokens[part.text(tiny.tokenizer.special_ids)])
        assert kept == "He did." * len(set(part.document))
    launch(corpus=corpus(tmp_path / "t.jsonl", 20, 20))
    with pytest.raises(ValueError, match="'d0' has no messages"):
        common.texts(tiny)


def device(platform, kind):
    return types.SimpleNamespace(platform=platform, device_kind=kind)


def test_the_folder_of_compiled_programs_is_that_of_a_compiler_and_a_kind_of_device():
    version = importlib.metadata.version("jaxlib")
    h100 = device("gpu", "NVIDIA H100 80GB HBM3")
    kept = common.compilation_cache_folder(h100, {"XDG_CACHE_HOME": "/cache"})
    assert str(kept) == f"/cache/mishax-lite/compiled/jaxlib-{version}-NVIDIA_H100_80GB_HBM3"
    tpu = common.compilation_cache_folder(device("tpu", "TPU v5 lite"), {})
    assert tpu == Path.home() / f".cache/mishax-lite/compiled/jaxlib-{version}-TPU_v5_lite"
    assert common.compilation_cache_folder(h100, {"XDG_CACHE_HOME": "not/absolute"}).parent == tpu.parent
    assert common.compilation_cache_folder(device("cpu", "cpu"), {"XDG_CACHE_HOME": "/cache"}) is None


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """Launches take this machine for one with a GPU; JAX's setting is what it was afterwards."""
    monkeypatch.setattr(jax, "local_devices", lambda: [device("gpu", "NVIDIA H100")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "mishax-lite" / "compiled"
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_on_a_gpu_unless_the_user_says_otherwise(on_a_gpu, launch, tmp_path):
    launch(compilation_cache=False)
    assert common.keep_compiled_programs() is None and jax.config.jax_compilation_cache_dir is None
    launch(compilation_cache=True)
    kept = common.keep_compiled_programs()
    assert kept.parent == on_a_gpu and kept.is_dir() and jax.config.jax_compilation_cache_dir == str(kept)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "of_the_user"))
    assert common.keep_compiled_programs() == tmp_path / "of_the_user"


def test_a_cache_folder_that_cannot_be_made_stops_no_launch(on_a_gpu, launch, capsys):
    on_a_gpu.parent.write_text("a file in the folder's place")
    launch(compilation_cache=True)
    assert common.keep_compiled_programs() is None and jax.config.jax_compilation_cache_dir is None
    assert "compiled programs are not kept" in capsys.readouterr().err


def test_nothing_is_kept_on_a_cpu(on_a_gpu, launch, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [device("cpu", "cpu")])
    launch(compilation_cache=True)
    assert common.keep_compiled_programs() is None and not on_a_gpu.exists()


def autoencoder(**changes):
    shapes = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    return sae.JumpReLU(**{name: jnp.ones(shape) for name, shape in shapes.items()}, **changes)


def crosscoder():
    shapes = [(2, 4, 8), (8,), (8, 2, 4), (2, 4), (8,)]
    return sae.Crosscoder(*(jnp.ones(shape) for shape in shapes))


def test_autoencoders_are_found_whatever_their_folders_are_called(tmp_path):
    root = tmp_path / "crosscoder_study" / "saes"
    names = ["a/width_2", "a/width_16", "crosscoder_b/x", "run²/width_²", "①/target_l0_1.5", "1.2.3", "[x]*?", "a\nb"]
    for name in names:
        sae.save(autoencoder(), root / name)
    sae.save(autoencoder(W_skip=jnp.eye(4)), root / "crosscoder_skip")
    sae.save(crosscoder(), root / "plain_name")
    found = common.autoencoder_folders(root)
    assert set(found) == {root / name for name in (*names, "crosscoder_skip")} and len(found) == len(names) + 1
    assert found.index(root / "a" / "width_2") < found.index(root / "a" / "width_16")


def test_autoencoders_are_found_through_symbolic_links(tmp_path):
    sae.save(autoencoder(), tmp_path / "run" / "a")
    (tmp_path / "links").mkdir()
    os.symlink(tmp_path / "run" / "a", tmp_path / "links" / "a")
    assert common.autoencoder_folders(tmp_path / "links") == [tmp_path / "links" / "a"]
    # Once, where it has several names; and a link that leads back ends nowhere.
    os.symlink(tmp_path, tmp_path / "links" / "back")
    assert common.autoencoder_folders(tmp_path) == [tmp_path / "run" / "a"]
    os.symlink(tmp_path / "links" / "a", tmp_path / "itself")
    assert common.autoencoder_folders(tmp_path / "itself") == [tmp_path / "itself"]


def test_crosscoders_alone_are_named(tmp_path):
    sae.save(crosscoder(), tmp_path / "cc" / "crosscoder_a")
    with pytest.raises(ValueError, match=r"has only crosscoders, .* cannot be spliced in at one: .*crosscoder_a"):
        common.autoencoder_folders(tmp_path / "cc")
    with pytest.raises(ValueError, match=r"no autoencoder under .*: train some first"):
        common.autoencoder_folders(tmp_path / "none")
