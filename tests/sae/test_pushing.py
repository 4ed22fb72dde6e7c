"""`sae.push`: to a hub on this machine, which answers as the hub does."""

import shutil
import sys
import warnings

import pytest
from huggingface_hub import constants

import sae
from sae.formats.hub import HubError
from tests.sae import hub_server, releasable

NAME = "someone/gemma-scope-tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving(monkeypatch, tmp_path / "home") as hub:
        yield hub


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A function that releases what is below a folder, and what it gives back."""
    releasable.draw_once(monkeypatch)
    releasable.save(tmp_path / "saes", l0=20.2)
    releasable.save(tmp_path / "saes", site="layer_4/resid_post", seed=1, l0=20.2)

    def release(source="saes", repository=NAME, **options):
        return sae.release(tmp_path / source, tmp_path / "release", repository=repository, **options).folder

    return release


def refused(said, folder, **options):
    with pytest.raises(HubError, match=said) as error:
        sae.push(folder, **options)
    assert "\n" not in str(error.value)


def without(files, *names):
    return {path: content for path, content in files.items() if path not in names}


def test_what_was_pushed_is_the_release_and_loads_bit_for_bit(hub, released, tmp_path):
    folder = released()
    address = sae.push(folder)
    files = hub.files(NAME)
    assert without(files, ".gitattributes") == releasable.contents(folder)
    assert address == f"{hub.endpoint}/{NAME}/commit/{hub.commits[NAME][-1][0]}"
    assert len(hub.commits[NAME]) == 2 and hub.commits[NAME][-1][2] == "Release of 2 autoencoders of gemma2-tiny"
    for site, seed in (("layer_3/resid_post", 0), ("layer_4/resid_post", 1)):
        path = f"{site.partition('/')[0]}/width_256/average_l0_20"
        assert releasable.same(sae.load(NAME, path), releasable.autoencoder(site, seed=seed))
    assert sae.releases(NAME) == sae.releases(folder)  # sites, widths and L0s, too


def test_pushed_again_nothing_is_sent(hub, released):
    first = sae.push(released())
    hub.log.clear()
    assert sae.push(released()) == first
    assert len(hub.commits[NAME]) == 2 and not {"write", "upload", "batch", "preupload"} & set(hub.log)


def test_a_new_release_is_one_commit_of_what_differs_and_takes_out_what_is_gone(hub, released, tmp_path):
    sae.push(released())
    hub.commit(NAME, hub.files(NAME) | {"notes.md": b"by hand"})
    shutil.rmtree(tmp_path / "saes" / "layer_4")
    releasable.save(tmp_path / "saes", site="layer_5/resid_post", seed=2)
    folder = released(overwrite=True)
    refused("has another release: layer_4/width_256/average_l0_20 would be gone.*overwrite=True", folder)
    hub.log.clear()
    sae.push(folder, overwrite=True)
    assert without(hub.files(NAME), ".gitattributes") == releasable.contents(folder) | {"notes.md": b"by hand"}
    assert len(hub.commits[NAME]) == 4
    assert hub.log.count("upload") == 2  # params.npz and the picture; the hub has a file like the new largest.npz


@pytest.mark.parametrize("route", ["create", "info", "tree", "preupload", "batch", "upload", "write"])
def test_a_push_that_fails_changes_nothing_and_can_be_repeated(hub, released, route):
    sae.push(released("saes"))
    before = len(hub.commits[NAME])
    folder = released(overwrite=True, licences=sae.Licences("apache-2.0"), only=["layer_*"])
    hub.faults[route] = [503] * 9
    if route in ("batch", "upload"):  # a large file that the hub lacks
        hub.commits[NAME][-1][1].pop("tradeoff.png")
        hub.objects.clear()
    refused(f"{NAME} has the release of before, or all of the new one: .*503.* Run it again", folder)
    assert len(hub.commits[NAME]) == before
    hub.faults.clear()
    sae.push(folder)
    assert without(hub.files(NAME), ".gitattributes") == releasable.contents(folder)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, released):
    folder = released()
    hub.faults["write"] = ["lost"]
    refused("has the release of before, or all of the new one", folder)
    assert len(hub.commits[NAME]) == 2
    sae.push(folder)
    assert len(hub.commits[NAME]) == 2


def test_somebody_elses_commit_in_between_is_not_overwritten(hub, released):
    folder = released()
    hub.faults["write"] = [lambda: hub.commit(NAME, hub.files(NAME) | {"a.md": b"a"})]
    refused(f"{NAME} has changed during the push .*which changed nothing. Run it again", folder)
    assert set(hub.files(NAME)) == {".gitattributes", "a.md"}
    sae.push(folder)
    assert {"a.md", "README.md"} < set(hub.files(NAME))


def test_without_a_token_the_login_is_named(hub, released, monkeypatch):
    hub.token = "a-token"
    folder = released()
    refused("does not let you write to someone/gemma-scope-tiny .*run `hf auth login` with a token that may", folder)
    assert not hub.commits
    monkeypatch.setenv("HF_TOKEN", "a-token")
    sae.push(folder)
    assert "README.md" in hub.files(NAME)


def test_offline_and_without_the_package_it_says_what_to_do(hub, released, monkeypatch):
    folder = released()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("cannot be pushed to, as HF_HUB_OFFLINE is set", folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("needs huggingface_hub: pip install huggingface_hub", folder)


def test_a_repository_with_another_model_or_foreign_autoencoders_is_left_alone(hub, released, tmp_path):
    sae.push(released())
    releasable.save(tmp_path / "others", model="gemma3-270m")
    before = len(hub.commits[NAME])
    folder = released("others", overwrite=True)
    refused("has another release: model is gemma2-tiny there, gemma3-270m here", folder)
    assert len(hub.commits[NAME]) == before
    hub.commit("someone/other", {"layer_0/width_16k/average_l0_1/params.npz": b"theirs"})
    folder = released(repository="someone/other", overwrite=True)
    refused("someone/other has autoencoders that no release lists, layer_0/width_16k/average_l0_1/params.npz", folder)
    refused("has autoencoders that no release lists", folder, overwrite=True)
    assert len(hub.commits["someone/other"]) == 1


def test_only_a_whole_release_that_names_its_repository_is_pushed(hub, released, tmp_path):
    with pytest.raises(ValueError, match="is missing or empty: make a release there first"):
        sae.push(tmp_path / "nowhere")
    folder = released(repository=None)
    with pytest.raises(ValueError, match="names no repository, which its card has to: release it again with"):
        sae.push(folder)
    folder = released()  # the same autoencoders, which now have a repository
    (folder / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"is not as it was released: README.md is changed. Release it again"):
        sae.push(folder)
    assert not hub.log


def test_the_card_passes_the_hubs_check_and_warns_of_nothing(hub, released):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sae.push(released(licences=sae.Licences("apache-2.0")))
    assert "validate" in hub.log
