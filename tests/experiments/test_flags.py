"""Flags that are empty, no numbers, or contradict one another: refused by name before anything is loaded."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

import sae
from experiments import evaluate, explore, generate, harvest, inspect_store, running, scope, train
from sae import topologies
from tests.experiments.checking import check

ROOT = Path(__file__).parents[2]


@pytest.fixture
def given():
    """A function of a launch and flags, which checks them as the launch does."""
    with flagsaver.flagsaver():
        yield check


IN_VAIN = ("held_out=a", "length=9", "packed", "only_model_turns", "max_sequences=3", "eval_sequences=3", "skip_bad")


@pytest.mark.parametrize(
    ("module", "argv", "message"),
    [
        # Empty.
        (harvest, ["--sites="], "--sites is empty"),
        (harvest, ["--store_dir="], "--store_dir is empty"),
        (harvest, ["--sites=layer_1/mlp_out,,layer_2/mlp_out"], "--sites has an empty entry"),
        (train, ["--coefficients="], "--coefficients is empty"),
        (train, ["--site_out= "], "--site_out is empty"),
        (train, ["--wandb_project="], "--wandb_project is empty"),
        (evaluate, ["--model="], "--model is empty"),
        (explore, ["--pages_dir="], "--pages_dir is empty"),
        (generate, ["--prompt=a", "--sae="], "--sae is empty"),
        (scope, ["--out_dir="], "--out_dir is empty"),
        # No number.
        (
            generate,
            ["--prompt=a", "--sae=x", "--latent=1", "--strength=nan"],
            "--strength takes a number in raw units or, such as 3max",
        ),
        (generate, ["--prompt=a", "--temperature=inf"], "--temperature takes a finite number"),
        (harvest, ["--sink_factor=nan"], "--sink_factor takes a finite number"),
        (harvest, ["--sink_factor=1"], "--sink_factor is a multiple of the median norm, more than 1"),
        (train, ["--revival=nan"], "--revival takes a finite number"),
        (train, ["--l0_targets=nan"], "--l0_targets takes finite numbers, got 'nan'"),
        (train, ["--width=inf"], "--width takes finite numbers, got 'inf'"),
        (train, ["--train_seeds=-1"], "--train_seeds takes different numbers from 0 on"),
        (train, ["--width=64,65.5"], "--width takes whole numbers, got '64,65.5'"),
        (train, ["--learning_rate=1e-3,x"], "--learning_rate takes numbers with commas"),
        (harvest, ["--worker=4/4"], "--worker is an index from 0 on and a count"),
        (harvest, ["--worker=²/4"], "--worker is an index from 0 on and a count"),
        # Contradictory.
        (train, ["--l0_targets=5", "--coefficients=1e-3"], "--coefficients and --l0_targets exclude each other"),
        (train, ["--coefficient=1e-3", "--coefficients=1e-3"], "--coefficient is for runs with --l0_targets"),
        (train, ["--penalty=quadratic", "--coefficients=1e-3"], "--penalty=quadratic goes with --l0_targets"),
        (train, ["--controller=0.1", "--coefficients=1e-3"], "fixed lambdas, which --controller would move"),
        (train, ["--autoencoder=topk", "--l0_targets=100", "--width=64"], "--l0_targets=100 is more than the 64"),
        (train, ["--autoencoder.k=100", "--autoencoder=topk", "--width=64,128"], "--autoencoder.k=100 is more than"),
        (train, ["--width=128,8"], "--l0_targets=40 is more than the 8 latents of an autoencoder"),
        (train, ["--skip"], "--skip is for transcoders: it goes with --site_out"),
        (train, ["--crosscoder", "--site_out=layer_3/mlp_out"], "--crosscoder reconstructs what it reads"),
        (train, ["--topology=v5e:4x4"], "--topology is for --estimate_only"),
        (train, ["--estimate_only", "--distributed"], "--estimate_only is for one process"),
        (train, ["--train_sites=a,a"], "--train_sites takes different sites, got 'a,a'"),
        (scope, ["--coefficients=1e-3", "--l0_targets=5"], "exclude each other"),
        (scope, ["--store_dir=x"], "--store_dir is for the single steps"),
        (scope, ["--worker=1/2"], "--worker is for the launch harvest"),
        (scope, ["--distributed"], "--distributed is for the launch train"),
        (scope, ["--only_model_turns"], "--only_model_turns is for chats, and the shipped text has none"),
        (harvest, ["--corpus=a.txt", "--held_out=./a.txt"], "--held_out and --corpus are both a.txt"),
        (generate, [], "a prompt is missing: give --prompt"),
        (generate, ["--prompt=a", "--latent=3"], "--latent and --strength go with --sae"),
        (generate, ["--prompt=a", "--sae=x", "--latent=3"], "--sae goes with --latent and --strength"),
        (generate, ["--prompt=a", "--site=layer_1/mlp_out"], "--site is for an autoencoder"),
        (generate, ["--prompt=a", "--top_k=5"], "they go with a --temperature above 0"),
        (generate, ["--prompt=a", "--temperature=1", "--top_p=1.5"], "--top_p must be above 0 and at most 1, got 1.5"),
        # Without effect.
        (
            train,
            ["--corpus=a.txt"],
            "--corpus has no effect here: training reads rows, and its store says which text",
        ),
        *((train, [f"--{flag}"], f"--{flag.split('=')[0]} has no effect here") for flag in IN_VAIN),
        (train, ["--model=a"], "--model has no effect here: training reads rows, and its store says which model"),
        (train, ["--estimate_only", "--store_dir=a", "--model=a"], "--model has no effect here"),
        (evaluate, ["--max_sequences=5"], "--max_sequences has no effect here: nothing is harvested"),
        (explore, ["--max_sequences=5"], "--max_sequences has no effect here: nothing is harvested"),
        (explore, ["--explainer=token"], "no explainer is named 'token': did you mean tokens?"),
        (harvest, ["--eval_sequences=5"], "--eval_sequences has no effect here"),
        (
            inspect_store,
            ["--verify", "--seed=3"],
            "--seed has no effect here: it is for a harvest, and without --repair nothing",
        ),
        (inspect_store, ["--sites=layer_1/mlp_out"], "--sites has no effect here: it is for a harvest"),
        (inspect_store, ["--skip_bad"], "--skip_bad has no effect here: it is for a harvest"),
        (generate, ["--prompt=a", "--seed=3"], "--seed has no effect here: nothing is drawn at --temperature=0"),
        (generate, ["--prompt=a", "--temperature=1", "--seed=4294967296"], "--seed is from 0 to 4294967295 here"),
        # Of another launch.
        (evaluate, ["--width=64"], "--width has no effect in this launch; it is a flag of train"),
        (generate, ["--prompt=a", "--length=64"], "--length has no effect in this launch; it is a flag of common"),
        (harvest, ["--site=layer_3/mlp_out"], "--site has no effect in this launch; it is a flag of autoencoders"),
        (scope, ["--pages_dir=x"], "--pages_dir has no effect in this launch; it is a flag of explore"),
    ],
)
def test_refused_by_name(given, module, argv, message):
    with pytest.raises((flags.Error, ValueError), match=re.escape(message)):
        given(module, *argv)


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        (train, ["--matryoshka=", "--coefficients=1e-3", "--penalty=linear"]),
        (train, ["--l0_targets=5", "--coefficient=1e-3", "--estimate_only", "--topology=v5e:4x4"]),
        (scope, ["--worker=0/1", "--nodistributed", "--corpus=a.txt", "--held_out=b.txt", "--overwrite"]),
        (generate, ["--prompt=", "--prompt= ", "--temperature=0.8", "--top_k=5"]),
        (evaluate, ["--site=layer_3/mlp_out", "--saes_dir=x", "--corpus=a", "--only_model_turns"]),
        (inspect_store, ["--repair", "--store_dir=x", "--sites=layer_1/*", "--noexpanded_cache"]),
    ],
)
def test_taken(given, module, argv):
    given(module, *argv)


def test_a_flag_that_is_no_number_is_refused_in_the_words_of_the_others():
    for value, words in (("--steps=abc", "a whole number, got 'abc'"), ("--top_p=x=y", "a number, got 'x=y'")):
        with pytest.raises(flags.Error) as error:
            flags.FLAGS(["program", value])
        name = value.partition("=")[0]
        assert running._without_python(str(error.value)) == f"{name} takes {words}"
    assert running._without_python("--worker is") == "--worker is"


def test_warnings_of_ours_are_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    running.say_warnings("sae")
    warnings.showwarning(sae.TrainingWarning("Raise bandwidth"), sae.TrainingWarning, "train.py", 7)
    assert capsys.readouterr().err == "warning: Raise bandwidth\n"


def test_a_refused_flag_is_one_line_and_exit_status_2(tmp_path):
    """In a process, in an empty folder: nothing is written."""
    command = [sys.executable, "-m", "experiments.harvest", "--store_dir=", "--sites=layer_1/mlp_out"]
    process = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert process.returncode == 2 and not list(tmp_path.iterdir())
    assert process.stderr.startswith("error: --store_dir is empty: give a value") and process.stderr.count("\n") == 1


READMES = [ROOT / name / "README.md" for name in ("", "gemma", "sae", "sae/store", "sae/trainer", "experiments")]
TEXT = "\n".join(readme.read_text(encoding="utf-8") for readme in READMES)
COMMANDS = re.findall(r"python -m experiments\.(\w+)( [^`{]*)?`", TEXT)
ESTIMATE = next(argv.split() for name, argv in COMMANDS if "--estimate_only" in argv)


@pytest.mark.parametrize(("name", "argv"), [one for one in COMMANDS if one[0] != "benchmarks"])
def test_the_readmes_commands_are_taken_as_typed(given, name, argv):
    if "--help" not in argv:
        given(importlib.import_module(f"experiments.{name}"), *shlex.split(argv))


def test_the_readmes_estimate_needs_no_store_and_says_what_it_lacks(tmp_path):
    """As typed, in a folder without a store; with libtpu it prints the estimate."""
    assert "--topology=v5e:16x16" in ESTIMATE
    command = [sys.executable, "-m", "experiments.train", *ESTIMATE]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if topologies.missing():
        assert (process.returncode, process.stderr.count("\n")) == (1, 1)
        assert process.stderr.startswith("error: libtpu is not installed: pip install 'jax[tpu]'"), process.stderr
    else:
        assert process.returncode == 0 and "256 x TPU v5 lite, mesh 16 data x 16 latent" in process.stdout, (
            process.stderr
        )
    assert not list(tmp_path.iterdir())


def test_an_estimate_without_a_store_is_about_sites_of_the_model(given, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(topologies, "chips", lambda topology: jax.devices()[:8])
    small = (
        "--width=64",
        "--l0_targets=5",
        "--latent_devices=4",
        "--batch_size=64",
        "--train_sites=layer_12/resid_post",
    )
    given(train, *(flag for flag in ESTIMATE if "latent_devices" not in flag), "--model=gemma2-2b", *small)
    train.estimate_only()
    printed = capsys.readouterr().out
    assert printed.startswith("1 autoencoder at layer_12/resid_post of gemma2-2b\n8 x cpu, mesh 2 data x 4 latent\n")
    assert "450 steps, 28,800 tokens, 0.3 GB to read" in printed  # of 2304 float32 numbers each, no epochs over rows
    given(train, "--train_sites=layer_99/resid_post")
    with pytest.raises(ValueError, match="in gemma2-2b: it has layer_0/resid_post to layer_25/resid_post"):
        train.estimate_only()


@pytest.mark.parametrize("launch", [evaluate, explore])
def test_the_help_says_which_defaults_are_the_records(launch):
    words = " ".join(running._help(launch.main, True).split())
    assert "--length: Tokens of a sequence, BOS included. Default: the record's; without one, 256." in words
    assert "or a hub id. Default: the record's; without one, gemma2-tiny." in words
    assert "Default: the record's" not in running._help(harvest.main, True)


def test_an_estimate_says_beforehand_what_training_would_warn_of(given, monkeypatch, tmp_path, capsys):
    """As `sae.train` does before its first step: here of a warm-up longer than the 450 steps."""
    monkeypatch.chdir(tmp_path)
    small = ("--width=64", "--l0_targets=5", "--batch_size=64", "--train_sites=layer_1/mlp_out")
    given(train, "--estimate_only", *small, "--learning_rate_warmup=900")
    with pytest.warns(sae.TrainingWarning, match="the learning rate is warmed up over 900 steps, and the run has 450"):
        train.estimate_only()
    assert "450 steps, 28,800 tokens" in capsys.readouterr().out


def test_a_target_above_the_width_that_follows_from_the_activations_is_refused_in_flags(given):
    given(train, "--l0_targets=20")
    with pytest.raises(ValueError, match="--l0_targets=20 is more than the 16 latents of an autoencoder: lower it"):
        train.configs({"layer_1/mlp_out": 2})
