"""Where training puts autoencoders, that those of another run stay, and of which site they are."""

import dataclasses
import types

import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

import sae
from experiments import autoencoders, train
from sae.store.manifest import Manifest
from sae.trainer.information import info_of

SITE = "layer_1/mlp_out"
ZEROS = {name: jnp.zeros(shape) for name, shape in {"W_enc": (192, 8), "W_dec": (8, 192), "b_dec": (192,)}.items()}


def config(**changes):
    return sae.short_run(SITE, 8, **{"steps": 9, "l0_target": 5.0, **changes})


MANIFEST = Manifest(
    **{"model": "gemma2-tiny", "model_fingerprint": "model", "tokenizer_sha256": "t"},
    **{"sites": {SITE: (192,)}, "dtype": "float32", "corpus_sha256": "text", "sequences": 9, "length": 9},
    **{"sequences_per_segment": 9, "seed": 0, "counted": sae.Counted((0, 1, 2), sinks=sae.Sinks(4.0, (SITE,)))},
)


def store(median=2.0, factor=4.0, **changes):
    """What is read of a store."""
    counted = sae.Counted((0, 1, 2), sinks=sae.Sinks(factor, (SITE,)))
    manifest = dataclasses.replace(MANIFEST, counted=counted, **changes)
    limits = {SITE: factor * median}
    return types.SimpleNamespace(manifest=manifest, kind="store", growing=False, sink_limits=lambda: limits)


def saved(folder, run, training=None):
    """An autoencoder of a run, as training saves it."""
    info = info_of(run, store(), {SITE: types.SimpleNamespace(scale=1.0)}, store().sink_limits())
    if training is not None:
        info = dataclasses.replace(info, training=training)
    sae.save(sae.JumpReLU(**ZEROS, b_enc=jnp.zeros(8), threshold=jnp.zeros(8), info=info), folder)


def test_another_runs_autoencoder_is_refused_and_both_are_named(tmp_path):
    run = config()
    (folder,) = autoencoders.folders_of(tmp_path, [run])
    assert folder == tmp_path / "layer_1/mlp_out/width_8/target_l0_5"
    autoencoders.check_free([folder], [run], store())  # nothing is there
    saved(folder, run)
    before = (folder / "params.npz").read_bytes()
    autoencoders.check_free([folder], [run], store())  # the same run again
    autoencoders.check_free([folder], [run])  # before there is a store
    for other, source, words in (
        (config(seed=1, penalty="quadratic", controller=0.0), store(), 'sparsity is "controlled+revival" there'),
        (config(seed=1), store(), "seed is 0 there, 1 here"),
        (config(steps=10), None, "steps is 9 there, 10 here"),
        (run, store(corpus_sha256="another"), 'corpus_sha256 is "text" there, "another" here'),
        (run, store(model_fingerprint="another"), 'model_fingerprint is "model" there, "another" here'),
        (run, store(factor=3.0), '[["layer_1/mlp_out", 8.0]] there, [["layer_1/mlp_out", 6.0]] here'),
        (run, store(median=2.5), '[["layer_1/mlp_out", 8.0]] there, [["layer_1/mlp_out", 10.0]] here'),
    ):
        with pytest.raises(ValueError, match=r"target_l0_5 has the autoencoder of another run: .*--overwrite") as error:
            autoencoders.check_free([folder], [other], source)
        assert words in str(error.value)
    assert (folder / "params.npz").read_bytes() == before


@pytest.mark.parametrize("training", ["{}", None])
def test_one_that_does_not_say_its_run_is_refused_too(tmp_path, training):
    saved(tmp_path / "a", config(), "{}")
    if training is None:
        (tmp_path / "a" / "info.json").unlink()
    with pytest.raises(ValueError, match="another run: the folder does not say which run"):
        autoencoders.check_free([tmp_path / "a"], [config()])


def test_one_of_an_earlier_version_is_refused_by_the_number_of_its_format(tmp_path):
    saved(tmp_path / "a", config(), '{"config": {"l0_target": 5.0}}')
    with pytest.raises(ValueError, match=r"another run: its run is recorded in format 1, .* this one is in format 2"):
        autoencoders.check_free([tmp_path / "a"], [config()])


@pytest.fixture
def given():
    with flagsaver.flagsaver():
        yield lambda *argv: flags.FLAGS(["a launch", *argv])


def test_folders_carry_what_flags_set(given, tmp_path):
    def names(*argv):
        given(*argv)
        folders = train.folders_of(train.configs({SITE: 192}), tmp_path)
        return [folder.relative_to(tmp_path / SITE).as_posix() for folder in folders]

    assert names("--width=64", "--l0_targets=5,20", "--batch_size=128", "--steps=40") == [
        "width_64/target_l0_5",
        "width_64/target_l0_20",
    ]
    assert names("--train_seeds=0,1") == [f"width_64/target_l0_{aim}_seed_{seed}" for aim in (5, 20) for seed in (0, 1)]
    changed = ("--l0_targets=5", "--train_seeds=1", "--penalty=quadratic", "--controller=0", "--learning_rate=1e-3")
    name = "width_64/target_l0_5_sparsity_quadratic+revival_learning_rate_0.001_controller_0.0_seed_1"
    assert names(*changed) == [name]


def test_folders_carry_the_recipe(given, tmp_path):
    given("--recipe=gemma_scope_2", "--width=64", "--l0_targets=5")
    (folder,) = train.folders_of(train.configs({SITE: 192}), tmp_path)
    assert folder.name == "target_l0_5_recipe_gemma_scope_2"


def test_overwrite_is_a_word(given, tmp_path):
    given("--width=8", "--l0_targets=5", "--steps=9")
    runs = train.configs({SITE: 192})
    (folder,) = train.folders_of(runs, tmp_path)
    saved(folder, config(seed=3))
    with pytest.raises(ValueError, match="another run"):
        train.folders_of(runs, tmp_path)
    given("--width=8", "--l0_targets=5", "--steps=9", "--overwrite")
    assert train.folders_of(runs, tmp_path) == [folder]


def model(name="gemma2-tiny"):
    import gemma

    return gemma.Model({}, gemma.config(name))


def test_the_site_of_a_bare_autoencoder_is_what_the_flag_says(given, tmp_path):
    saved(tmp_path / "a", config())
    assert autoencoders.load(tmp_path / "a", model()).info.site == SITE
    given("--site=layer_3/mlp_out")
    with pytest.raises(ValueError, match=r"a belongs to layer_1/mlp_out, got --site=layer_3/mlp_out"):
        autoencoders.load(tmp_path / "a", model())
    (tmp_path / "a" / "info.json").unlink()
    info = autoencoders.load(tmp_path / "a", model()).info
    assert (info.model, info.site, info.site_out) == ("gemma2-tiny", "layer_3/mlp_out", "layer_3/mlp_out")
    given("--site=layer_9/mlp_out")
    with pytest.raises(ValueError, match=r"in gemma2-tiny: it has layer_0/mlp_out to layer_5/mlp_out"):
        autoencoders.load(tmp_path / "a", model())


def test_without_the_flag_it_is_asked_for(given, tmp_path):
    given()
    saved(tmp_path / "a", config())
    (tmp_path / "a" / "info.json").unlink()
    with pytest.raises(ValueError, match=r"does not say its site: .* Give --site, and the model with --model"):
        autoencoders.load(tmp_path / "a", model())


def test_gemma_scopes_folders_say_theirs(given, tmp_path):
    given()
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    saved(folder, config())
    (folder / "info.json").unlink()
    info = autoencoders.load(folder, model()).info
    assert (info.model, info.site, info.site_out) == ("gemma2-2b", "layer_20/resid_post", "layer_20/resid_post")
