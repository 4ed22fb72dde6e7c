"""The parts of a run that are compiled into a step, and the loss of a batch, to which they add up."""

from typing import Any, NamedTuple

import jax

from sae.architectures import Architecture, Encoded
from sae.initialisation import Initialisation
from sae.inputs import Inputs
from sae.objectives import Objective
from sae.optimizer import Adam
from sae.parts import Sizes
from sae.runs import Run
from sae.sparsity import Now, SparsityTerm
from sae.trainer import contracts


class Parts(NamedTuple):
    """The parts of a run that are compiled into its step: a pytree whose leaves are the parts' numbers."""

    autoencoder: Architecture
    sparsity: tuple[SparsityTerm, ...]
    objective: Objective
    inputs: Inputs
    initialisation: Initialisation
    optimizer: Adam

    @classmethod
    def of(cls, run: Run) -> "Parts":
        return cls(*(getattr(run, name) for name in cls._fields))


class Values(NamedTuple):
    """The parts of the loss, means over the batch, and the latents of the batch."""

    reconstruction: jax.Array  # ||y - y^||^2, with all latents
    penalty: jax.Array  # of all sparsity terms
    encoded: Encoded


def loss_of(
    params: NamedTuple,
    x: jax.Array,
    y: jax.Array,
    parts: Parts,
    kept: Any,
    terms: tuple,
    now: Now,
    sizes: Sizes,
) -> tuple[jax.Array, Values]:
    """Returns the mean loss over a batch and its values. The loss is the mean of the objective's errors, the sparsity
    terms, and what the architecture adds.

    Args:
      params: the architecture's parameters, float32.
      x: float32 [B, A], scaled; what goes in.
      y: float32 [B, A], scaled; what is to be reconstructed.
      parts: of the run, with its numbers.
      kept: what the architecture keeps from step to step.
      terms: what each sparsity term keeps.
      now: the step, lambda, and the latents that are dead.
      sizes: of the run; static.
    """
    architecture = parts.autoencoder
    # In full float32 by default, also where an accelerator has less: values must fall into a window of width eps.
    with jax.default_matmul_precision(parts.objective.precision):
        encoded = architecture.encode(params, x, kept, sizes)
        contracts.check_encoded(architecture, encoded, x.shape[0], sizes)
        errors = parts.objective.errors(params, encoded.f, x, y)
        for error in errors:
            contracts.check_scalar(parts.objective, "errors", error)
        added = architecture.auxiliary(params, encoded, x, y, kept, now.dead)
    total: Any = sum(errors) / len(errors)
    penalty: Any = None
    for term, state in zip(parts.sparsity, terms, strict=True):
        value = term.penalty(encoded, state, now, sizes)
        contracts.check_scalar(term, "penalty", value)
        penalty = value if penalty is None else penalty + value
    penalty = total * 0.0 if penalty is None else penalty
    total = total + penalty
    return total if added is None else total + added, Values(errors[0], penalty, encoded)
