"""What tests of damaged checkpoints share."""

import pytest

import gemma


def refused(source, *messages):
    """Loading fails with a ValueError that has all of these messages; returns its text."""
    with pytest.raises(ValueError) as error:
        gemma.load(source)
    for message in messages:
        assert message in str(error.value), str(error.value)
    return str(error.value)
