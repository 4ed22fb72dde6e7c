"""What `Model.apply` says of arguments that are not what it takes."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.gemma import small


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("The sea", r"tokens must be integers of shape \[B, T\], got '<U7': encode a text first"),
        (["The sea", "the sea"], r"got '<U7': encode a text first.*or give it to model\.run or gemma\.generate"),
        ([b"The sea"], r"encode a text first"),
        ([[2, None]], r"encode a text first"),
        (np.zeros((1, 0), int), r"at least one sequence of one token, got \[B, T\] = \[1, 0\]"),
        (np.zeros((0, 3), int), r"at least one sequence of one token, got \[B, T\] = \[0, 3\]"),
        (jnp.zeros((1, 0), int), r"at least one sequence of one token"),
        ([[2, 3], [2]], r"rows of one length"),
        ([2, 3], r"integers of shape \[B, T\], got int64\[2\]"),
        ([[2.0, 3.0]], r"integers of shape \[B, T\], got float64\[1, 2\]"),
    ],
)
def test_tokens(tokens, said):
    with pytest.raises(ValueError, match=said):
        small.model().apply(tokens)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mask": np.zeros((1, 2, 2), np.float32)}, r"mask must be bool, .*, got float32: .*give mask == 0"),
        ({"mask": np.ones((1, 2, 2), np.int32)}, r"mask must be bool, .*, got int32: .*give mask != 0"),
        ({"mask": [[[1, 1], [1, 1]]]}, r"mask must be bool"),
        ({"mask": np.ones((1, 2, 3), bool)}, r"mask must be \[1, 2, 2\], got \[1, 2, 3\]"),
        ({"positions": np.zeros((1, 2), np.float32)}, r"positions must be integers, got float32"),
        ({"positions": np.zeros(2, np.int32)}, r"positions must be \[1, 2\], got \[2\]"),
        ({"attention": "flash"}, r"attention is 'plain' or 'fused'"),
    ],
)
def test_other_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        small.model().apply(np.asarray([[2, 3]]), **arguments)


def test_a_mask_and_positions_as_lists():
    model, tokens = small.model(), np.asarray([[2, 3]])
    given = model.apply(tokens, positions=[[0, 1]], mask=[[[True, False], [True, True]]])
    np.testing.assert_allclose(given, model.apply(tokens), atol=1e-5)
