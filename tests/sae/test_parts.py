"""Parts check themselves, say by their types which numbers may differ in one program, and go to JSON and back."""

import dataclasses
import json
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest

import sae
from sae.architectures import BatchTopK, ReLU, TopK
from sae.families import FAMILIES, recorded_fields
from sae.objectives import Matryoshka
from sae.parts import Number, Part, Steps, number_names, numbers_of, steps_of
from sae.registry import Registry
from sae.runs import Run
from sae.sparsity import TERMS, Controlled, Frequency, Linear, Quadratic, Revival
from tests.registering import registered

KINDS = [kind for family in FAMILIES.values() for kind in family.registry.values()]


@dataclasses.dataclass(frozen=True)
class Sample(Part):
    """In no family but its own."""

    registry = Registry("sample")

    strength: Number = 2.0
    power: float = 3.0
    turns: int = 1

    def of(self, x):
        return self.strength * x**self.power


@dataclasses.dataclass(frozen=True)
class Named(Part):
    """With texts that look like shares of a run."""

    registry = Registry("named sample")

    label: str = "a"
    labels: tuple[str, ...] = ()
    maybe: str | None = None
    wait: Steps = 1
    shares: tuple[Fraction, ...] = ()


def test_texts_of_text_fields_stay_texts_in_json():
    part = Named("1/2", ("1/2", "3/4"), "0/1", Fraction(1), (Fraction(1, 2), Fraction(3)))
    with registered((Named.registry, "named", Named)):
        back = Named.of_json(json.loads(json.dumps(part.json())))
    assert back == part and isinstance(back.wait, Fraction) and isinstance(back.label, str)
    for sites in ({"site": "1/2"}, {"site": ("1/2", "2/3")}, {"site": "a", "site_out": "3/4"}):
        run = Run(**sites, width=64, steps=100, dead_tokens=Fraction(1))
        back = Run.of_json(json.loads(json.dumps(run.json())))
        assert back == run and isinstance(back.dead_tokens, Fraction)


def test_a_field_of_texts_and_fractions_is_refused_when_a_part_is_made():
    @dataclasses.dataclass(frozen=True)
    class Both(Part):
        value: str | Fraction = "a"

    with pytest.raises(TypeError, match="Both: value takes texts and fractions, which JSON cannot tell apart"):
        Both()


def test_numbers_are_found_from_their_types():
    assert number_names(Sample) == ("strength",)
    assert jax.tree.leaves(Sample(strength=5.0)) == [5.0]
    assert jax.tree.structure(Sample(strength=5.0)) == jax.tree.structure(Sample(strength=6.0))
    assert jax.tree.structure(Sample(power=5.0)) != jax.tree.structure(Sample(power=6.0))
    for kind in KINDS:
        floats = {f.name for f in dataclasses.fields(kind) if f.type is Number}
        assert set(number_names(kind)) == floats


def test_parts_that_differ_in_numbers_alone_share_one_program_and_read_their_own():
    traced = []

    @jax.jit
    def program(part, x):
        traced.append(part)
        return part.of(x)

    for strength in (2.0, 7.0):
        assert program(numbers_of(Sample(strength)), 2.0) == strength * 8
    assert len(traced) == 1
    program(numbers_of(Sample(power=2.0)), 2.0)
    assert len(traced) == 2


def test_annotations_that_are_texts_are_refused():
    Odd = dataclasses.make_dataclass("Odd", [("k", "Number", 1.0)], bases=(Part,), frozen=True)
    with pytest.raises(TypeError, match="Odd: the annotations of a part have to be types, not texts"):
        Odd()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_part_has_few_fields_each_with_a_meaning_and_comes_back_from_json(kind):
    fields = [field.name for field in dataclasses.fields(kind)]
    assert len(fields) <= 8
    for name in fields:
        assert re.search(rf"\n +{name}: ", kind.__doc__), f"{kind.__name__} does not say what {name} means"
    part = kind()
    assert kind.of_json(json.loads(json.dumps(part.json()))) == part


def test_a_run_comes_back_from_json_and_its_record_has_its_fields_by_name():
    run = Run("s", 64, 100, sparsity=(Controlled(l0_target=8.0), Revival()), dead_tokens=Fraction(1, 20))
    facts = json.loads(json.dumps(run.json()))
    assert Run.of_json(facts) == run and facts["sparsity"][0]["controller"] == "1/24"
    recorded = recorded_fields({"run": facts})
    assert recorded["l0_target"] == 8.0 and recorded["sparsity"] == "controlled+revival"
    assert set(recorded) == set(run.fields())
    # Of earlier versions, a flat table.
    assert recorded_fields({"config": {"l0_target": 5.0}})["l0_target"] == 5.0 and recorded_fields({}) == {}
    with pytest.raises(ValueError, match="a run of format 1, and this version reads format 2"):
        Run.of_json({"site": "s", "width": 64})


def test_a_share_of_the_run_follows_its_steps_and_a_number_stays():
    run = Run("s", 64, 600, batch_size=10, dead_tokens=Fraction(1, 20), sparsity=(Linear(8e-4, Fraction(1, 4)),))
    assert (run.warm_from, run.sizes.dead_tokens) == (150, 300)
    longer = dataclasses.replace(run, steps=6000)
    assert (longer.warm_from, longer.sizes.dead_tokens) == (1500, 3000)
    assert dataclasses.replace(run.replace(coefficient_warmup=7), steps=6000).warm_from == 7
    assert steps_of(Fraction(1, 20), 10, least=1) == 1 and steps_of(0, 10, least=1) == 0


def test_a_controllers_share_is_a_rate_of_a_twentieth_at_most():
    controlled = Controlled(l0_target=4.0)
    assert controlled.rate(600) == 24 / 600 and controlled.rate(100) == 0.05
    assert dataclasses.replace(controlled, controller=0.3).rate(100) == 0.3


def test_a_change_goes_to_the_part_that_has_the_field():
    run = Run("s", 64, 100).replace(learning_rate=1e-3, coefficient=0.5, seed=7, bandwidth=0.2)
    assert (run.optimizer.learning_rate, run.sparsity[0].coefficient, run.seed) == (1e-3, 0.5, 7)
    assert run.autoencoder.bandwidth == 0.2 and run.replace() == run


def test_a_field_that_no_part_has_brings_in_the_one_kind_that_has_it():
    run = Run("s", 64, 100).replace(precision="high", matryoshka=(0.25,), revival=0.5, frequency_factor=0.2)
    assert run.objective == Matryoshka(matryoshka=(0.25,), precision="high")
    assert run.sparsity == (Linear(), Revival(0.5), Frequency(0.2))
    with pytest.raises(
        ValueError,
        match=r"no part has a field 'l0_target', but the kinds ControlledL1, Controlled, Quadratic, .* have it: give",
    ):
        run.replace(l0_target=3.0)
    with pytest.raises(ValueError, match=r"JumpReLU has no field 'decay', which BatchTopK has: to change the arch"):
        run.replace(decay=0.9)
    with pytest.raises(ValueError, match=r"Run has no field 'l0_tagret', and no part has it: did you mean l0_target\?"):
        run.replace(l0_tagret=3.0)
    two = dataclasses.replace(run, sparsity=(Linear(), Quadratic(l0_target=4.0)))
    with pytest.raises(ValueError, match=r"several parts \(sparsity, sparsity\) have a field 'coefficient'"):
        two.replace(coefficient=1.0)
    assert two.fields()["quadratic.coefficient"] == 6e-4


def test_names_with_a_dot_are_taken_as_fields_has_them_and_after_the_name_of_a_part():
    run = Run("s", 64, 100, sparsity=(Linear(), Quadratic(l0_target=4.0), Revival()))
    fields = run.fields()
    assert "quadratic.coefficient" in fields and "quadratic.coefficient_warmup" in fields
    assert run.replace(**{name: value for name, value in fields.items() if "." in name}) == run
    other = run.replace(
        **{"quadratic.coefficient": 1, "optimizer.beta2": 0.5, "adam.beta1": 0.25, "linear.coefficient": 2}
    )
    assert [term.coefficient for term in other.sparsity[:2]] == [2.0, 1.0]
    assert (other.optimizer.beta1, other.optimizer.beta2) == (0.25, 0.5)
    with pytest.raises(ValueError, match=r"or give linear\.coefficient or quadratic\.coefficient"):
        run.replace(**{"sparsity.coefficient": 1.0})
    with pytest.raises(
        ValueError, match=r"'beta2' and 'optimizer\.beta2' are the same field of Adam: give one of them"
    ):
        run.replace(beta2=0.5, **{"optimizer.beta2": 0.6})
    with pytest.raises(
        ValueError, match=r"Run has no field 'objective\.beta2', and no part has it: did you mean .*beta2"
    ):
        run.replace(**{"objective.beta2": 0.5})


def test_the_target_of_a_run_is_the_k_of_an_architecture_that_keeps_k_latents():
    """It is in `run.l0_target`; given to `replace` or to a recipe beside such an architecture, it got lost."""
    run = Run("s", 64, 100, autoencoder=TopK(k=4), sparsity=())
    assert run.replace(l0_target=9.0) == Run("s", 64, 100, autoencoder=TopK(k=9), sparsity=())
    assert run.replace(autoencoder=BatchTopK(), l0_target=9.5).autoencoder.k == run.replace(l0_target=9).l0_target + 0.5
    with pytest.raises(ValueError, match=r"TopK: k must be a whole number, got 9\.5"):
        run.replace(l0_target=9.5)
    with pytest.raises(ValueError, match="'l0_target' and 'k' are the same field of TopK: give one of them"):
        run.replace(l0_target=9.0, k=9)


def test_a_kind_by_name_has_its_defaults_and_what_it_has_in_common_with_the_part_before():
    run = Run("s", 64, 100, sparsity=(Controlled(0.5, Fraction(1, 8), 8.0), Revival(0.25)))
    terms = run.replace(sparsity=("quadratic", "revival", Frequency(0.3))).sparsity
    # A share of the run and its target hold for every term; a coefficient is of its own.
    assert terms == (Quadratic(6e-4, Fraction(1, 8), 8.0, Fraction(1, 24)), Revival(0.25), Frequency(0.3))
    kept = run.replace(autoencoder="topk", k=7)
    assert (kept.autoencoder, kept.sparsity) == (TopK(k=7), ())  # terms through the L0 would change nothing
    assert kept.replace(autoencoder="batchtopk").autoencoder == BatchTopK(k=7.0)
    assert kept.replace(autoencoder="batchtopk").replace(autoencoder="topk") == kept
    assert run.replace(precision="high", objective="matryoshka").objective == Matryoshka(precision="high")
    assert run.replace(autoencoder="jumprelu") == run
    with pytest.raises(ValueError, match="no architecture is named 'topkk': did you mean topk"):
        run.replace(autoencoder="topkk")
    # The term that it advises has the target that the run has.
    with pytest.raises(ValueError, match=r"no gradient in a ReLU.* sparsity=\(ControlledL1\(l0_target=8\),\)"):
        run.replace(autoencoder="relu")
    with pytest.raises(ValueError, match=r"no gradient in a ReLU.* sparsity=\(L1\(\.\.\.\),\)"):
        Run("s", 64, 100).replace(autoencoder="relu")
    assert run.replace(autoencoder="relu", sparsity=("controlled_l1",)).l0_target == 8.0
    with pytest.raises(
        ValueError, match="Reconstruction has no field 'matryoshka', which Matryoshka has: to change it"
    ):
        run.replace(objective="reconstruction", matryoshka=(0.25,))
    with pytest.raises(ValueError, match=r"a run with finish=\(\) has no field 'largest_tokens', which LargestAct"):
        run.replace(finish=(), largest_tokens=5)
    with pytest.raises(ValueError, match="sparsity is a tuple of parts, got the text 'l1': put it in a tuple"):
        run.replace(sparsity="l1", seed=1, beta1=0.5)


def test_a_kind_without_defaults_is_made_of_the_fields_that_are_given():
    @dataclasses.dataclass(frozen=True)
    class Demanding(Revival):
        """A term that leaves its power to the user.

        Attributes:
          revival: as of `Revival`.
          power: without a default.
        """

        power: float = dataclasses.field(kw_only=True)

    with registered((TERMS, "demanding", Demanding)):
        run = Run("s", 64, 100)
        assert run.replace(sparsity=("demanding",), **{"demanding.power": 2}).sparsity == (Demanding(power=2.0),)
        with pytest.raises(ValueError, match=r"Demanding has no default for power: give sparsity\.power"):
            run.replace(sparsity=("demanding",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Run("s", 64.5, 10), "Run: width must be a whole number, got 64.5"),
        (lambda: Run("s", 64, 10, sparsity=Linear()), r"sparsity is a tuple of parts, got .*: put it in a tuple"),
        (lambda: Run("s", 64, 10, sparsity=(Matryoshka(),)), r"sparsity takes parts of the kinds .*linear.*; got"),
        (lambda: Run("s", 64, 10, objective="matryoshka"), r"objective takes parts of the kinds .*; got the text"),
        (
            lambda: Run("s", 64, 10, autoencoder="relu"),
            r"got the text 'relu'\. A kind's name is .* run\.replace.*sae\.short_run\(\.\.\., autoencoder='relu'\)",
        ),
        (
            lambda: Run("s", 64, 10, sparsity=("l1",)),
            r"got the text 'l1'\. A kind's name is .* run\.replace.*sae\.short_run\(\.\.\., sparsity=\('l1',\)\)",
        ),
        (
            lambda: Run("s", 64, 10, autoencoder=TopK(k=4)),
            "Linear acts through the L0, .* no gradient in a TopK",
        ),
        (lambda: Run("s", 64, 10, autoencoder=ReLU(), sparsity=(Frequency(),)), "Frequency acts through the L0, which"),
        (lambda: Run("s", 48, 10, objective=Matryoshka()), "the width must be a multiple of 32, got 48"),
        (lambda: Linear(coefficient="1"), "Linear: coefficient must be a number, got '1'"),
        (lambda: Linear(coefficient_warmup=0.5), "coefficient_warmup must be a whole number or a fraction such as"),
        (lambda: Controlled(controller=0.0), "takes no notice of l0_target: set controller"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_leaves_become_float32():
    (leaf,) = jax.tree.leaves(numbers_of(Sample(2)))
    assert leaf.dtype == jnp.float32


def test_kinds_by_name_keep_the_l0_that_the_run_aimed_at():
    run = sae.short_run("s", 64, 100, l0_target=8)
    changes = (
        {"sparsity": ("quadratic",)},
        {"sparsity": ("controlled_tanh", "revival")},
        {"autoencoder": "relu", "sparsity": ("controlled_l1",)},
        {"autoencoder": "topk"},
        {"autoencoder": "batchtopk"},
    )
    assert [run.replace(**change).l0_target for change in changes] == [8.0] * 5
    assert [run.replace(**change, l0_target=4).l0_target for change in changes] == [4.0] * 5
    kept = run.replace(autoencoder="topk")
    assert (kept.autoencoder.k, kept.sparsity, kept.replace(autoencoder="batchtopk").autoencoder.k) == (8, (), 8)
    two = sae.gemma_scope_2("s", 64, 100, l0_target=8).replace(sparsity=("controlled", "revival"))
    assert two.l0_target == 8.0
    assert run.replace(autoencoder="topk", k=3).l0_target == 3.0


def test_an_architecture_that_needs_a_term_does_not_come_by_name_into_a_run_without_one():
    run = sae.short_run("s", 64, 100, autoencoder="topk", l0_target=8)
    with pytest.raises(ValueError, match="JumpReLU needs a sparsity term, and this run of TopK has none: give one too"):
        run.replace(autoencoder="jumprelu")
    back = run.replace(autoencoder="jumprelu", sparsity=("controlled", "revival"))
    assert back.l0_target == 8.0 and [part.kind for part in back.sparsity] == ["controlled", "revival"]
