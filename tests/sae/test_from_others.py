"""The page for those who come from TransformerLens and SAELens: its code runs, its names exist, its numbers hold."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import gemma
import mishax_lite
import sae
from gemma.site_kinds import KINDS

PAGE = Path(sae.__file__).parent / "FROM_TRANSFORMERLENS_AND_SAELENS.md"
PACKAGES = {"gemma": gemma, "mishax_lite": mishax_lite, "sae": sae}
Z, A = 64, 192


def tables() -> list[list[dict[str, str]]]:
    """The page's tables: of each its rows, by the names of the columns."""
    blocks = re.findall(r"(?m)(?:^\|.*\|\n)+", PAGE.read_text(encoding="utf-8"))
    split = [[[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()] for block in blocks]
    return [[dict(zip(head, row, strict=True)) for row in rows] for head, _, *rows in split]


def code() -> list[str]:
    """Our side, in the page's order: the fenced block, and each cell of a column `here`."""
    (setup,) = re.findall(r"(?s)```python\n(.*?)```", PAGE.read_text(encoding="utf-8"))
    cells = [row["here"] for table in tables() for row in table if "here" in row]
    assert all(re.fullmatch(r"`[^`]+`", cell) for cell in cells)
    return [setup, *(cell.strip("`") for cell in cells)]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with a text, and an autoencoder as SAELens saves it, with b_dec subtracted from what goes in."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": f"The ships of harbour {i} came home in the evening. " * 4}) for i in range(30)]
    (tmp_path / "my.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rng = np.random.default_rng(0)
    W_dec = rng.normal(size=(Z, A)).astype(np.float32) / 14
    arrays = {"W_enc": W_dec.T.copy(), "W_dec": W_dec, "b_enc": np.zeros(Z, np.float32)}
    arrays |= {"b_dec": rng.normal(size=A).astype(np.float32), "threshold": np.full(Z, 0.1, np.float32)}
    metadata = {"model_name": "gemma2-tiny", "hook_name": "blocks.3.hook_resid_post", "prepend_bos": True}
    config = {"architecture": "jumprelu", "d_in": A, "d_sae": Z, "dtype": "float32", "normalize_activations": "none"}
    (tmp_path / "runs/theirs").mkdir(parents=True)
    safetensors.numpy.save_file(arrays, tmp_path / "runs/theirs/sae_weights.safetensors")
    config |= {"apply_b_dec_to_input": True, "metadata": metadata}
    (tmp_path / "runs/theirs/cfg.json").write_text(json.dumps(config), encoding="utf-8")
    return arrays


def test_every_site_exists_with_the_shape_that_the_page_says(tiny):
    (rows,) = [table for table in tables() if "site" in table[0]]
    values = tiny.run("And the sea was not", capture="*").values
    c, T = tiny.config, values["embed"].shape[1]
    sizes = {"B": 1, "T": T, "S": T, "1": 1, "D": c.d_model, "N": c.num_heads, "K": c.num_kv_heads}
    sizes |= {"H": c.head_dim, "F": c.d_ff, "V": c.vocab_size}
    names = [row["site"].strip("`") for row in rows]
    for name, row in zip(names, rows, strict=True):
        for layer in range(c.num_layers):
            shape = values[name.format(l=layer)].shape
            assert shape == tuple(sizes[letter] for letter in row["shape"].split()), name
    assert {name.removeprefix("layer_{l}/") for name in names} == {kind.name for kind in KINDS}


def test_every_public_name_exists():
    names = set()
    for node in ast.walk(ast.parse("\n".join(code()))):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"(gemma|mishax_lite|sae)(\.\w+)+", ast.unparse(node)):
            names.add(ast.unparse(node))
    assert len(names) > 30
    for name in names:
        package, first, *rest = name.split(".")
        value = getattr(PACKAGES[package], first)
        assert first in PACKAGES[package].__all__ or hasattr(value, "__path__"), name
        for attribute in rest:
            value = getattr(value, attribute)


def test_hooks_have_the_names_that_files_of_saelens_have():
    from sae.formats import names

    (rows,) = [table for table in tables() if "site" in table[0]]
    pairs = {row["site"].strip("`"): row["TransformerLens"].strip("`") for row in reversed(rows)}
    for kind in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn_z"):
        assert names.transformer_lens_hook(f"layer_7/{kind}") in pairs[f"layer_{{l}}/{kind}"].format(l=7)


@pytest.mark.slow  # every line of the page, four trainings of a few steps among them: about a minute
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning", "ignore::sae.evaluation.matching.RecordWarning")
def test_every_line_runs_and_gives_the_numbers_that_the_page_says(reader):
    names: dict = {}
    for line in code():
        exec(compile(line, PAGE.name, "exec"), names)
    values_are_theirs(names)
    lenses_are_theirs(names)
    autoencoders_act_where_the_page_says(names, reader)
    assert names["grid"].shape == (6, 4 + 1) and len(names["several"]) == 2
    assert sae.load("runs/mine").info.site == names["trained"].info.site == "layer_3/resid_post"


def values_are_theirs(names):
    values, layer = names["values"], names["model"].params["layer_3"]
    close = lambda got, expected: np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)  # noqa: E731
    x = np.asarray(values["layer_3/resid_pre"])
    close(names["scale"], np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6))
    close(names["normalized"], x / names["scale"])
    close(values["layer_3/attn_in"], names["normalized"] * (1 + layer["pre_attention_norm"]["scale"]))
    q = np.einsum("BTD,NDH->BTNH", values["layer_3/attn_in"], layer["attn"]["q_einsum"]["w"])
    close(np.linalg.norm(names["rotated"], axis=-1), np.linalg.norm(q, axis=-1))  # RoPE turns them
    weights = np.exp(names["scores"]) * np.tri(x.shape[1])
    close(values["layer_3/attn_pattern"], weights / weights.sum(axis=-1, keepdims=True))
    gain = 1 + layer["post_attention_norm"]["scale"]
    close(values["layer_3/attn_out"], names["heads"].sum(axis=2) * values["layer_3/post_attn_scale"] * gain)
    close(values["final_norm"], names["last"] * (1 + names["model"].params["final_norm"]["scale"]))
    close(values["embed"], np.sqrt(A) * np.asarray(names["table"])[names["tokens"]])


def lenses_are_theirs(names):
    x, values, table = np.asarray(names["values"][names["site"]]), names["values"], np.asarray(names["table"])
    weights = (1 + np.asarray(names["model"].params["final_norm"]["scale"]))[:, None] * table.T
    np.testing.assert_allclose(names["frozen"], x * values["final_scale"] @ weights, rtol=1e-3, atol=1e-3)
    direct = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6) @ weights
    np.testing.assert_allclose(names["early"], 30 * np.tanh(direct / 30), rtol=1e-3, atol=1e-3)
    assert np.abs(names["early"] - names["frozen"]).max() > 0.1
    np.testing.assert_array_equal(names["again"], names["logits"])
    np.testing.assert_allclose(names["edited"](names["tokens"]), names["without"], atol=1e-3)


def autoencoders_act_where_the_page_says(names, arrays):
    x, plain = np.asarray(names["values"][names["site"]]), np.asarray(names["logits"])
    pre = (x - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"]
    latents = np.where(pre > 0.1, pre, 0)
    np.testing.assert_allclose(names["latents"], latents, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(names["decoded"], latents @ arrays["W_dec"] + arrays["b_dec"], rtol=1e-3, atol=1e-3)
    assert np.abs(names["autoencoder"].b_enc - arrays["b_enc"]).max() > 0.1
    np.testing.assert_array_equal(names["exact"], plain)
    for kept in ("spliced", "steered", "ablated"):
        np.testing.assert_allclose(names[kept][:, 0], plain[:, 0], atol=1e-4)
    for changed in ("lossy", "everywhere"):
        assert np.abs(names[changed][:, 0] - plain[:, 0]).max() > 1e-2, changed
    for changed in ("spliced", "steered", "patched", "without"):
        assert np.abs(names[changed][:, -1] - plain[:, -1]).max() > 1e-2, changed
