"""`python -m experiments.release`: flags over `sae.release` and `sae.push`."""

import pytest

import sae
from experiments import release
from tests.sae import hub_server, releasable


@pytest.fixture
def flags(launch, tmp_path):
    releasable.save(tmp_path / "saes")
    releasable.save(tmp_path / "saes", site="layer_3/mlp_out", seed=1)
    launch(saes_dir=str(tmp_path / "saes"), release_dir=str(tmp_path / "release"))
    return launch


def test_flags_are_those_of_the_library(flags, tmp_path, capsys):
    flags(layout="gemma_scope_2", file_format="saelens", only=["*mlp_out*"], licence="apache-2.0", text_licence="mine")
    release.check_flags()
    release.main()
    printed = capsys.readouterr().out
    path = "mlp_out/layer_3_width_256_l0_small"
    assert f"{tmp_path / 'release' / path}\n" in printed and "missing: the licence of the model is not given" in printed
    assert releasable.same(sae.load(tmp_path / "release", path), releasable.autoencoder("layer_3/mlp_out", seed=1))
    assert (tmp_path / "release" / path / "sae_weights.safetensors").exists()
    release.main()
    assert "README.md (nothing has changed)" in capsys.readouterr().out


def test_it_pushes_and_says_where(flags, tmp_path, capsys, monkeypatch):
    flags(layout="gemma_scope_2", push="someone/saes")
    with hub_server.serving(monkeypatch, tmp_path / "home") as hub:
        release.main()
        address = f"{hub.endpoint}/someone/saes/commit/{hub.commits['someone/saes'][-1][0]}"
        assert f"pushed: {address}\n" in capsys.readouterr().out
        assert "resid_post/layer_3_width_256_l0_small/params.safetensors" in hub.files("someone/saes")
        flags(layout="gemma_scope", only=["*resid_post*"], release_dir=str(tmp_path / "other"))
        with pytest.raises(ValueError, match="someone/saes has another release: layout is gemma_scope_2 there"):
            release.main()
        flags(overwrite=True)
        release.main()
        assert "layer_3/width_256/target_l0_20/params.npz" in hub.files("someone/saes")
        assert "resid_post/layer_3_width_256_l0_small/params.safetensors" not in hub.files("someone/saes")


def test_private_without_a_push_is_refused(flags):
    flags(private=True)
    with pytest.raises(ValueError, match="--private is of the repository that --push=owner/name makes"):
        release.check_flags()
