"""A run's state and its steps, without a store or a compiled program."""

import jax

from sae.parts import numbers_of
from sae.trainer import state as states
from sae.trainer.loss import Parts, loss_of


def begun(run, A_in, A_out):
    """The state before the first step."""
    return states.initial(Parts.of(run), (A_in, A_out), run.sizes, jax.random.key(run.seed))


def stepped(state, batch, units, run):
    """The state after a step on raw activations by site."""
    about = {"sizes": run.sizes, "sites": run.sites, "sites_out": run.sites_out}
    return states.step(state, batch, units, numbers_of(Parts.of(run)), **about)


def loss(params, x, y, run, now):
    """The loss of scaled activations with parameters as they are trained, and its values."""
    terms = tuple(term.init(run.sizes) for term in run.sparsity)
    kept = run.autoencoder.state(run.sizes)
    return loss_of(params, x, y, numbers_of(Parts.of(run)), kept, terms, now, run.sizes)
