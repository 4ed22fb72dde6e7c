"""How to train, by name: each recipe puts the parts of a run together.

Every recipe takes the run's own fields, those of its parts, and kinds of parts by name (`sae.Run.replace` says which
part gets what). A target L0 is that of whichever part aims at one: of the first sparsity term, or k of an architecture
that keeps k latents.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from sae.architectures import JumpReLU
from sae.initialisation import Initialisation
from sae.inputs import Inputs
from sae.objectives import Matryoshka, Reconstruction
from sae.objectives.matryoshka import BANDS
from sae.optimizer import Adam
from sae.runs import Run
from sae.sparsity import Controlled, Frequency, Linear, Quadratic, Revival, SparsityTerm

PENALTIES = ("linear", "quadratic")


def gemma_scope(
    site: str | tuple[str, ...],
    width: int,
    steps: int,
    *,
    l0_target: float | None = None,
    penalty: str = "linear",
    **changes,
) -> Run:
    """The paper's constants, for billions of tokens (arXiv 2408.05147, section 3).

    Args:
      site: what goes in; several sites of one width make a crosscoder.
      width: Z, the number of latents.
      steps: optimizer steps.
      l0_target: an L0 to aim at, which the paper's recipe does not have.
      penalty: "linear" or "quadratic" in the L0; the latter takes a target.
      **changes: fields of the run or of its parts, by name; see `sae.Run.replace`.

    Raises:
      ValueError: for a field that nothing has, or a value that its part refuses.

    Example:
      >>> gemma_scope("layer_20/resid_post", 2**14, steps=1_000_000)
      Run(layer_20/resid_post: 16,384 latents, lambda 0.0006, 1,000,000 steps of 4,096 tokens)
    """
    first = _first(penalty, l0_target, changes, 6e-4, 6e-4, 10_000, 0.0)
    return _changed(Run(site, width, steps, sparsity=(first,)), l0_target, changes)


def gemma_scope_2(
    site: str | tuple[str, ...],
    width: int,
    steps: int,
    *,
    penalty: str = "quadratic",
    **changes,
) -> Run:
    """Gemma Scope 2's: a quadratic penalty at a target L0, warmed up over 50,000 steps, a penalty on latents that fire
    on more than a tenth of the tokens, and Matryoshka prefixes; the rest is Gemma Scope's.

    The report leaves open what the factor of its quadratic penalty is, how strong the penalty on frequent latents is,
    and which prefixes there are. Here: 1/(2 * l0_target), with which the gradient is the linear penalty's at twice the
    target; 1/10 of lambda, whatever lambda is; and a 32nd, an eighth, a quarter and a half of the latents (none where
    the width is no multiple of 32).

    Args:
      site: what goes in; several sites of one width make a crosscoder.
      width: Z, the number of latents.
      steps: optimizer steps.
      penalty: "linear" or "quadratic" in the L0.
      **changes: fields of the run or of its parts, by name; see `sae.Run.replace`. `l0_target` is 50 for a penalty that
        has one, unless it is given.

    Raises:
      ValueError: for a field that nothing has, or a value that its part refuses.

    Example:
      >>> gemma_scope_2("layer_20/resid_post", 2**14, steps=1_000_000)
      Run(layer_20/resid_post: 16,384 latents, target L0 50, 1,000,000 steps of 4,096 tokens)
    """
    # Not an argument with a default: 50 that nobody asked for is no reason to change the k of an architecture.
    aim, given = changes.get("l0_target", 50.0), changes.pop("l0_target", None)
    first = _first(penalty, aim, changes, 6e-4, 6e-4, 50_000, 0.0)
    objective = Reconstruction() if width % BANDS else Matryoshka()
    run = Run(site, width, steps, sparsity=(first, Frequency()), objective=objective)
    return _changed(run, given, changes)


def short_run(
    site: str | tuple[str, ...],
    width: int,
    steps: int,
    *,
    l0_target: float | None = None,
    penalty: str = "linear",
    log_threshold: bool = False,
    **changes,
) -> Run:
    """For minutes or hours. The loss, the gradients, the constraint and the folding are the paper's; what differs:

    - The paper's theta moves by about its learning rate a step, relative to itself, so that in a short run it would
      stay where it began. Here theta is trained as it is, with a learning rate and a bandwidth of its own.
    - Inputs are centred, as real residual streams have a mean far larger than their spread.
    - Encoders begin at a fifth of their decoders' norm, and theta a little above most pre-activations: several times as
      many latents as dimensions, all of full norm, would begin with an error four times the variance. This alone took a
      third off the FVU after 300 steps on the real Gemma 3 270M.
    - Learning rates are higher, the decoder's twice the encoder's (a twentieth off the FVU; half the encoder's put a
      tenth on it), and decay over the second half. Adam has a first moment, without which they were not stable, and a
      second moment over a hundred steps.
    - With a target, the penalty stays linear, and a controller moves lambda until the L0 is the target; the quadratic
      penalty, which also presses on how much the L0 differs between tokens, cost a tenth in FVU at an equal L0. The
      shorter the run, the faster the controller: as slow as is right for 1,200 steps, it left the L0 up to 13% below
      its target after 450.
    - Latents that have been silent for a twentieth of the run are pulled back.
    - Batches are smaller, so there are more steps; the warm-ups are a twentieth and a quarter of the run.

    What depends on the length of the run is a share of it, so that `dataclasses.replace(run, steps=...)` is the recipe
    of the other length.

    Args:
      site: what goes in; several sites of one width make a crosscoder.
      width: Z, the number of latents.
      steps: optimizer steps.
      l0_target: the L0 to aim at; without one lambda is fixed.
      penalty: "linear" or "quadratic" in the L0; the latter takes a target.
      log_threshold: train log(theta); a logarithm has further to go, so its learning rate is ten times as high.
      **changes: fields of the run or of its parts, by name; see `sae.Run.replace`.

    Raises:
      ValueError: for a field that nothing has, or a value that its part refuses.

    Example:
      >>> short_run("layer_3/resid_post", 1536, steps=600, l0_target=20, seed=1)
      Run(layer_3/resid_post: 1,536 latents, target L0 20, 600 steps of 1,024 tokens)
    """
    run = Run(
        site,
        width,
        steps,
        batch_size=1024,
        dead_tokens=Fraction(1, 20),
        autoencoder=JumpReLU(
            log_threshold=log_threshold,
            bandwidth=0.02,
            threshold_init=0.01,
            # theta ends at several times its start.
            threshold_learning_rate=1e-2 if log_threshold else 1e-3,
        ),
        sparsity=(_first(penalty, l0_target, changes, 8e-4, 3e-3, Fraction(1, 4), Fraction(1, 24)), Revival()),
        inputs=Inputs(centre=True),
        initialisation=Initialisation(encoder_init=0.2),
        optimizer=Adam(
            learning_rate=3e-3,
            learning_rate_warmup=Fraction(1, 20),
            learning_rate_decay=Fraction(1, 2),
            beta1=0.9,
            beta2=0.99,
            decoder_rate_factor=2.0,
        ),
    )
    return _changed(run, l0_target, changes)


def _first(
    penalty: str,
    l0_target: float | None,
    changes: Mapping[str, Any],
    linear: float,
    quadratic: float,
    warmup: int | Fraction,
    controller: float | Fraction,
) -> SparsityTerm:
    """The first term of a recipe.

    Args:
      penalty: its name. l0_target: None for a fixed lambda.
      changes: to the recipe; where they name the kinds of terms, these say which penalty is meant.
      linear: lambda of a linear penalty. quadratic: of a quadratic one.
      warmup: of lambda. controller: of a quadratic penalty; a linear one with a target cannot be without.
    """
    if penalty not in PENALTIES:
        raise ValueError(f"penalty is one of {', '.join(PENALTIES)}, got {penalty!r}")
    terms = changes.get("sparsity")
    kinds = [term for term in terms if isinstance(term, str)] if isinstance(terms, (tuple, list)) else []
    if "sparsity" in changes:
        penalty = "quadratic" if "quadratic" in kinds else "linear"
    if penalty == "quadratic":
        if l0_target is None:
            raise ValueError("a quadratic penalty needs an l0_target")
        return Quadratic(quadratic, warmup, l0_target, controller)
    if l0_target is None or "linear" in kinds:
        return Linear(linear, warmup)
    return Controlled(linear, warmup, l0_target)


def _changed(run: Run, l0_target: float | None, changes: Mapping[str, Any]) -> Run:
    """A recipe's run with changes, among which may be other parts than those that have its target."""
    return run.replace(**changes, **({} if l0_target is None else {"l0_target": l0_target}))
