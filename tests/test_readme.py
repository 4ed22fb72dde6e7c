"""The Python of READMEs runs as it is typed, block after block in one namespace, as a reader would run it."""

import re
from pathlib import Path

import numpy as np
import pytest

import gemma
import sae
from sae.autoencoder import Largest

ROOT = Path(__file__).parent.parent
# Numbers that would take minutes, and a bucket that is missing: README by README (as it stands there, what runs here).
TINY = {
    "README.md": [("steps=600", "steps=6"), ("max_new_tokens=40", "max_new_tokens=4"), ("sae.of_max(3)", "20.0")],
    "gemma/README.md": [("max_new_tokens=40", "max_new_tokens=4")],
    "sae/store/README.md": [('"gs://bucket/store"', '"runs/bucket"')],
    "sae/trainer/README.md": [("steps=600", "steps=6")],
}
# Blocks that do not run, by a line of theirs, and why.
NOT_RUN = {
    'model = gemma.load("google/gemma-2-2b")': (
        "it loads weights of the hub, of folders of the reader's own, and of 9 billion parameters; "
        "tests/gemma/test_checkpoints*.py load models from all of these"
    ),
}
SCOPE = "runs/scope/saes/layer_3/resid_post/width_1536/target_l0_20"
# What stands in the place of an autoencoder of the hub, which tests/sae/test_hub.py loads from.
TINY["README.md"].append(('"google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"', f'"{SCOPE}"'))


def blocks(readme):
    """The blocks of Python of a README."""
    return re.findall(r"(?s)```python\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"))


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


@pytest.mark.slow  # each compiles a model's passes, two of them training steps for eight devices
@pytest.mark.parametrize("readme", TINY)
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # six steps are no run
@pytest.mark.filterwarnings("ignore::sae.evaluation.matching.RecordWarning")  # the stand-in's model is not on record
def test_every_block_runs_in_order(readme, reader):
    pytest.importorskip("tensorboardX", reason="a README reports to TensorBoard")
    code = "\n".join(block for block in blocks(readme) if not any(line in block for line in NOT_RUN))
    for typed, tiny in TINY[readme]:
        assert typed in code, f"{typed} is no longer in {readme}: take its substitute out"
        code = code.replace(typed, tiny)
    names: dict = {}
    exec(compile(code, readme, "exec"), names)
    assert isinstance(names["model"], gemma.Model)
    if readme == "README.md":
        assert len(names["autoencoders"]) == len(names["runs"]) == 2
        assert (names["without"].logits != names["forward"].logits).any()
        assert Path("runs/mine/params.npz").exists() and Path("runs/pages/index.html").exists()


def test_readmes_are_run_or_told_why_not():
    code = [block for readme in TINY for block in blocks(readme)]
    assert all(any(line in block for block in code) for line in NOT_RUN)
    # Each by a test in its own folder.
    elsewhere = {"mishax_lite/README.md", "sae/README.md", "sae/FROM_TRANSFORMERLENS_AND_SAELENS.md"}
    folders = ("", "mishax_lite", "gemma", "sae", "experiments", "tests")
    everyone = {
        p.relative_to(ROOT).as_posix() for name in folders for p in (ROOT / name).glob("**/*.md" if name else "*.md")
    }
    assert {readme for readme in everyone if blocks(readme)} == set(TINY) | elsewhere


def test_the_first_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_links_between_readmes_lead_somewhere():
    for readme in [*TINY, "mishax_lite/README.md", "sae/README.md", "experiments/README.md", "CONTRIBUTING.md"]:
        text = (ROOT / readme).read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
            path = (ROOT / readme).parent / target if target else ROOT / readme
            assert path.exists(), f"{readme} leads to {target}, which is missing"
            if anchor:
                headings = re.findall(r"(?m)^#+ (.*)$", path.read_text(encoding="utf-8"))
                anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{readme} leads to {target}#{anchor}, which is missing"
