"""Unigram and bigram models, to compare a language model with.

The bigram is interpolated Kneser-Ney with one discount (Chen and Goodman 1998, section 4.1.6): it shows how far a short
context comes when it is counted well.
"""

import numpy as np

DISCOUNT = 0.75


def unigram_losses(train: np.ndarray, rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns negative log-likelihoods (nats) of rows[:, 1:] [R, T-1], from counts of train[:, 1:] plus one."""
    counts = np.bincount(train[:, 1:].ravel(), minlength=vocab_size) + 1.0
    return -np.log(counts / counts.sum())[rows[:, 1:]]


def bigram_losses(train: np.ndarray, rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns negative log-likelihoods (nats) of rows[:, 1:] [R, T-1], each given the token before it."""

    def pairs(tokens):
        return tokens[:, :-1].astype(np.int64) * vocab_size + tokens[:, 1:]

    kinds, counts = np.unique(pairs(train), return_counts=True)
    first, second = np.divmod(kinds, vocab_size)
    context = np.bincount(first, weights=counts, minlength=vocab_size)
    followers = np.bincount(first, minlength=vocab_size)
    # How many kinds of context a token follows: the estimate where the context itself says nothing.
    novelty = np.bincount(second, minlength=vocab_size) + 1.0
    novelty = novelty / novelty.sum()

    wanted = pairs(rows)
    place = np.minimum(np.searchsorted(kinds, wanted), len(kinds) - 1)
    count = np.where(kinds[place] == wanted, counts[place], 0)
    before, after = rows[:, :-1], rows[:, 1:]
    total = context[before]
    seen = np.maximum(total, 1)
    direct = np.maximum(count - DISCOUNT, 0) / seen
    rest = np.where(total > 0, DISCOUNT * followers[before] / seen, 1.0)
    return -np.log(direct + rest * novelty[after])
