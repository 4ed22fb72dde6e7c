"""Flags that are made from the parts of a run: kinds by name, fields with the name of their part or without, help."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import commands, evaluate, explore, helping, part_flags, run_words, running, scope, train
from sae.architectures import ARCHITECTURES, BatchTopK, JumpReLU, ReLU, TopK
from sae.families import FAMILIES
from sae.objectives import Matryoshka
from sae.sparsity import L1, TERMS, Frequency, Linear, Quadratic, Revival
from tests.experiments.checking import check
from tests.registering import registered

ROOT = Path(__file__).parents[2]
SITE = "layer_1/mlp_out"


@pytest.fixture
def runs_of():
    """A function of flags of `train` to the runs that they describe, after the launch's checks."""

    def runs(*argv):
        for name in flags.FLAGS:  # of the call before
            flags.FLAGS[name].unparse()
        check(train, *argv)
        return train.configs({SITE: 64})

    with flagsaver.flagsaver():
        yield runs


def test_every_field_of_every_part_has_a_flag_with_its_meaning():
    kinds = [(place, kind) for place, family in FAMILIES.items() for kind in family.registry.values()]
    names = {f"{place}.{field.name}" for place, kind in kinds for field in dataclasses.fields(kind)}
    assert names | {name.rpartition(".")[2] for name in names} - {"l0_target", "learning_rate"} <= set(train.FIELDS)
    assert {*FAMILIES, "batch_size", "dead_tokens", "site_out"} <= set(train.FIELDS)
    for name in ("beta2", "optimizer.beta2", "adam.beta2"):
        assert flags.FLAGS[name].help == "Decay of the second moment. Default: the recipe's (by itself: 0.999)."
    assert flags.FLAGS["controller"].help.startswith("How fast lambda follows")
    assert "\n" not in flags.FLAGS["controller"].help


def test_a_warm_up_is_a_number_or_a_share_of_the_run(runs_of):
    (run, *_) = runs_of("--coefficient_warmup=1/8", "--learning_rate_warmup=7", "--controller=0.01", "--steps=80")
    assert (run.warm_from, run.optimizer.learning_rate_warmup, run.sparsity[0].controller) == (10, 7, 0.01)
    for wrong in ("a/b", "0.5", "1/0"):
        with pytest.raises(flags.Error) as error:
            flags.FLAGS(["program", f"--coefficient_warmup={wrong}"])
        words = f"--coefficient_warmup takes a whole number, or a share of the run such as 1/4, got {wrong!r}"
        assert running._without_python(" ".join(str(error.value).split())) == words


def test_the_flag_of_a_field_has_its_parts_name_before_it_or_not(runs_of):
    runs = runs_of("--sparsity.l0_target=40", "--optimizer.learning_rate=1e-3,2e-3", "--optimizer.beta2=0.5")
    assert [run.optimizer.learning_rate for run in runs] == [1e-3, 2e-3]
    assert {(run.l0_target, run.optimizer.beta2) for run in runs} == {(40.0, 0.5)}
    names = [folder.name for folder in train.folders_of(runs, Path("saes"))]
    assert names == [f"target_l0_40_learning_rate_{rate}_beta2_0.5" for rate in (0.001, 0.002)]


def test_short_names_stay(runs_of):
    (run,) = runs_of("--beta2=0.75", "--matryoshka=0.25,0.5", "--l0_targets=9", "--nocentre", "--precision=high")
    assert (run.optimizer.beta2, run.inputs.centre) == (0.75, False)
    assert run.objective == Matryoshka(matryoshka=(0.25, 0.5), precision="high")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--autoencoder=topk", "--l0_targets=5,20"], [(TopK(k=5), ()), (TopK(k=20), ())]),
        (["--autoencoder=topk", "--autoencoder.k=32"], [(TopK(k=32), ())]),
        (["--autoencoder=batchtopk", "--k=3.5", "--aux_k=9"], [(BatchTopK(k=3.5, aux_k=9), ())]),
        (["--autoencoder=topk", "--recipe=gemma_scope"], [(TopK(), ())]),  # which has no target
        (
            ["--autoencoder=relu", "--sparsity=l1", "--coefficients=0.5,2"],
            [(ReLU(), (L1(0.5, Fraction(1, 4)),)), (ReLU(), (L1(2.0, Fraction(1, 4)),))],
        ),
    ],
)
def test_an_architecture_is_chosen_by_its_name(runs_of, argv, expected):
    runs = runs_of(*argv)
    assert [(run.autoencoder, run.sparsity) for run in runs] == expected
    assert not run_words.about("short_run", runs[0]).count("theta")


def test_terms_objective_and_finish_are_chosen_by_their_names(runs_of):
    (run,) = runs_of("--sparsity=quadratic,frequency", "--l0_targets=9", "--objective=matryoshka", "--finish=")
    # The constants are those that the recipe has for a quadratic penalty.
    assert run.sparsity == (Quadratic(3e-3, Fraction(1, 4), 9.0, Fraction(1, 24)), Frequency())
    assert (run.objective, run.finish) == (Matryoshka(), ())
    (folder,) = train.folders_of([run], Path("saes"))
    assert folder.name == "target_l0_9_objective_matryoshka_sparsity_quadratic+frequency_finish_none"
    (run,) = runs_of("--sparsity=linear,l1", "--objective=reconstruction", "--linear.coefficient=3", "--finish=largest")
    assert run.sparsity == (Linear(3.0, Fraction(1, 4)), L1(0.1, Fraction(1, 4)))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        # Under two names, or twice.
        (["--beta2=0.5", "--optimizer.beta2=0.5"], "--beta2 and --optimizer.beta2 are the same: give one of them"),
        (["--revival=1", "--sparsity.revival=1"], "--revival and --sparsity.revival are the same: give one of them"),
        (["--l0_targets=4", "--sparsity.l0_target=3"], "--l0_targets and --sparsity.l0_target are the same"),
        (["--learning_rate=1", "--adam.learning_rate=1"], "--learning_rate and --adam.learning_rate are the same"),
        (["--sparsity=l1,l1"], "--sparsity takes different kinds, got 'l1,l1'"),
        # Contradictory.
        (["--sparsity=linear", "--penalty=linear"], "--penalty and --sparsity both say what makes latents sparse"),
        (["--autoencoder=topk", "--k=3", "--l0_targets=3"], "--k and --l0_targets both say how many latents a token"),
        (["--sparsity=quadratic", "--coefficients=3"], "--sparsity=quadratic goes with --l0_targets"),
        (
            ["--sparsity=linear", "--l0_targets=3"],
            "--sparsity=controlled, --sparsity=quadratic or --sparsity=controlled_tanh",
        ),
        (["--sparsity.coefficient=1", "--coefficients=1"], "--coefficient is for runs with --l0_targets"),
        (["--sparsity=quadratic,controlled"], "--l0_targets belongs to several parts of the run: give one of"),
        (["--autoencoder.skip"], "--skip is for transcoders: it goes with --site_out"),
        (
            ["--autoencoder=relu"],
            "--autoencoder=relu has no gradient of the L0, through which the term controlled acts",
        ),
        (["--autoencoder=relu", "--l0_targets=5"], "give --sparsity=controlled_l1, say"),  # `l1` has no target
        (["--autoencoder=gated", "--coefficients=0.5"], "give --sparsity=l1, say"),
        # Of a part that the run does not have.
        (
            ["--k=5"],
            "--k belongs to a part that the run does not have: it goes with --autoencoder=batchtopk or --autoencoder",
        ),
        (["--autoencoder.decay=0.5"], "does not have: it goes with --autoencoder=batchtopk"),
        (
            ["--quadratic.coefficient=5"],
            "--quadratic.coefficient belongs to a part that the run does not have: it goes with",
        ),
        (["--finish=", "--largest_tokens=5"], "--largest_tokens belongs to a part that the run does not have"),
        (["--objective=reconstruction", "--matryoshka=0.5"], "it goes with --objective=matryoshka"),
        (["--coefficients=1e-3", "--controller=0"], "--controller belongs to a part that the run does not have"),
        (["--autoencoder=topk", "--coefficients=1"], "--coefficients belongs to a part that the run does not have"),
        (
            ["--sparsity=quadratic,l1", "--coefficient=3"],
            "--coefficient belongs to several parts of the run: give --quadratic.coefficient or --l1.coefficient",
        ),
        # No value.
        (["--autoencoder=topkk"], "--autoencoder: no architecture is named 'topkk': did you mean topk?"),
        (["--autoencoder="], "--autoencoder is empty"),
        (["--sparsity=l1,,tanh"], "--sparsity has an empty entry"),
        (["--optimizer.beta2=nan"], "--optimizer.beta2 takes a finite number"),
        (["--optimizer.beta2=x"], "--optimizer.beta2=x: takes a number, got 'x'"),
        (["--matryoshka=0.5,x"], "takes numbers with commas between them, got 'x'"),
        (["--aux_k=1.5"], "takes a whole number, got '1.5'"),
    ],
)
def test_flags_that_say_nothing_of_the_run_or_two_things_are_refused_by_name(runs_of, argv, message):
    with pytest.raises((flags.Error, ValueError), match=re.escape(message)):
        check(train, *argv)


def test_a_part_flag_that_does_not_exist_is_refused_with_near_names(runs_of):
    with pytest.raises(flags.Error, match=r"flag 'optimizer\.beta'\. Did you mean: .*optimizer\.beta"):
        check(train, "--optimizer.beta=0.5")
    with pytest.raises(flags.Error, match=r"--optimizer\.beta2 has no effect in this launch; it is a flag of train"):
        check(evaluate, "--optimizer.beta2=0.5")


@dataclasses.dataclass(frozen=True)
class Deeper(JumpReLU):
    """An architecture of a user's.

    Attributes:
        depth: how deep it is.
        steps: of its own; a flag of this name exists already.
    """

    depth: int = 2
    steps: int = 3


@dataclasses.dataclass(frozen=True)
class Doubled(Revival):
    """A term of a user's.

    Attributes:
      revival: twice.
      exponents: several numbers.
    """

    exponents: tuple[float, ...] = (1.0,)


@pytest.fixture
def mine(runs_of):
    """Two kinds that a user registers after the import of the launch, without a change to a file of the library."""
    before = set(train.FIELDS)
    with registered((ARCHITECTURES, "deeper", Deeper), (TERMS, "doubled", Doubled)):
        yield runs_of
    for name in set(train.FIELDS) - before:
        del train.FIELDS[name]
        delattr(flags.FLAGS, name)
    part_flags.define()


def test_kinds_that_a_user_registers_have_flags(mine):
    argv = ("--autoencoder=deeper", "--depth=5", "--deeper.steps=7", "--sparsity=doubled", "--exponents=1,2.5")
    (run,) = mine(*argv, "--steps=90", "--doubled.revival=0.5")
    assert (run.autoencoder.depth, run.autoencoder.steps, run.steps) == (5, 7, 90)
    assert run.sparsity == (Doubled(0.5, (1.0, 2.5)),)
    assert flags.FLAGS["depth"].help == "How deep it is. Default: the recipe's (by itself: 2)."
    printed = run_words.described(train._examples())
    assert "--autoencoder=deeper: An architecture of a user's.\n" in printed
    assert "    --autoencoder.depth: How deep it is. (in no recipe; by itself 2)\n" in printed
    assert "deeper" in flags.FLAGS["autoencoder"].help
    with pytest.raises(
        ValueError, match="--depth belongs to a part that the run does not have: it goes with --autoencoder=de"
    ):
        mine("--depth=5")


def names_in(text):
    return re.findall(r"(?m)^ +--(?:\[no\])?([\w.]+)[:=]", text.partition("flags:\n")[2])


def help_of(module, full):
    names = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(module.__name__)]
    return helping.text(module.__doc__, names, getattr(module, "REFUSED", ()), full)


@pytest.mark.parametrize("launch", commands.LAUNCHES)
def test_help_is_of_thirty_flags_at_most_and_the_full_help_of_all(launch):
    module = importlib.import_module(f"experiments.{launch}")
    few, full = (names_in(help_of(module, full)) for full in (False, True))
    assert len(few) <= 30 and set(few) < set(full) | {"batch_size", "site_out"}
    key = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module.__name__)}
    refused = set(getattr(module, "REFUSED", ()))
    assert not set(full) & refused and {name for name in key - refused if name not in train.FIELDS} <= set(full)


def test_the_help_of_the_whole_way_has_what_is_set_often():
    names = set(names_in(help_of(scope, False)))
    assert {"corpus", "l0_targets", "out_dir", "recipe", "width", "autoencoder", "sparsity"} <= names
    assert not names & {
        "store_dir",
        "saes_dir",
        "worker",
        "estimate_only",
        "crosscoder",
        "distributed",
        "topology",
        "beta2",
    }


def test_the_full_help_has_every_field_of_every_part_with_the_recipes_values():
    printed = help_of(scope, True)
    for place, family in FAMILIES.items():
        for name, kind in family.registry.items():
            assert f"\n  --{place}={name}: " in printed
            meanings = part_flags.meanings(kind)
            for field in dataclasses.fields(kind):
                assert f"{place}.{field.name}: {meanings[field.name][:20]}" in printed
    words = " ".join(printed.split())
    # As the recipes' sources have them (sae/recipes.py, and arXiv 2408.05147 for gemma_scope).
    beta2 = "--optimizer.beta2: Decay of the second moment. (short_run 0.99, gemma_scope 0.999, gemma_scope_2 0.999)"
    assert beta2 in words and "--autoencoder.bandwidth: Eps" in words and "short_run 0.02, gemma_scope 0.001" in words
    assert "--batch_size: Tokens of a step. (short_run 1024, gemma_scope 4096, gemma_scope_2 4096)" in words
    assert "width. (gemma_scope_2 0.03125,0.125,0.25,0.5)" in words and "in no recipe; by itself 0.99)" in words
    assert "optimizer.beta2" not in help_of(explore, True)


def test_a_users_script_that_registers_a_kind_has_its_flags_and_help_ends_with_status_0(tmp_path):
    """As a launch would be run: in a process, in a folder of the user's."""
    (tmp_path / "mine.py").write_text(
        '"""Trains mine."""\n'
        "import dataclasses\n"
        "from experiments import running, train\n"
        "from sae.sparsity import Revival, register\n"
        "@register('mine')\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine(Revival):\n"
        "    pull: float = 1.5\n"
        "running.run(train.main, train.check_flags)\n"
    )
    command = [sys.executable, "mine.py", "--help", "--mine.pull=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert "--helpfull lists all flags." in process.stdout and ", mine. Default: the recipe's." in " ".join(
        process.stdout.split()
    )
    assert len(names_in(process.stdout)) <= 30
