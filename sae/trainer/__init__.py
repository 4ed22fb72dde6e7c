"""How `sae.train` works inside: the loss, a step, sweeps, checkpoints, diagnostics, estimates."""
