"""`~` in paths, names of runs, and Gemma Scope's folders."""

from pathlib import Path

import jax.numpy as jnp
import pytest

import sae
from sae.files import local_path
from sae.formats.gemma_scope_paths import info_of
from sae.store.places import place
from sae.text import Document, cut, read_documents
from sae.trainer.diagnostics import DENSITY_EDGES
from sae.trainer.naming import run_names
from sae.trainer.speed import Rates
from tests.sae.letters import Letters


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home of the user's, and another folder to work in, in which no `~` may appear."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    "address", ["s3://bucket/x", "gs://bucket/x", Path("s3://bucket/x"), "https://host/x", "hf://a/b"]
)
def test_an_address_is_no_folder_of_this_machine(address, tmp_path, monkeypatch):
    """Unless somebody has mounted it under another name; stores alone are in buckets."""
    monkeypatch.chdir(tmp_path)
    shapes = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    autoencoder = sae.JumpReLU(**{name: jnp.zeros(shape) for name, shape in shapes.items()})
    for take in (
        lambda: sae.save(autoencoder, address),
        lambda: sae.load(address),
        lambda: read_documents(address),
        lambda: cut([Document("a", "s", "text")], Letters(), 8, folder=address, key="k"),
        lambda: sae.TensorBoard(address),
    ):
        with pytest.raises(ValueError, match="a path has to be on this machine, not at an address "):
            take()
    assert not list(tmp_path.iterdir())


def test_no_path_is_not_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for take in (sae.load, read_documents, place, sae.TensorBoard):
        with pytest.raises(ValueError, match="a path is empty: name a file or a folder"):
            take("")
    assert local_path(".") == Path()


def test_the_users_home_wherever_a_path_is_taken(home, tiny):
    assert local_path("~/a") == home / "a" and local_path("a/~") == Path("a/~")
    assert local_path(local_path("./~/a")) == home.parent / "work" / "~" / "a"
    assert place("~/store").folder == home / "store" and str(place("~/store")) == str(home / "store")
    shapes = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    autoencoder = sae.JumpReLU(**{name: jnp.zeros(shape) for name, shape in shapes.items()})
    sae.save(autoencoder, "~/mine")
    assert (home / "mine" / "params.npz").exists() and sae.load("~/mine").width == 8
    (home / "text.txt").write_text("The sea. " * 40)
    documents = read_documents("~/text.txt")
    assert (
        len(cut(documents, tiny.tokenizer, 16, folder="~/cut", key="1")) > 1 and (home / "cut" / "text.json").exists()
    )
    report = sae.TensorBoard("~/tb")
    report.record([{"run": 0, "step": 0, "l0": 1.0, "density": [1] * (1 + len(DENSITY_EDGES))}], Rates(1.0, 0.0, None))
    report.close()
    assert list((home / "tb" / "run_0").iterdir())


def test_the_home_of_nobody_is_an_error():
    with pytest.raises(ValueError, match="'~nobody_of_this_name/a' begins with the home of a user that this machine"):
        place("~nobody_of_this_name/a")


def test_runs_are_named_by_site_width_and_target():
    pair = ("layer_2/resid_post", "layer_3/resid_post")
    runs = [
        sae.short_run(pair[0], 64, 9, l0_target=8),
        sae.short_run(pair, 64, 9, l0_target=8),
        sae.short_run("layer_3/mlp_in", 64, 9, l0_target=7.5, site_out="layer_3/mlp_out", skip=True),
        sae.gemma_scope(pair[1], 96, 9, coefficient=1e-3),
    ]
    assert run_names(runs) == [
        "layer_2/resid_post/width_64/target_l0_8",
        "crosscoder_layer_2.resid_post+layer_3.resid_post/width_64/target_l0_8",
        "layer_3/mlp_in_to_layer_3.mlp_out_skip/width_64/target_l0_7.5",
        "layer_3/resid_post/width_96/lambda_0.001",
    ]


def test_runs_that_differ_in_anything_else_have_it_in_their_names():
    runs = [sae.short_run("s", 64, 9, l0_target=8, **c) for c in ({}, {"revival": 0.5}, {"matryoshka": (0.25, 0.5)})]
    assert run_names(runs) == [
        "s/width_64/target_l0_8_objective_reconstruction_revival_0.001",
        "s/width_64/target_l0_8_objective_reconstruction_revival_0.5",
        "s/width_64/target_l0_8_objective_matryoshka_revival_0.001_matryoshka_0.25-0.5",
    ]
    assert run_names(runs[:1], named=["seed", "width"]) == ["s/width_64/target_l0_8_seed_0"]
    same = run_names([runs[0], sae.short_run("s", 64, 9, l0_target=8.0000001), runs[0]])
    assert same == [f"s/width_64/target_l0_8_run_{i}" for i in range(3)]


@pytest.mark.parametrize(
    ("path", "model", "site", "site_out"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "gemma2-2b", "layer_20/resid_post", None),
        ("google/gemma-scope-9b-it-res/layer_9/width_131k/average_l0_121", "gemma2-9b", "layer_9/resid_post", None),
        ("gemma-scope-27b-pt-res/layer_10/width_131k/average_l0_15", "gemma2-27b", "layer_10/resid_post", None),
        ("gemma-scope-2b-pt-att/layer_0/width_16k/average_l0_104", "gemma2-2b", "layer_0/attn_z", None),
        ("gemma-scope-9b-pt-mlp/layer_41/width_16k/average_l0_8", "gemma2-9b", "layer_41/mlp_out", None),
        ("gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_41", "gemma2-2b", "layer_5/mlp_normed", "mlp_out"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "gemma2-2b", "embed", None),
        (
            "models--google--gemma-scope-2b-pt-res/snapshots/f6d2e1a/layer_3/width_65k/average_l0_73",
            *("gemma2-2b", "layer_3/resid_post", None),
        ),
    ],
)
def test_gemma_scopes_paths(path, model, site, site_out):
    info = info_of(Path("/anywhere") / path)
    out = site if site_out is None else f"layer_5/{site_out}"
    assert (info.model, info.site, info.site_out, info.units) == (model, site, out, "raw")
    assert path.split("/")[-1] in info.training  # with the L0


@pytest.mark.parametrize(
    "path",
    [
        "layer_20/width_16k/average_l0_71",  # of which repository?
        "my-gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
        "gemma-scope-2-1b-pt/resid_post/layer_7_width_16k_l0_small",  # Gemma Scope 2's, which are other files
        "gemma-scope-2b-pt-res/width_16k/average_l0_71",
        "gemma-scope-2b-pt-mlp/embedding/width_4k/average_l0_6",
        "gemma-scope-2b-pt-res/layer_1/layer_2/width_16k",
    ],
)
def test_paths_that_say_too_little(path):
    assert info_of(Path("/anywhere") / path) is None


def test_an_info_beside_the_file_goes_before_the_path(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    shapes = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    arrays = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    sae.save(sae.JumpReLU(**arrays), folder)
    assert (
        sae.load(folder).info.site == "layer_20/resid_post"
        and sae.load(folder / "params.npz").info.model == "gemma2-2b"
    )
    mine = sae.Info("gemma2-tiny", "layer_1/mlp_out", "layer_1/mlp_out")
    sae.save(sae.JumpReLU(**arrays, info=mine), folder)
    assert sae.load(folder).info == mine
