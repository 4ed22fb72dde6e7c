"""The benchmark of architectures, and that the tables in the README of `sae/` are its figures."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import sae
from experiments.benchmarks import architectures
from sae.evaluation import kept
from tests.sae.examples import SITE

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "experiments" / "results").glob("architectures-*.json"))


def base(**changes):
    return sae.short_run(SITE, 64, 12, batch_size=64, l0_target=4.0, **changes)


def test_runs_of_all_architectures_differ_in_no_learning_rate_and_aim_at_the_same_l0s():
    runs = architectures.runs_of(list(architectures.ARCHITECTURES), base(), [4.0, 8.0], 192)
    assert set(runs) == set(architectures.TITLES)
    for several in runs.values():
        assert [run.l0_target for run in several] == [4.0, 8.0]
        for run in several:
            assert (run.optimizer, run.inputs, run.initialisation) == (
                *(base().optimizer, base().inputs),
                base().initialisation,
            )
    kinds = {name: several[0].autoencoder.kind for name, several in runs.items()}
    assert len(set(kinds.values())) == 5 and kinds["tanh"] == "jumprelu" and kinds["matryoshka"] == "batchtopk"
    tanh = runs["tanh"][0]
    assert tanh.autoencoder == base().autoencoder
    # Anthropic's 4, where activations have a mean squared norm of A, and here of 1.
    np.testing.assert_allclose(tanh.sparsity[0].scale, 4 * 192**0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")
def test_two_architectures_are_trained_once_measured_and_put_in_a_table(tiny, one_device, tmp_path, monkeypatch):
    tokens = tiny.run("In the beginning God created the heaven and the earth. And the earth was without form").tokens
    text = sae.text.as_sequences(np.tile(np.asarray(tokens), (12, 1)), tiny)
    store = sae.harvest(tiny, text, [SITE], tmp_path / "store", progress=False)
    runs = architectures.runs_of(["jumprelu", "batchtopk"], base(), [4.0], 192)
    monkeypatch.setattr(architectures.common, "progress", False)
    folders = architectures.train(runs, store, tmp_path, one_device)
    assert [folder.name for folder in folders] == ["jumprelu_l0_4_seed_0", "batchtopk_l0_4_seed_0"]
    before = [folder.stat().st_mtime_ns for folder in folders]
    monkeypatch.setattr(sae, "train", lambda *_, **__: pytest.fail("trained again"))
    assert architectures.train(runs, store, tmp_path, one_device) == folders
    assert [folder.stat().st_mtime_ns for folder in folders] == before
    other = architectures.runs_of(["jumprelu"], base(learning_rate=1e-3), [4.0], 192)
    with pytest.raises(ValueError, match=r"learning_rate is 0\.003 there, 0\.001 here"):
        architectures.train(other, store, tmp_path, one_device)

    metrics = kept.evaluate_folders(folders, tiny, text, progress=False)
    result = json.loads(json.dumps(architectures.result_of(runs, metrics, store, "0123abc")))
    for row, one in zip(result["autoencoders"], metrics, strict=True):
        assert (row["l0"], row["fvu"], row["delta_loss"]) == (one.l0, one.fvu, one.delta_loss)
    *_, last = architectures.table(result).splitlines()
    assert last.startswith(f"| BatchTopK | 4 | {metrics[-1].l0:.1f} | {metrics[-1].fvu:.4f} | ")
    assert jax.tree.leaves(sae.load(folders[-1]))


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_the_readme_has_the_table_of_the_recorded_figures(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    assert architectures.table(result) in (ROOT / "sae" / "README.md").read_text(encoding="utf-8")
    assert {row["architecture"] for row in result["autoencoders"]} == set(architectures.ARCHITECTURES)
    assert {row["l0_target"] for row in result["autoencoders"]} == {20.0, 40.0}
