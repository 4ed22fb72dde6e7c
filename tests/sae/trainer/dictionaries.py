"""Activations made of known features, and how well an autoencoder has found them."""

import numpy as np

ACTIVE = 4  # features of a row, on the average


def known_dictionary(rows: int, features: int, dimensions: int, seed: int = 0):
    """Sparse sums of unit vectors [rows, dimensions]; the vectors [features, dimensions]; how many are active a row."""
    rng = np.random.default_rng(seed)
    dictionary = rng.normal(size=(features, dimensions))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    active = rng.random((rows, features)) < ACTIVE / features
    strengths = active * rng.uniform(0.5, 1.5, size=active.shape)
    return (40.0 * strengths @ dictionary).astype(np.float32), dictionary, active.sum(axis=1).mean()


def best_cosines(dictionary, autoencoder):
    """[features]: of each, the cosine with the nearest decoder row."""
    return (dictionary @ np.asarray(autoencoder.W_dec).T).max(axis=1)


def mean_l0(autoencoder, x):
    return float((np.asarray(autoencoder.encode(x)) > 0).sum(axis=1).mean())
