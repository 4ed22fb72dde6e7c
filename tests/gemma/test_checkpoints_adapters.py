"""LoRA adapters of PEFT: merged into their base as independent numpy merges them, or refused by name.

Files that PEFT itself made are in `make test-peers-transformers`.
"""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemma
from tests.gemma import adapters, ggufs, small
from tests.gemma.refusing import refused

ALL_Q = {f"layers.{i}.self_attn.q_proj": 4 for i in range(3)}


@pytest.fixture
def base(tmp_path):
    gemma.save(small.model(), tmp_path / "base", "huggingface")
    return tmp_path / "base"


def merged(base, folder, pairs, scales):
    """A folder with the weights that numpy makes, in float64."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    for module, (a, b) in pairs.items():
        delta = scales[module] * (b.astype(np.float64) @ a.astype(np.float64))
        name = f"model.{module}.weight"
        weights[name] = (weights[name].astype(np.float64) + delta).astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    return folder


def same(source, other):
    one, two = gemma.load(source), gemma.load(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one.params, two.params)
    return one


@pytest.mark.slow
def test_an_adapter_beside_its_base_is_merged(base, tmp_path):
    pairs = adapters.write(tmp_path / "a", base, ALL_Q)
    want = merged(base, tmp_path / "want", pairs, dict.fromkeys(pairs, 2.0))
    shutil.copytree(tmp_path / "a", base, dirs_exist_ok=True)
    logits = same(base, want).apply(small.tokens())
    np.testing.assert_allclose(logits, gemma.load(want).apply(small.tokens()), atol=1e-4)
    assert np.abs(np.asarray(logits) - small.model().apply(small.tokens())).max() > 0.01


@pytest.mark.parametrize(
    ("modules", "words", "scale"),
    [
        (("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"), {}, lambda module: 2.0),
        (("self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), {"use_rslora": True}, lambda module: 4.0),
        (("self_attn.q_proj",), {"lora_alpha": 1}, lambda module: 0.25),
        (
            ("self_attn.q_proj",),
            {"alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
            lambda m: 0.75 if ".1." in m else 2.0,
        ),
        (
            ("self_attn.q_proj",),
            {"alpha_pattern": {".*1.*q_proj": 2, "q_proj": 12}},
            lambda m: 0.5 if ".1." in m else 3.0,
        ),
    ],
)
def test_scales(base, modules, words, scale, tmp_path):
    ranks = {f"layers.{i}.{module}": 4 for i in range(3) for module in modules}
    targets = [module.split(".")[-1] for module in modules]
    pairs = adapters.write(
        tmp_path / "a", base, ranks, base_model_name_or_path=str(base), target_modules=targets, **words
    )
    same(tmp_path / "a", merged(base, tmp_path / "want", pairs, {module: scale(module) for module in pairs}))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((0, 1, 2), {"target_modules": r".*\.self_attn\.q_proj"}),
        ((0, 2), {"target_modules": r"model\.layers\.(0|2)\.self_attn\.q_proj"}),
        ((1,), {"layers_to_transform": [1]}),
        ((2,), {"layers_to_transform": 2, "layers_pattern": "layers"}),
        ((0, 2), {"exclude_modules": ["layers.1.self_attn.q_proj"]}),
        (
            (0, 1, 2),
            {"target_modules": ["model.layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "2.self_attn.q_proj"]},
        ),
    ],
)
def test_which_modules(base, layers, words, tmp_path, recwarn):
    """Each way of naming them; another layer than those is refused, and a missing one is told."""
    names = [f"layers.{i}.self_attn.q_proj" for i in layers]
    pairs = adapters.write(tmp_path / "a", base, dict.fromkeys(names, 4), base_model_name_or_path=str(base), **words)
    same(tmp_path / "a", merged(base, tmp_path / "want", pairs, dict.fromkeys(pairs, 2.0)))
    assert not recwarn.list
    if len(layers) < 3:
        adapters.write(tmp_path / "a", base, ALL_Q, base_model_name_or_path=str(base), **words)
        refused(tmp_path / "a", "has a LoRA of model.layers.", "which target_modules", "does not name")
    else:
        adapters.write(tmp_path / "a", base, {names[0]: 4}, base_model_name_or_path=str(base), **words)
        with pytest.warns(UserWarning, match=r"layers\.1\.self_attn\.q_proj.* nothing is added there"):
            gemma.load(tmp_path / "a")


def test_ranks_of_modules_and_a_scale_from_each(base, tmp_path):
    ranks = ALL_Q | {"layers.1.self_attn.q_proj": 2}
    words = {"rank_pattern": {"1.self_attn.q_proj": 2}, "use_rslora": True, "base_model_name_or_path": str(base)}
    pairs = adapters.write(tmp_path / "a", base, ranks, **words)
    scales = {module: 8 / rank**0.5 for module, rank in ranks.items()}
    same(tmp_path / "a", merged(base, tmp_path / "want", pairs, scales))


@pytest.mark.parametrize("start", ["model.", "model.language_model.", "language_model.model."])
def test_names_of_every_kind_of_model_and_narrow_numbers(base, start, tmp_path):
    """An adapter of a model that sees images; what is for images is of no concern."""
    images = {adapters.PREFIX + "model.vision_tower.layers.0.q_proj.lora_A.weight": np.ones((4, 3), np.float32)}
    words = {"start": start, "dtype": ml_dtypes.bfloat16, "extra": images.items(), "base_model_name_or_path": str(base)}
    pairs = adapters.write(tmp_path / "a", base, ALL_Q, **words)
    same(tmp_path / "a", merged(base, tmp_path / "want", pairs, dict.fromkeys(pairs, 2.0)))


def test_a_base_in_shards_and_one_of_gguf(base, tmp_path):
    model = gemma.load(base)
    pairs = adapters.write(tmp_path / "a", base, ALL_Q)
    want = gemma.load(merged(base, tmp_path / "want", pairs, dict.fromkeys(pairs, 2.0)))
    gemma.save(model, tmp_path / "shards", "huggingface", shard_bytes=20_000)
    (tmp_path / "gguf").mkdir()
    ggufs.write(tmp_path / "gguf" / "m.gguf", model, words=[])
    for folder in (tmp_path / "shards", tmp_path / "gguf"):
        shutil.copytree(tmp_path / "a", folder, dirs_exist_ok=True)
        loaded = gemma.load(folder)
        for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(want.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_added_tokens_bring_their_rows(base, tmp_path):
    """PEFT saves both embeddings whole where the vocabulary was resized."""
    table = np.random.default_rng(0).standard_normal((101, 32)).astype(np.float32)
    names = [adapters.PREFIX + name for name in ("model.embed_tokens.weight", "lm_head.weight")]
    words = {"base_model_name_or_path": str(base)}
    adapters.write(tmp_path / "a", base, ALL_Q, extra=dict.fromkeys(names, table).items(), **words)
    model = gemma.load(tmp_path / "a")
    assert model.config.vocab_size == 101
    np.testing.assert_array_equal(model.params["embedder"]["input_embedding"], table)
    adapters.write(tmp_path / "a", base, ALL_Q, extra=[(names[0], table), (names[1], table + 1)], **words)
    refused(tmp_path / "a", "lm_head.weight: it differs from the embedding")


def test_norms_that_were_trained_whole(base, tmp_path):
    scale = np.arange(32, dtype=np.float32)
    extra = {adapters.PREFIX + "model.norm.weight": scale}
    words = {"modules_to_save": ["norm"], "base_model_name_or_path": str(base)}
    adapters.write(tmp_path / "a", base, ALL_Q, extra=extra.items(), **words)
    np.testing.assert_array_equal(gemma.load(tmp_path / "a").params["final_norm"]["scale"], scale)


def test_the_base_is_found_by_a_relative_path_and_the_adapters_tokenizer_goes_first(base, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small.edit(base, vocab_size=96)
    adapters.write(tmp_path / "a", base, ALL_Q, base_model_name_or_path="base")
    assert gemma.load("a").tokenizer is None
    (tmp_path / "a" / "tokenizer.model").write_bytes(tiny.tokenizer.model_proto)
    refused(tmp_path / "a", "a/tokenizer.model has 4096 pieces")


def test_an_adapter_without_its_base(base, tmp_path):
    adapters.write(tmp_path / "a", base, ALL_Q, base_model_name_or_path=str(tmp_path / "gone"))
    advice = "put the base's config.json and weights into"
    refused(tmp_path / "a", "is a LoRA adapter of '", "which cannot be loaded", advice)
    small.edit(tmp_path / "a", "adapter_config.json", base_model_name_or_path=None)
    refused(tmp_path / "a", "is a LoRA adapter without its base", "names none", advice)
    small.edit(tmp_path / "a", "adapter_config.json", base_model_name_or_path="gemma2-tiny")
    refused(tmp_path / "a", "is a LoRA adapter of 'gemma2-tiny', which cannot be loaded")  # a preset is no path
    shutil.copytree(tmp_path / "a", base, dirs_exist_ok=True)
    assert gemma.load(base).config.num_layers == 3


def test_other_bases(base, tmp_path):
    adapters.write(tmp_path / "a", base, ALL_Q, base_model_name_or_path=str(tmp_path / "orbax"))
    gemma.save(small.model(), tmp_path / "orbax")
    refused(tmp_path / "a", "is of Orbax: adapters can be merged only into safetensors and GGUF")
    adapters.write(tmp_path / "b", base, ALL_Q, base_model_name_or_path=str(base))
    small.edit(tmp_path / "a", "adapter_config.json", base_model_name_or_path=str(tmp_path / "b"))
    refused(tmp_path / "a", "which is an adapter too: merge that one first")


@pytest.mark.parametrize(
    "words",
    [
        {"use_dora": True},
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [3]},
        {"layer_replication": [[0, 2], [1, 3]]},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"target_parameters": ["mlp.w"]},
        {"a_word_of_the_future": 1},
        {"r": 0},
        {"lora_alpha": None},
        {"modules_to_save": ["embed_tokens"]},
    ],
)
def test_what_is_not_supported_is_refused_by_name(base, words, tmp_path):
    adapters.write(tmp_path / "a", base, ALL_Q, **({"base_model_name_or_path": str(base)} | words))
    refused(tmp_path / "a", *words)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", (32,)),
        ("model.layers.0.self_attn.q_proj.bias", (32,)),
        ("model.embed_tokens.lora_embedding_A", (4, 96)),
        ("model.layers.7.mlp.up_proj.weight", (48, 32)),
        ("model.norm.weight", (33,)),
        ("lm_head.weight", (96, 32)),
    ],
)
def test_tensors_that_are_not_supported_are_named(base, name, shape, tmp_path):
    extra = {adapters.PREFIX + name: np.ones(shape, np.float32)}
    adapters.write(tmp_path / "a", base, ALL_Q, extra=extra.items(), base_model_name_or_path=str(base))
    refused(tmp_path / "a", "cannot be applied to its base", name)


@pytest.mark.parametrize("module", ["model.embed_tokens", "lm_head"])
def test_a_lora_of_one_of_the_two_embeddings_is_refused(base, module, tmp_path):
    halves = {f"{adapters.PREFIX}{module}.lora_{half}.weight": np.ones((4, 4), np.float32) for half in "AB"}
    adapters.write(tmp_path / "a", base, ALL_Q, extra=halves.items(), base_model_name_or_path=str(base))
    refused(tmp_path / "a", "has a LoRA of its own", "one embedding for input and output")


def test_pairs_that_do_not_fit(base, tmp_path):
    words = {"base_model_name_or_path": str(base)}
    adapters.write(tmp_path / "a", base, ALL_Q, r=8, **words)
    refused(tmp_path / "a", "of rank 8 do not fit the weight")
    adapters.write(tmp_path / "a", base, ALL_Q, **words)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    del tensors[adapters.PREFIX + "model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    refused(tmp_path / "a", "layers.1.self_attn.q_proj: it has lora_A without the other half")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    refused(tmp_path / "a", "but no weights: expected adapter_model.safetensors")
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"cos")
    refused(tmp_path / "a", "a pickle, which can run code and is not read")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps([1]))
    refused(tmp_path / "a", "is not the configuration of an adapter")
