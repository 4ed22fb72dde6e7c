"""The README's Python runs as it is typed, block after block in one namespace, as a reader would run it."""

import re
from pathlib import Path

import numpy as np
import pytest

import gemma
import sae
from sae.autoencoder import Largest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"))
# Blocks that are not run, by a line of theirs, and why.
NOT_RUN = {
    'model = gemma.load("google/gemma-2-2b")': (
        "it loads weights of the hub, of folders of the reader's own, and of 9 billion parameters; "
        "tests/gemma/test_checkpoints*.py load models from all of these"
    ),
}
# Numbers that would take minutes, a bucket and a hub that are not there: (as the README has it, in its place here).
SCOPE = "runs/scope/saes/layer_3/resid_post/width_1536/target_l0_20"
TINY = [
    ("steps=600", "steps=6"),
    ("max_new_tokens=40", "max_new_tokens=4"),
    ('"gs://bucket/store"', '"runs/bucket"'),
    ('"google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"', f'"{SCOPE}"'),  # tests/sae/test_hub.py
]


@pytest.fixture
def reader(tiny, tmp_path, monkeypatch):
    """A folder with a text of the reader's own, and an autoencoder, untrained, where `make scope` puts one."""
    monkeypatch.chdir(tmp_path)
    lines = (ROOT / "gemma" / "tiny" / "text.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "my.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
    site, (W, Z) = "layer_3/resid_post", (192, 1536)
    W_dec = np.random.default_rng(0).normal(size=(Z, W)).astype(np.float32)
    info = sae.Info(tiny.name, site, site, counted=sae.Counted(tiny.tokenizer.special_ids))
    largest = Largest(np.full(Z, 2.0), 9)
    zeros = np.zeros(Z, np.float32)
    scope = sae.JumpReLU(W_dec.T / W, zeros, W_dec, np.zeros(W, np.float32), zeros + 0.1, info=info, largest=largest)
    sae.save(scope, SCOPE)


@pytest.mark.slow  # it compiles a dozen training steps and a model's passes for eight devices: over 20 s
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # six steps are no run
@pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")  # the stand-in's model is not on record
def test_every_block_runs_in_order(reader, capsys):
    pytest.importorskip("tensorboardX", reason="the README reports to TensorBoard")
    pytest.importorskip("flax", reason="the README patches Flax")
    assert all(any(line in block for block in BLOCKS) for line in NOT_RUN)
    names: dict = {}
    run = [block for block in BLOCKS if not any(line in block for line in NOT_RUN)]
    assert len(run) == len(BLOCKS) - len(NOT_RUN) == 8
    code = "\n".join(run)
    for typed, tiny in TINY:
        assert typed in code, f"{typed} is no longer in the README: take its substitute out"
        code = code.replace(typed, tiny)
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["autoencoders"]) == len(names["runs"]) == 4 and isinstance(names["model"], gemma.Model)
    assert (names["without"].logits != names["forward"].logits).any()
    assert [site for site in names["values"] if site.endswith("pattern")] and "GiB" in capsys.readouterr().out
