"""The losses and their gradients written out in float64 numpy, from arXiv 2408.05147 and 2407.14435 and the definitions
in `sae.architectures`, `sae.sparsity` and `sae.objectives`; nothing of the library is called but its containers."""

import numpy as np

from sae.architectures.jumprelu import Params


def pre_activations(p: Params, x, run):
    return (x if run.transcodes else x - p.b_dec) @ p.W_enc + p.b_enc


def loss_and_gradients(p: Params, x, y, run, coefficient, target, frequency, dead):
    """p has theta itself; the run's log_threshold is not looked at. dead: [Z] bool."""
    fields = run.fields()
    B, eps, K = len(x), fields["bandwidth"], 32
    z = pre_activations(p, x, run)
    on, window = z > p.threshold, np.abs(z - p.threshold) < eps / 2
    f = z * on
    # Each term: the mask of latents it reconstructs from.
    bands = np.arange(z.shape[1]) % K
    masks = [bands < round(prefix * K) for prefix in (*fields.get("matryoshka", ()), 1.0)]
    base = p.b_dec + (0 if p.W_skip is None else x @ p.W_skip)
    total, d_f, d_W_dec = 0.0, np.zeros_like(f), np.zeros_like(p.W_dec)
    d_base = np.zeros_like(y)
    for mask in masks:
        error = (f * mask) @ p.W_dec + base - y
        total += (error**2).sum(axis=1).mean() / len(masks)
        d_out = 2 * error / B / len(masks)
        d_f += d_out @ p.W_dec.T * mask
        d_W_dec += (f * mask).T @ d_out
        d_base += d_out
    l0 = on.sum(axis=1)
    if run.sparsity[0].kind != "quadratic":
        total += coefficient * l0.mean()
        slope = np.full(B, coefficient) / B
    else:
        total += (coefficient * (l0 - target) ** 2 / (2 * target)).mean()
        slope = coefficient * (l0 - target) / target / B
    slope = np.broadcast_to(slope[:, None], z.shape).copy()
    if "frequency_limit" in fields:
        over = on.mean(axis=0) - fields["frequency_limit"]
        total += frequency * np.maximum(over, 0).sum()
        slope += frequency * (over > 0) / B
    d_z = d_f * on
    d_threshold = (window * (d_f * -p.threshold - slope)).sum(axis=0) / eps
    if revival := fields.get("revival"):
        below = (z < p.threshold) & dead
        total += revival * (np.maximum(p.threshold - z, 0) * dead).sum() / B
        d_z -= revival * below / B
        d_threshold += revival * below.sum(axis=0) / B
    encoder_input = x if run.transcodes else x - p.b_dec
    d_b_dec = d_base.sum(axis=0)
    if not run.transcodes:
        d_b_dec = d_b_dec - (d_z @ p.W_enc.T).sum(axis=0)
    gradients = Params(
        W_enc=encoder_input.T @ d_z,
        b_enc=d_z.sum(axis=0),
        W_dec=d_W_dec,
        b_dec=d_b_dec,
        threshold=d_threshold,
        W_skip=None if p.W_skip is None else x.T @ d_base,
    )
    return total, gradients
