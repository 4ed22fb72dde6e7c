"""`python -m experiments.convert`: files alone, of one format into another."""

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import sae
from experiments import convert, running


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    arrays = {name: jnp.asarray(np.abs(rng.normal(size=shape)), jnp.float32) for name, shape in shapes.items()}
    one = sae.JumpReLU(**arrays, info=sae.Info("gemma2-2b", "layer_3/mlp_in", "layer_3/mlp_out"))
    sae.save(one, tmp_path / "copy" / "inside")
    return one


def converted(monkeypatch, *argv):
    """As the command line runs it, in this process."""
    monkeypatch.setattr("sys.argv", ["convert", *map(str, argv)])
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        try:
            running.run(convert.main, convert.check_flags, convert.ARGUMENTS)
        except SystemExit as ended:
            return ended.code
        finally:
            flags.FLAGS.mark_as_parsed()


def test_the_same_autoencoder_in_another_format(saved, tmp_path, launch, capsys):
    launch(format="gemma_scope_2", path="inside")
    convert.check_flags()
    convert.main(str(tmp_path / "copy"), str(tmp_path / "new"))
    loaded = sae.load(tmp_path / "new")
    assert (
        tmp_path / "new" / "params.safetensors"
    ).exists() and "in the format gemma_scope_2" in capsys.readouterr().out
    np.testing.assert_array_equal(loaded.W_dec, saved.W_dec)
    assert (loaded.info.site, loaded.info.site_out) == ("layer_3/mlp_in", "layer_3/mlp_out")
    with pytest.raises(ValueError, match=r"holds an autoencoder already \(params.safetensors\): name another folder"):
        convert.main(str(tmp_path / "copy"), str(tmp_path / "new"))


def test_what_a_format_cannot_hold_is_refused_with_those_that_can(saved, tmp_path, launch):
    launch(format="sparsify", path="inside")
    with pytest.raises(
        ValueError, match=r"sparsify's format has no place for a JumpReLU.*Formats that can hold this autoencoder: "
    ):
        convert.main(str(tmp_path / "copy"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    launch(format=None)
    with pytest.raises(ValueError, match="--format is needed"):
        convert.check_flags()


@pytest.mark.parametrize(("argv", "said"), [(["a"], "FROM and TO are needed, got a"), ([], "FROM and TO are needed")])
def test_both_places_are_needed(monkeypatch, capsys, argv, said):
    assert converted(monkeypatch, *argv, "--format=saelens") == 2
    assert said in capsys.readouterr().err
