"""The losses of architectures and their gradients written out in float64 numpy, from the papers that their files name;
nothing of the library is called. `p` has parameters by name; W_skip may be missing."""

import numpy as np


def topk(p, x, y, *, k, aux_k=0, aux=0.0, dead=None, whole_batch=False, transcodes=False):
    """arXiv 2406.04093; of a batch at once, arXiv 2412.06410."""
    z = pre_activations(p, x, transcodes)
    f = np.where(largest(np.maximum(z, 0), k, whole_batch), z, 0)
    loss, d_f, grads = reconstruction(p, f, x, y)
    d_z = d_f * (f > 0)
    if aux:
        error = y - out(p, f, x)
        revived = np.maximum(z, 0) * dead
        revived *= largest(revived, aux_k, False)
        left = revived @ p["W_dec"] - error
        loss += aux * (left**2).sum(axis=1).mean()
        d_out = 2 * aux * left / len(x)
        grads["W_dec"] += revived.T @ d_out
        d_z += d_out @ p["W_dec"].T * (revived > 0)
    return loss, encoder(p, x, d_z, grads, transcodes), f


def relu(p, x, y, *, l1, transcodes=False):
    """arXiv 2309.08600: an L1 penalty."""
    z = pre_activations(p, x, transcodes)
    f = np.maximum(z, 0)
    loss, d_f, grads = reconstruction(p, f, x, y)
    loss += l1 * f.sum(axis=1).mean()
    return loss, encoder(p, x, (d_f + l1 / len(x)) * (z > 0), grads, transcodes), f


def tanh_jumprelu(p, x, y, *, strength, scale, bandwidth, transcodes=False):
    """transformer-circuits.pub/2025/january-update: the penalty's gradient goes to all parameters."""
    z, theta = pre_activations(p, x, transcodes), p["threshold"]
    f = z * (z > theta)
    loss, d_f, grads = reconstruction(p, f, x, y)
    loss += strength * np.tanh(scale * f).sum(axis=1).mean()
    d_f = d_f + strength * scale / np.cosh(scale * f) ** 2 / len(x)
    window = np.abs(z - theta) < bandwidth / 2
    grads["threshold"] = (window * d_f * -theta / bandwidth).sum(axis=0)
    return loss, encoder(p, x, d_f * (z > theta), grads, transcodes), f


def gated(p, x, y, *, l1, transcodes=False):
    """arXiv 2404.16014, section 3.2: frozen decoder in the auxiliary loss."""
    u = (x if transcodes else x - p["b_dec"]) @ p["W_enc"]
    gate, magnitude, scale = u + p["b_gate"], u * np.exp(p["r_mag"]) + p["b_mag"], np.exp(p["r_mag"])
    f = np.maximum(magnitude, 0) * (gate > 0)
    loss, d_f, grads = reconstruction(p, f, x, y)
    opened = np.maximum(gate, 0)
    error = opened @ p["W_dec"] + p["b_dec"] - y
    loss += l1 * opened.sum(axis=1).mean() + (error**2).sum(axis=1).mean()
    d_magnitude = d_f * (f > 0)
    d_gate = (l1 + 2 * error @ p["W_dec"].T) / len(x) * (gate > 0)
    grads |= {"b_mag": d_magnitude.sum(axis=0), "b_gate": d_gate.sum(axis=0)}
    grads["r_mag"] = (d_magnitude * u * scale).sum(axis=0)
    grads = encoder(p, x, d_magnitude * scale + d_gate, grads, transcodes)
    del grads["b_enc"]
    return loss, grads, f


def pre_activations(p, x, transcodes):
    return (x if transcodes else x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]


def largest(values, k, whole_batch):
    """Which are among the k largest of a token, or the k B largest of a batch, and above 0."""
    if whole_batch:
        return values >= max(np.sort(values, axis=None)[-round(k * len(values))], 1e-300)
    kept = np.zeros(values.shape, bool)
    np.put_along_axis(kept, np.argsort(-values, axis=1, kind="stable")[:, :k], True, axis=1)
    return kept & (values > 0)


def out(p, f, x):
    return f @ p["W_dec"] + p["b_dec"] + (x @ p["W_skip"] if "W_skip" in p else 0)


def reconstruction(p, f, x, y):
    """The mean squared error; its gradient by f, and by the decoder's parameters."""
    error = out(p, f, x) - y
    d_out = 2 * error / len(x)
    grads = {"W_dec": f.T @ d_out, "b_dec": d_out.sum(axis=0)}
    if "W_skip" in p:
        grads["W_skip"] = x.T @ d_out
    return (error**2).sum(axis=1).mean(), d_out @ p["W_dec"].T, grads


def encoder(p, x, d_z, grads, transcodes):
    """The gradients with those of the encoder, from that by pre-activations."""
    grads = grads | {"W_enc": (x if transcodes else x - p["b_dec"]).T @ d_z, "b_enc": d_z.sum(axis=0)}
    if not transcodes:
        grads["b_dec"] = grads["b_dec"] - d_z.sum(axis=0) @ p["W_enc"].T
    return grads
