"""`sae.release`: the folder trees of Gemma Scope, what is refused, and that a release made again stays as it is."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

import sae
from sae.evaluation import kept
from sae.formats.format import formats
from sae.formats.mishax_lite import MishaxLite
from tests.registering import registered
from tests.sae import releasable


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    releasable.draw_once(monkeypatch)


@pytest.fixture
def saes(tmp_path):
    return tmp_path / "saes"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "release"


def test_the_tree_of_gemma_scope_1_and_every_bit_of_it(saes, out):
    """arXiv 2408.05147's repositories: layer_20/width_16k/average_l0_71/params.npz."""
    originals = {
        "layer_3/width_256/average_l0_20": releasable.save(saes, l0=20.2)[0],
        "layer_3/width_256/average_l0_41": releasable.save(saes, l0=40.6, aim=40.0, seed=1)[0],
        "layer_12/width_1k/average_l0_9": releasable.save(saes, 9.4, site="layer_12/resid_post", width=1024, aim=10)[0],
    }
    released = sae.release(saes, out)
    assert set(released.paths) == set(originals) and released.changed
    for path, original in originals.items():
        assert releasable.same(sae.load(out, path), original)
        with np.load(out / path / "params.npz") as arrays:
            assert set(arrays) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
            assert arrays["W_dec"].tobytes() == np.asarray(original.W_dec).tobytes()
    listed = sae.releases(out)
    assert [(one.path, one.site, one.width, one.l0) for one in listed] == [
        ("layer_3/width_256/average_l0_20", "layer_3/resid_post", 256, 20.2),
        ("layer_3/width_256/average_l0_41", "layer_3/resid_post", 256, 40.6),
        ("layer_12/width_1k/average_l0_9", "layer_12/resid_post", 1024, 9.4),
    ]
    assert not any(one.problem for one in listed)


def test_the_tree_of_gemma_scope_2_has_a_folder_for_each_kind(saes, out):
    wanted = {
        "resid_post/layer_3_width_256_l0_small": {"aim": 10.0, "l0": 10.2},
        "resid_post/layer_3_width_256_l0_medium": {"aim": 20.0, "l0": 20.2},
        "resid_post/layer_3_width_256_l0_big": {"aim": 40.0, "l0": 40.2},
        "attn_out/layer_3_width_256_l0_small": {"site": "layer_3/attn_z"},
        "mlp_out/layer_9_width_256_l0_medium": {"site": "layer_9/mlp_out", "aim": 50.0, "l0": 55.0},
        "transcoder/layer_9_width_256_l0_big_affine": {
            **{"site": "layer_9/mlp_in", "site_out": "layer_9/mlp_out", "skip": True, "aim": 200.0, "l0": 190.0}
        },
        "mlp_hidden/layer_9_width_256_l0_small": {"site": "layer_9/mlp_hidden"},  # which Gemma Scope does not have
    }
    originals = {path: releasable.save(saes, **options)[0] for path, options in wanted.items()}
    released = sae.release(saes, out, layout="gemma_scope_2")
    assert set(released.paths) == set(wanted)
    assert all(releasable.same(sae.load(out, path), original) for path, original in originals.items())
    config = json.loads((out / "resid_post/layer_3_width_256_l0_medium/config.json").read_text())
    assert config["l0"] == 20 and config["hf_hook_point_in"] == "model.layers.3.output" and config["width"] == 256


def test_more_than_three_l0s_are_numbers(saes, out):
    for aim in (10.0, 20.0, 40.0, 80.0):
        releasable.save(saes, aim=aim)
    paths = sae.release(saes, out, layout="gemma_scope_2").paths
    assert sorted(paths) == [f"resid_post/layer_3_width_256_l0_{aim}" for aim in (10, 20, 40, 80)]


def test_a_cross_layer_transcoder_and_a_crosscoder_have_places_in_gemma_scope_2(saes, out):
    shapes = {"W_enc": (2, 4, 3), "b_enc": (2, 3), "W_dec": (2, 3, 2, 4), "b_dec": (2, 4), "threshold": (2, 3)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    mlps = sae.Info("gemma2-tiny", ("layer_0/mlp_in", "layer_1/mlp_in"), ("layer_0/mlp_out", "layer_1/mlp_out"))
    resids = ("layer_5/resid_post", "layer_9/resid_post")
    for name, info in {"clt": mlps, "crosscoder": sae.Info("gemma2-tiny", resids, resids)}.items():
        sae.save(sae.CrossLayerTranscoder(**arrays, info=info), saes / name, format="mishax_lite")
    released = sae.release(saes, out, layout="gemma_scope_2")
    assert set(released.paths) == {"clt/width_6_l0_unknown", "crosscoder/layer_5_9_width_6_l0_unknown"}
    assert (out / "clt/width_6_l0_unknown/params_layer_1.safetensors").exists()
    assert sae.load(out, "clt/width_6_l0_unknown").info == mlps
    with pytest.raises(ValueError, match="reads several sites, and Gemma Scope 1 has no folder for such"):
        sae.release(saes, out)


def test_what_a_layouts_format_cannot_hold_goes_into_one_that_can(saes, out):
    one = releasable.autoencoder()
    topk = sae.TopK(one.W_enc, one.b_enc, one.W_dec, one.b_dec, k=4, info=one.info)
    sae.save(topk, saes / "topk")
    with pytest.raises(ValueError, match=r"topk: Gemma Scope's format has no place for a TopK.*that has: .*saelens"):
        sae.release(saes, out)
    released = sae.release(saes, out, format="saelens")
    assert released.paths == ("layer_3/width_256/target_l0_4",)
    assert releasable.same(sae.load(out, released.paths[0]), topk)
    assert (out / released.paths[0] / "sae_weights.safetensors").exists()


class Halves(MishaxLite):
    """A format that keeps half the digits."""

    title, main, default = "the format halves", "halves.npz", None

    def files(self, contents):
        halves = {name: np.float32(np.float16(value)) for name, value in contents.values.items()}
        return super().files(dataclasses.replace(contents, values=halves))


def test_what_would_not_come_back_to_the_bit_is_not_released(saes, out):
    releasable.save(saes)
    with registered((formats, "halves", Halves)), pytest.raises(ValueError, match="its W_enc would not come back from"):
        sae.release(saes, out, format="halves")
    assert not out.exists()


def test_checksums_are_those_of_sha256(saes, out):
    releasable.save(saes, l0=20.2)
    sae.release(saes, out)
    files = releasable.contents(out)
    sums = files.pop("SHA256SUMS").decode()
    assert sums.splitlines() == [f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in sorted(files)]
    assert {"README.md", "tradeoff.png", "pretrained_saes.yaml", "release.json"} < set(files)
    assert not list(out.parent.glob(".*"))  # nothing is left beside it


def test_made_again_it_stays_untouched_and_a_damaged_file_is_mended(saes, out):
    releasable.save(saes)
    sae.release(saes, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = sae.release(saes, out)
    assert not again.changed and {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    file = out / again.paths[0] / "params.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert sae.release(saes, out).changed and file.read_bytes() == whole


def test_a_release_grows_and_does_not_shrink_without_a_word(saes, out):
    releasable.save(saes)
    sae.release(saes, out)
    _, second = releasable.save(saes, aim=40.0, seed=1)
    assert len(sae.release(saes, out).paths) == 2
    before = releasable.contents(out)
    shutil.rmtree(second)
    with pytest.raises(ValueError, match=r"another release: layer_3/width_256/target_l0_40 would be gone.*overwrite"):
        sae.release(saes, out)
    assert releasable.contents(out) == before
    assert sae.release(saes, out, overwrite=True).paths == ("layer_3/width_256/target_l0_20",)


def test_autoencoders_of_different_models_are_refused(saes, out):
    releasable.save(saes)
    releasable.save(saes, site="layer_4/resid_post", model="gemma3-270m")
    with pytest.raises(ValueError, match=r"of different models: .* is of gemma2-tiny, .* of gemma3-270m\."):
        sae.release(saes, out)
    assert not out.exists()


def test_two_models_of_one_name_are_told_apart_by_their_fingerprints(saes, out):
    one, _ = releasable.save(saes)
    record = one.info.record
    other = type(record)("99" * 32, record.corpus_sha256)
    releasable.save(saes, site="layer_4/resid_post", record=other)
    with pytest.raises(ValueError, match=r"of one name, by their fingerprints: .* is of abab\w+, .* of 9999\w+\."):
        sae.release(saes, out)
    assert sae.release(saes, out, only=["layer_3/*"]).paths  # what is chosen is of one


def test_a_release_of_another_model_is_not_replaced(saes, out, tmp_path):
    releasable.save(saes)
    sae.release(saes, out)
    before = releasable.contents(out)
    releasable.save(tmp_path / "others", model="gemma3-270m")
    with pytest.raises(ValueError, match="has another release: model is gemma2-tiny there, gemma3-270m here"):
        sae.release(tmp_path / "others", out)
    with pytest.raises(ValueError, match="layout is gemma_scope there, gemma_scope_2 here"):
        sae.release(saes, out, layout="gemma_scope_2")
    assert releasable.contents(out) == before


def test_several_kinds_of_sites_are_refused_for_gemma_scope_1_unless_one_is_chosen(saes, out):
    releasable.save(saes)
    releasable.save(saes, site="layer_3/mlp_out")
    with pytest.raises(ValueError, match=r"are of several: mlp \(1\), res \(1\). Choose those of one with `only`"):
        sae.release(saes, out)
    assert sae.release(saes, out, only=["*mlp_out*"]).paths == ("layer_3/width_256/target_l0_20",)
    with pytest.raises(ValueError, match="target_l0_20 would be of another site"):
        sae.release(saes, out, only=["*resid_post*"])


def test_two_that_would_have_one_place_are_refused_by_both_names(saes, out):
    releasable.save(saes, l0=20.2)
    releasable.save(saes, l0=19.8, aim=19.0, seed=1)
    for layout in ("gemma_scope", "gemma_scope_2"):
        with pytest.raises(ValueError, match=r"target_l0_19 and .*target_l0_20 would both be .*_l0_20 in a release"):
            sae.release(saes, out, layout=layout)


def test_folders_that_hold_something_else_are_refused_and_stay(saes, out, tmp_path):
    releasable.save(saes)
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match="is no release"):
        sae.release(saes, out, overwrite=True)
    (out / "thesis.tex").unlink()
    sae.release(saes, out)
    (out / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match=r"files that are not of the release in it: thesis.tex"):
        sae.release(saes, out, overwrite=True)
    for where in (saes, saes / "release", saes.parent):
        with pytest.raises(ValueError, match="neither inside of its autoencoders' nor around it"):
            sae.release(saes, where)
    assert (out / "thesis.tex").read_text() == "all of it"


def test_what_cannot_be_released_is_named(saes, out):
    with pytest.raises(ValueError, match="is no folder"):
        sae.release(saes, out)
    saes.mkdir()
    with pytest.raises(ValueError, match="no autoencoder under"):
        sae.release(saes, out)
    _, folder = releasable.save(saes)
    with pytest.raises(ValueError, match=r"matches '\*mlp\*': it has layer_3/resid_post/width_256/target_l0_20$"):
        sae.release(saes, out, only=["*mlp*"])
    with pytest.raises(ValueError, match="got the layout 'gemma_scope_3': choose one of gemma_scope, gemma_scope_2"):
        sae.release(saes, out, layout="gemma_scope_3")
    with pytest.raises(ValueError, match="got the repository 'name': a repository of the hub is named owner/name"):
        sae.release(saes, out, repository="name")
    (folder / "info.json").unlink()
    with pytest.raises(ValueError, match="says neither its model nor its site"):
        sae.release(saes, out)
    (folder / "params.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"target_l0_20 cannot be released: .*params.npz"):
        sae.release(saes, out)
    assert not out.exists()


def test_metrics_of_other_files_are_not_published(saes, out):
    """An autoencoder that was trained anew, beside which the metrics of before lie."""
    _, folder = releasable.save(saes, l0=20.2)
    sae.save(releasable.autoencoder(seed=7), folder)
    released = sae.release(saes, out)
    assert released.paths == ("layer_3/width_256/target_l0_20",)
    assert "metrics of all autoencoders: metrics.json is of other files than are here now" in released.missing
    assert not (out / released.paths[0] / kept.METRICS).exists() and not (out / "tradeoff.png").exists()


def test_an_l0_that_is_not_on_record_is_unknown(saes, out):
    one = releasable.autoencoder(training="{}")
    sae.save(one, saes / "mine")
    assert sae.release(saes, out).paths == ("layer_3/width_256/l0_unknown",)


def test_the_target_of_an_earlier_version_is_in_the_name_of_its_folder(saes, out):
    """Whose records have the fields of a run in one list, or none."""
    sae.save(releasable.autoencoder(training="{}"), saes / "target_l0_20")
    sae.save(releasable.autoencoder(training='{"config": {"l0_target": 8.0}}', seed=1), saes / "mine")
    assert set(sae.release(saes, out).paths) == {"layer_3/width_256/target_l0_20", "layer_3/width_256/target_l0_8"}


def test_two_processes_do_not_write_one_release(saes, out):
    from sae import folders

    releasable.save(saes)
    with folders.beside(out), pytest.raises(ValueError, match=r"another process writes .*release now: wait until"):
        sae.release(saes, out)
    assert sae.release(saes, out).changed


@pytest.mark.parametrize("changes", [{"site": "../victim/resid_post"}, {"site": "/etc/x"}, {"model": "a|b\n# evil"}])
def test_names_that_lead_out_of_a_release_or_break_its_card_are_refused(changes, saes, out, tmp_path):
    """An info.json may come from anybody."""
    _, folder = releasable.save(saes)
    facts = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    changes |= {"site_out": changes["site"]} if "site" in changes else {}
    (folder / "info.json").write_text(json.dumps(facts | changes), encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be released: its (site|model) is .*Give it another `info`"):
        sae.release(saes, out)
    assert not out.exists() and not (tmp_path / "out" / "victim").exists()


def test_an_edited_card_is_not_lost(saes, out):
    releasable.save(saes)
    sae.release(saes, out)
    card = out / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "My own words.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md in .* changed since the release.*overwrite=True"):
        sae.release(saes, out)
    assert card.read_text(encoding="utf-8").endswith("My own words.\n")
    assert sae.release(saes, out, overwrite=True).changed
    assert "My own words" not in card.read_text(encoding="utf-8")


def test_one_pattern_needs_no_list_and_licences_are_of_their_class(saes, out):
    releasable.save(saes)
    assert len(sae.release(saes, out, only="*").paths) == 1
    with pytest.raises(ValueError, match=r"licences are sae\.Licences\(.*got 'mit'"):
        sae.release(saes, out, licences="mit")
