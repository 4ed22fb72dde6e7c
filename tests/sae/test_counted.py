"""`Counted`, the rule of which tokens count, by hand."""

import dataclasses
import doctest
import json

import numpy as np
import pytest

import sae
from sae import Counted, Sinks
from sae.records import Record
from sae.store.manifest import Manifest
from sae.text import Document, Origin, cut

TOKENS = np.array([[1, 5, 6, 7, 0], [1, 8, 9, 5, 2]])
LEFT_OUT = np.array([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]], bool)


def test_special_ids_marks_and_sinks_do_not_count():
    rule = Counted((0, 1, 2), True, Sinks(limits=(("b", 3.0), ("a", 2.0))))
    assert rule.sink_sites == rule.sinks.sites == ("a", "b")
    np.testing.assert_array_equal(rule.text(TOKENS), [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(rule.text(TOKENS, LEFT_OUT), [[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
    norms = {"a": np.array([[9, 9, 2.0, 2.1, 0], [0, 1, 1, 1, 1]]), "b": np.array([[0, 0, 3.0, 0, 0], [0, 4, 1, 1, 1]])}
    np.testing.assert_array_equal(rule.mask(TOKENS, LEFT_OUT, norms), [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]])


def test_a_rule_of_one_kind_of_text_is_not_applied_to_the_other():
    for left_out, marked in ((True, False), (False, True)):
        with pytest.raises(ValueError, match=r"those of a text that leaves (no token|tokens) out.*`counted=`"):
            Counted((0,), left_out).for_text(marked)
    assert Counted((0,)).for_text(True) == Counted((0,), True).for_text(True) == Counted((0,), True)


def test_rule_and_record_survive_json():
    rule = Counted(np.array([0, 1]), True, Sinks(np.float64(4), limits={"a": np.float32(2.5)}))
    record = Record("m", "c", "t", "float32", Origin(64, True, corpus="x.jsonl"))
    info = sae.Info("gemma2-tiny", "a", "a", counted=rule, record=record)
    again = sae.Info(**json.loads(json.dumps(dataclasses.asdict(info))))
    assert again == info and hash(again) == hash(info)
    assert again.counted == Counted((0, 1), True, Sinks(4.0, ("a",), (("a", 2.5),))) and again.record.origin.packed


def test_a_rule_says_what_counts():
    result = Counted((0, 1), True, Sinks(limits={"a": 2.0}))
    assert str(result) == "all but ids 0, 1, what the text leaves out, sinks (a over 2)"
    assert str(Counted((3,), sinks=Sinks(4))) == "all but ids 3, sinks (over 4 medians)"
    assert (str(Counted((3,))), str(Counted(()))) == ("all but ids 3", "all")


def test_a_store_finds_the_limits_of_the_sinks_that_are_asked_for():
    request = Counted((0,), sinks=Sinks(4.0, ("b", "a")))
    with pytest.raises(ValueError, match="these sinks have no limits yet: a harvest's store"):
        _ = request.sink_limits
    assert request.with_limits({"a": 2.0, "b": 3.0}).sinks == Sinks(4.0, ("a", "b"), {"a": 2.0, "b": 3.0})
    assert Counted((0,)).with_limits({}) == Counted((0,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sinks(1.0), "Sinks: factor is a multiple of the median norm, above 1; got 1.0"),
        (lambda: Sinks(float("nan")), "Sinks: factor must be finite"),
        (lambda: Sinks(), "Sinks need a factor, .*or limits"),
        (lambda: Sinks(4.0, ("a",), {"b": 1.0}), "the limits of sinks are of b, and their sites are a"),
        (lambda: Counted((0.5,)), "Counted: special_ids must be a tuple, each item a whole number"),
        (lambda: Counted((0,), sinks=4.0), r"Counted: sinks are Sinks, such as Sinks\(4.0\), or None; got 4.0"),
    ],
)
def test_what_is_no_rule_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def manifest(**changes):
    facts = {"model": "m", "model_fingerprint": "0", "tokenizer_sha256": "0", "sites": {"a": (2,)}}
    facts |= {"dtype": "float32", "corpus_sha256": "0", "sequences": 4, "length": 8, "sequences_per_segment": 2}
    return Manifest(**facts | {"seed": 0, "counted": Counted((0, 1))} | changes)


def test_notes_of_a_manifest_do_not_change_whose_store_it_is():
    plain, noted = manifest(), manifest(origin=Origin(8), parameters_dtype="float32")
    other = manifest(counted=Counted((0, 1), sinks=Sinks(2.0)))
    assert plain == noted and plain.fingerprint() == noted.fingerprint() != other.fingerprint()
    assert not set(plain.identity()) & {"origin", "parameters_dtype"}


class Letters:
    """A tokenizer whose tokens are letters."""

    bos, pad, special_ids, sha256 = 2, 0, (0, 1, 2), "letters"

    def encode(self, text, *, add_bos=True):
        return [self.bos] * add_bos + [ord(letter) for letter in text]


def test_cut_says_how_it_cut(tmp_path):
    text = [Document("d", "s", "one two three")]
    for where in ({}, {"folder": tmp_path / "f", "key": "k"}):
        assert cut(text, Letters(), 4, packed=True, **where).origin == Origin(4, packed=True)
        assert cut(text, Letters(), 4, packed=True, **where).take([0]).origin == Origin(4, packed=True)


def test_examples():
    result = doctest.testmod(sae.counted, extraglobs={"sae": sae})
    assert result.attempted and not result.failed


def test_what_is_left_out_is_said_in_words():
    assert (
        Counted((0,), True)
        .omissions(only_model_turns=True)
        .endswith("; users' turns and the template of chats (only_model_turns)")
    )
    assert Counted((0,), True).omissions().endswith("; what the text marks as left out")
    assert Counted((), False).omissions() == "nothing"
