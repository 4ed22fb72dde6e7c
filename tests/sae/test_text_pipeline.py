"""The order of a harvest, and reading ahead."""

import threading
import time

import grain
import numpy as np
import pytest

from sae.text import Sequences, segment
from sae.text.pipeline import read_ahead


def make(count):
    """Sequences [S, 3] whose tokens and documents are their number."""
    number = np.arange(count, dtype=np.int32)
    tokens = np.repeat(number[:, None], 3, axis=1)
    return Sequences(tokens, number, number, tuple((f"d{k}", "s") for k in number), tokens % 2 == 0)


def test_segments_are_a_permutation_of_all():
    sequences = make(103)
    parts = [segment(sequences, 3, index, 10) for index in range(11)]
    assert [len(part) for part in parts] == [10] * 10 + [3]
    order = np.concatenate([part.document for part in parts])
    assert sorted(order) == list(range(103)) and abs(np.corrcoef(order, np.arange(103))[0, 1]) < 0.3
    for part in parts:
        np.testing.assert_array_equal(part.tokens[:, 0], part.document)
        np.testing.assert_array_equal(part.left_out, part.tokens % 2 == 0)
    # A function of its arguments: whoever asks, and in whatever order; the same rows by another size.
    np.testing.assert_array_equal(segment(sequences, 3, 7, 10).document, parts[7].document)
    np.testing.assert_array_equal(segment(sequences, 3, 1, 5).document, order[5:10])
    assert (segment(sequences, 4, 0, 103).document != order).any()


def test_the_order_is_that_of_stores_that_are_there_already():
    """A half-finished harvest goes on in it, whatever version of grain is installed by then."""
    assert segment(make(12), 5, 0, 12).document.tolist() == [4, 0, 5, 3, 7, 9, 8, 10, 11, 6, 1, 2]


def test_segments_that_are_not_there_are_refused():
    for index in (-1, 11):
        with pytest.raises(ValueError, match=f"103 sequences make segments 0 to 10 of 10, got segment {index}"):
            segment(make(103), 0, index, 10)
    with pytest.raises(ValueError, match="got size 0"):
        segment(make(103), 0, 0, 0)
    with pytest.raises(ValueError, match="between 0 and 2"):
        segment(make(103), 2**32, 0, 10)


def test_what_is_read_ahead_is_in_order_and_no_thread_is_left_behind():
    def workers():
        return {thread for thread in threading.enumerate() if thread.name.startswith("grain")}

    before = workers()
    assert list(read_ahead(grain.MapDataset.range(50), threads=2, ahead=4)) == list(range(50))
    stopped = read_ahead(grain.MapDataset.range(1000), threads=2, ahead=4)
    next(stopped)
    assert workers() - before
    stopped.close()
    until = time.monotonic() + 30
    while workers() - before and time.monotonic() < until:
        time.sleep(0.01)
    assert not workers() - before
