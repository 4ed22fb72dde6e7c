"""Every released form in every format that is written comes back as it was, or is refused with those that hold it."""

import dataclasses
import json

import numpy as np
import pytest

import sae
from sae.autoencoder import Largest
from sae.formats import files
from sae.formats.format import formats
from sae.released import forms
from tests.sae import outlines, torch_pickles

A, Z, L, OUT = 4, 6, 3, 5
RNG = np.random.default_rng(23)
SITES = ("layer_1/resid_post",) * 2
MLP = "layer_1/mlp_in", "layer_1/mlp_out"
LAYERS = tuple(tuple(f"layer_{i}/{kind}" for i in range(L)) for kind in ("mlp_in", "mlp_out"))
COUNTED = sae.Counted((0, 2))


def of(form, sites, *optional, out=None, **numbers):
    sizes = {"A": A, "A'": out or A, "Z": Z, "Zl": Z, "L": L}
    names = [name for name in form.axes if name not in form.optional() or name in optional]
    arrays = {name: RNG.normal(size=[sizes[axis] for axis in form.axes[name]]).astype(np.float32) for name in names}
    if "threshold" in arrays:
        arrays["threshold"] = np.abs(arrays["threshold"])
    if form is sae.CrossLayerTranscoder:
        for layer in range(L):
            arrays["W_dec"][layer, :, :layer] = 0
    one = form(**arrays, **numbers, info=sae.Info("gemma3-1b", *sites, counted=COUNTED))
    return dataclasses.replace(one, largest=Largest(np.arange(one.width), 7))


EXAMPLES = {
    "JumpReLU": lambda: of(sae.JumpReLU, SITES),
    "JumpReLU transcoder": lambda: of(sae.JumpReLU, MLP, out=OUT),
    "JumpReLU skip": lambda: of(sae.JumpReLU, MLP, "W_skip"),
    "ReLU": lambda: of(sae.ReLU, SITES),
    "ReLU skip": lambda: of(sae.ReLU, MLP, "W_skip", out=OUT),
    "TopK": lambda: of(sae.TopK, SITES, k=2),
    "TopK skip": lambda: of(sae.TopK, MLP, "W_skip", k=2),
    "TopK transcoder": lambda: of(sae.TopK, MLP, k=2, out=OUT),
    "NormedTopK": lambda: of(sae.NormedTopK, SITES, k=2),
    "Gated": lambda: of(sae.Gated, SITES),
    "Crosscoder": lambda: of(sae.Crosscoder, (LAYERS[1],) * 2),
    "CrossLayerTranscoder": lambda: of(sae.CrossLayerTranscoder, LAYERS),
    "CrossLayerTranscoder skip": lambda: of(sae.CrossLayerTranscoder, LAYERS, "W_skip", out=OUT),
    "TranscoderSet": lambda: of(sae.TranscoderSet, LAYERS, out=OUT),
    "TranscoderSet skip": lambda: of(sae.TranscoderSet, LAYERS, "W_skip"),
}
# How many of the formats hold each, without the house's own, which holds all.
HOLD = {
    "JumpReLU": {"gemma_scope", "gemma_scope_2", "saelens"},
    "JumpReLU transcoder": {"gemma_scope", "gemma_scope_2", "saelens"},
    "JumpReLU skip": {"gemma_scope_2", "saelens"},
    "ReLU": {"saelens"},
    "ReLU skip": {"saelens"},
    "TopK": {"saelens", "sparsify"},
    "TopK skip": {"sparsify"},
    "TopK transcoder": set(),
    "NormedTopK": {"saelens"},
    "Gated": {"saelens"},
    "Crosscoder": set(),
    "CrossLayerTranscoder": {"gemma_scope_2_layers", "circuit_tracer"},
    "CrossLayerTranscoder skip": {"gemma_scope_2_layers"},
    "TranscoderSet": {"circuit_tracer_set"},
    "TranscoderSet skip": {"circuit_tracer_set"},
}


def written():
    files.main_files()  # the registry is full then
    return {name: kind for name, kind in formats.items() if kind.written and kind.__module__.startswith("sae.")}


def test_every_form_of_ours_is_among_the_examples():
    ours = {form for form in forms.values() if form.__module__.startswith("sae.")}
    assert {type(make()) for make in EXAMPLES.values()} == ours
    assert set().union(*HOLD.values()) | {"mishax_lite"} == set(written())


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_form_comes_back_from_each_format_or_is_refused_with_those_that_hold_it(tmp_path, example):
    one, hold = EXAMPLES[example](), HOLD[example] | {"mishax_lite"}
    for name, kind in written().items():
        folder = tmp_path / name
        if name not in hold:
            with pytest.raises(
                ValueError, match=r"has no place for .*Formats that can hold this autoencoder: "
            ) as refused:
                sae.save(one, folder, format=name)
            assert set(str(refused.value).split("Formats that can hold this autoencoder: ")[1].split(", ")) == hold
            assert not folder.exists()
            continue
        sae.save(one, folder, format=name)
        assert isinstance(files.find(folder)[0], kind)  # recognised
        loaded = sae.load(folder)
        assert type(loaded) is type(one) and (loaded.info, loaded.largest) == (one.info, one.largest)
        assert loaded.arrays().keys() == one.arrays().keys()
        for array in one.arrays():
            compare = np.testing.assert_array_equal
            if (name, array) == ("sparsify", "b_enc"):  # b_dec is folded in, and out again
                compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
            compare(getattr(loaded, array), getattr(one, array))
        assert all(getattr(loaded, number) == getattr(one, number) for number in one.numbers)
        outlines.check(folder)


def test_each_takes_the_place_of_every_other_and_leaves_nothing_of_it(tmp_path):
    order = ["CrossLayerTranscoder", "TranscoderSet", "JumpReLU", "TopK", "ReLU", "TranscoderSet", "TopK skip", "Gated"]
    for example in order:
        one = EXAMPLES[example]()
        for name in sorted(HOLD[example] | {"mishax_lite"}):
            sae.save(one, tmp_path, format=name)
            alone = tmp_path.with_name("alone") / f"{example}-{name}"
            sae.save(one, alone, format=name)
            assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in alone.iterdir())
            assert type(sae.load(tmp_path)) is type(one)


@pytest.mark.parametrize("name", ["gemma_scope_2_layers", "circuit_tracer", "circuit_tracer_set"])
def test_fewer_layers_take_the_place_of_more(tmp_path, name):
    example = EXAMPLES["TranscoderSet" if name == "circuit_tracer_set" else "CrossLayerTranscoder"]()
    sae.save(example, tmp_path, format=name)
    arrays = {key: np.asarray(value)[:2] for key, value in example.arrays().items()}
    if name != "circuit_tracer_set":
        arrays["W_dec"] = arrays["W_dec"][:, :, :2]
    fewer = type(example)(**arrays)
    sae.save(fewer, tmp_path, format=name)
    assert sae.load(tmp_path).site_count == 2 and not list(tmp_path.glob("*2.safetensors"))


def test_a_folder_of_a_format_that_is_only_read_is_not_written_to(tmp_path):
    linear = {"encoder.weight": (Z, A), "decoder.weight": (A, Z), "bias": (A,), "encoder.bias": (Z,)}
    tensors = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in linear.items()}
    torch_pickles.save(tmp_path / "ae.pt", tensors)
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    for name in ("gemma_scope_2", "mishax_lite"):  # the first has a config.json too
        with pytest.raises(
            ValueError, match=r"has an autoencoder in dictionary_learning's format, ae.pt, .*does not remove"
        ):
            sae.save(EXAMPLES["JumpReLU"](), tmp_path, format=name)
    assert isinstance(sae.load(tmp_path), sae.ReLU)
    outlines.check(tmp_path)


@pytest.mark.parametrize("name", ["saelens", "gemma_scope_2", "circuit_tracer_set", "gemma_scope_2_layers"])
def test_instruction_tuned_models_keep_their_names(tmp_path, name):
    example = next(key for key in EXAMPLES if name in HOLD[key])
    for model, training in (
        ("google/gemma-3-1b-it", '{"gemma_scope_2": {"config": {"model_name": "google/gemma-3-1b-it"}}}'),
        ("google/gemma-3-1b-it", '{"gemma_scope_2": {"repository": "gemma-scope-2-1b-it", "config": {}}}'),
        ("google/gemma-3-1b-pt", "{}"),
    ):
        one = EXAMPLES[example]()
        one = dataclasses.replace(one, info=dataclasses.replace(one.info, training=training))
        sae.save(one, tmp_path, format=name)
        texts = [path.read_text() for path in tmp_path.iterdir() if path.name.startswith(("cfg", "config"))]
        assert len(texts) == 1 and f'"{model}"' in texts[0]
        (tmp_path / "info.json").unlink()
        sae.save(sae.load(tmp_path), tmp_path, format=name)  # by what the config said
        assert any(f'"{model}"' in path.read_text() for path in tmp_path.glob("c*f*g.*"))


def test_layers_that_do_not_count_from_0_are_not_circuit_tracers(tmp_path):
    sites = [tuple(f"layer_{i}/{kind}" for i in (5, 9, 12)) for kind in ("mlp_in", "mlp_out")]
    one = EXAMPLES["CrossLayerTranscoder"]()
    other = dataclasses.replace(one, info=sae.Info("gemma3-1b", *sites))
    with pytest.raises(ValueError, match=r"which layers: its files are of the layers 0 to 2, not of layer_5/mlp_in"):
        sae.save(other, tmp_path, format="circuit_tracer")
    sae.save(other, tmp_path, format="gemma_scope_2_layers")
    (tmp_path / "info.json").unlink()
    assert (sae.load(tmp_path).info.site, sae.load(tmp_path).info.site_out) == tuple(sites)


@pytest.mark.parametrize(("excluded", "counted"), [([2, 0], (2, 0)), (True, None), (False, None), ([-1], None)])
def test_the_ids_that_saelens_left_out_do_not_count(tmp_path, excluded, counted):
    sae.save(EXAMPLES["ReLU"](), tmp_path, format="saelens")
    (tmp_path / "info.json").unlink()
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["metadata"]["exclude_special_tokens"] == [0, 2]  # as ours has it
    config["metadata"]["exclude_special_tokens"] = excluded
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    info = sae.load(tmp_path).info
    assert info.counted == (None if counted is None else sae.Counted(counted))
