"""`--dtype` of the launches: which model is loaded, and what files and pages say of it."""

import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import common, harvest, train
from sae.evaluation import kept
from sae.language_model import titled
from tests.experiments import test_launches
from tests.sae import examples

pytestmark = pytest.mark.usefixtures("quick_starts")
SMALL = (
    *("--max_sequences=32", "--eval_sequences=8", "--length=32", "--sites=layer_1/resid_post", "--l0_targets=10"),
    *("--steps=12", "--batch_size=128", "--width=64"),
)


@pytest.fixture
def set_flags():
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver():
        yield lambda **values: [setattr(flags.FLAGS, name, value) for name, value in values.items()]


def test_the_dtype_is_the_flags_or_that_of_what_is_used(set_flags):
    for recorded, dtype in (([], "float32"), (["bfloat16"] * 2, "bfloat16"), (["bfloat16", "float32"], "float32")):
        assert common.load_model(recorded).dtype == dtype
    set_flags(dtype="float16")
    model = common.load_model(["bfloat16"])
    assert model.dtype == model.params["final_norm"]["scale"].dtype == jnp.float16
    assert titled(model) == "gemma2-tiny in float16"


def test_rows_are_stored_without_loss_by_default(tiny, set_flags):
    for dtype, stored in (("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")):
        assert harvest._arguments(dataclasses.replace(tiny, dtype=jnp.dtype(dtype)))["dtype"] == stored
    set_flags(store_dtype="int8")
    assert harvest._arguments(tiny)["dtype"] == "int8"


def test_training_refuses_the_dtype_of_another_store(tmp_path, set_flags):
    x = np.ones((20, 4), np.float32)
    store = examples.make_store(tmp_path / "s", {"x": x}, activation_dtype="bfloat16")
    train.check_dtype(store)
    set_flags(dtype="bfloat16")
    train.check_dtype(store)
    set_flags(dtype="float32")
    with pytest.raises(ValueError, match=r"has activations of a model in bfloat16, got --dtype=float32"):
        train.check_dtype(store)


def test_an_older_autoencoder_is_of_float32(tmp_path):
    assert common.activation_dtype(tmp_path) == "float32"
    (tmp_path / "info.json").write_text(json.dumps({"model": "m", "training": json.dumps({"store": {}})}))
    assert common.activation_dtype(tmp_path) == "float32"


def test_figures_of_one_dtype_are_not_those_of_another(tiny):
    sequences = examples.sequences(tiny)
    text = type("Text", (), {"fingerprint": lambda self: str(sequences.shape)})()
    other = dataclasses.replace(tiny, dtype=jnp.dtype("bfloat16"))  # the same parameters
    assert kept.subject(tiny, text) != kept.subject(other, text)


@pytest.mark.slow
def test_the_whole_way_in_bfloat16(tmp_path):
    out = tmp_path / "out"
    process = test_launches.launch(f"--out_dir={out}", "--dtype=bfloat16", *SMALL)
    assert process.returncode == 0, process.stderr
    assert "tokens at layer_1/resid_post of a model in bfloat16" in process.stdout
    assert re.search(r"(?m)^gemma2-tiny in bfloat16, on [\d,]+ tokens of held-out text", process.stdout)
    manifest = json.loads((out / "store" / "manifest.json").read_text())
    assert (manifest["activation_dtype"], manifest["dtype"]) == ("bfloat16", "bfloat16")
    (folder,) = (path.parent for path in (out / "saes").rglob("params.npz"))
    assert common.activation_dtype(folder) == "bfloat16"
    assert json.loads((folder / "metrics.json").read_text())["dtype"] == "bfloat16"
    assert "Features of gemma2-tiny in bfloat16" in (out / "pages" / "index.html").read_text(encoding="utf-8")
    written = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("metrics.json")}
    # Without the flag, evaluation takes the model as training had it, so that the figures are there already.
    process = test_launches.launch(f"--saes_dir={out / 'saes'}", *SMALL[1:3], module="experiments.evaluate")
    assert process.returncode == 0 and "gemma2-tiny in bfloat16" in process.stdout, process.stderr
    assert written == {path: path.stat().st_mtime_ns for path in written}
    process = test_launches.launch(f"--out_dir={out}", *SMALL)
    assert process.returncode == 1 and "activation_dtype: the store has bfloat16, asked for float32" in process.stderr
