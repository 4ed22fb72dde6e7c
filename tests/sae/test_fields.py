"""Fields take plain values: numbers of numpy and JAX become plain, other types are refused. Nothing here computes."""

import dataclasses
import doctest
import enum
import fractions
import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

import sae
from sae import fields
from sae.autoencoder import Largest
from sae.counted import Counted, Sinks
from sae.records import Record
from sae.store.manifest import Manifest
from sae.text import Document, Origin


class Level(enum.IntEnum):
    LOW = 3


@dataclasses.dataclass(frozen=True)
class Everything:
    count: int = 1
    rate: float = 1.0
    name: str | tuple[str, ...] = "s"
    target: float | None = None
    centre: bool = False
    parts: tuple[float, ...] = ()

    def __post_init__(self):
        fields.check_fields(self)


@pytest.mark.parametrize(
    ("field", "value", "want"),
    [
        ("count", np.int64(3), 3),
        ("count", np.array(3, np.uint8), 3),
        ("count", Level.LOW, 3),
        ("rate", 2, 2.0),
        ("rate", np.float32(0.25), 0.25),
        ("rate", ml_dtypes.bfloat16(2), 2.0),
        ("rate", np.array(2, ml_dtypes.bfloat16), 2.0),
        ("rate", fractions.Fraction(1, 4), 0.25),
        ("name", np.str_("x"), "x"),
        ("name", ["x", np.str_("y")], ("x", "y")),
        ("target", np.int32(4), 4.0),
        ("target", None, None),
        ("centre", np.bool_(True), True),
        ("parts", np.array([0.25, 0.5], np.float32), (0.25, 0.5)),
    ],
)
def test_numbers_of_numpy_become_plain(field, value, want):
    got = getattr(Everything(**{field: value}), field)
    assert got == want and type(got) is type(want)
    assert json.loads(json.dumps(got)) == (list(want) if isinstance(want, tuple) else want)


def test_a_number_of_jax_becomes_plain():
    import jax.numpy as jnp

    got = Everything(count=jnp.int32(3), rate=jnp.bfloat16(2), target=jnp.float32(0.5))
    assert got == Everything(3, 2.0, target=0.5)
    assert [type(v) for v in (got.count, got.rate, got.target)] == [int, float, float]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", np.float64(3.0), "count must be a whole number, got np.float64"),
        ("count", True, "count must be a whole number, got True"),
        ("count", np.array([3]), "count must be a whole number, got array"),
        ("rate", "1e-3", "rate must be a number, got '1e-3'"),
        ("rate", None, "rate must be a number, got None"),
        ("rate", 10**400, "rate must be a number, got 1000"),
        ("rate", 1j, "rate must be a number, got 1j"),
        ("name", 3, "name must be a text or a tuple, each item a text, got 3"),
        ("target", np.float32("nan"), "target must be finite, got nan"),
        ("centre", "no", "centre must be True or False, got 'no'"),
        ("centre", 1, "centre must be True or False, got 1"),
        ("parts", 0.5, "parts must be a tuple, each item a number, got 0.5"),
        ("parts", (1.0, float("inf")), "parts must be finite, got inf"),
    ],
)
def test_other_types_are_refused_by_the_fields_name(field, value, message):
    with pytest.raises(ValueError, match=f"Everything: {message}"):
        Everything(**{field: value})


def test_a_manifest_of_numpys_numbers_can_be_written():
    rest = {"sites": {"s": (4,)}, "dtype": "float32", "corpus_sha256": "0"}
    rest |= dict.fromkeys(("model", "model_fingerprint", "tokenizer_sha256"), "0")
    sizes = {"sequences": np.int64(5), "length": 3, "sequences_per_segment": 2, "seed": np.int32(1)}
    manifest = Manifest(**rest, **sizes, counted=Counted(np.arange(2), sinks=Sinks(np.float32(2.5), ("s",))))
    plain = {name: int(size) for name, size in sizes.items()} | {"counted": Counted((0, 1), sinks=Sinks(2.5, ("s",)))}
    plain = Manifest(**rest, **plain)
    assert manifest.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0, "many"])
def test_the_limit_of_a_sink_is_a_norm(norm):
    with pytest.raises(ValueError, match=r"the limit of a sink is a norm, finite|the limits of sinks are"):
        Sinks(limits={"embed": norm})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Origin("8"), "Origin: length must be a whole number, got '8'"),
        (lambda: Origin(8, corpus=pathlib.Path("a")), "Origin: corpus must be a text or None, got"),
        (lambda: Record(model_fingerprint=5), "Record: model_fingerprint must be a text or None, got 5"),
        (lambda: Record(origin="a.txt"), "Record: origin is a sae.text.Origin, or None"),
        (lambda: Counted((0,), "yes"), "Counted: left_out must be True or False or None, got 'yes'"),
        (lambda: Document(None, "s", "text"), "Document: id must be a text, got None"),
        (lambda: Document("a", "s", b"text"), "Document: text must be a text, got b'text'"),
        (lambda: Largest(np.ones(3), 1.9), "Largest: tokens must be a whole number, got 1.9"),
    ],
)
def test_records_of_an_autoencoder_take_what_a_file_can_hold(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_numpy_go_to_files():
    origin = Origin(np.int64(8), np.bool_(True))
    assert (origin.length, origin.packed) == (8, True) and json.dumps(dataclasses.asdict(origin))
    assert json.dumps(dataclasses.asdict(Counted((np.int32(0),), np.bool_(True))))
    assert Document(np.int64(7), 3, "text") == Document("7", "3", "text")


@pytest.mark.parametrize("module", [fields, sae.recipes, sae.ahead])
def test_examples(module):
    result = doctest.testmod(module, extraglobs={"sae": sae})
    assert result.attempted and not result.failed
