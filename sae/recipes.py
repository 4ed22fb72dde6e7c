"""Recipes: each puts the parts of a run together.

Every recipe takes the run's own fields, fields of its parts, and kinds of parts by name (`sae.Run.replace` says which
part gets which). A target L0 goes to the part that aims at one: the first sparsity term, or an architecture that keeps
k latents.
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
    """Returns a run with Gemma Scope's constants, for billions of tokens (arXiv 2408.05147, section 3).

    Args:
        site: the input site; several sites of one dim make a crosscoder.
        width: Z, the number of latents.
        steps: optimizer steps.
        l0_target: the L0 to aim at; the paper's recipe has none.
        penalty: "linear" or "quadratic" in the L0; the quadratic one needs a target.
        **changes: fields of the run or of its parts, by name; see `sae.Run.replace`.

    Raises:
        ValueError: for a field that nothing has, or a value that its part refuses.

    Example:
        >>> sae.gemma_scope("layer_20/resid_post", 2**14, steps=1_000_000)
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
    """Returns a run with Gemma Scope 2's recipe: a quadratic penalty at a target L0, warmed up over 50,000 steps, a
    penalty on latents that fire on more than a tenth of the tokens, and Matryoshka prefixes. The rest is Gemma Scope's.

    The report does not state the factor of its quadratic penalty, the strength of the penalty on frequent latents, and
    the prefixes. Here they are: 1/(2 * l0_target), with which the gradient is the linear penalty's at twice the target;
    a tenth of lambda at every step; and a 32nd, an eighth, a quarter and a half of the latents (none where the width is
    no multiple of 32).

    Args:
        site: the input site; several sites of one dim make a crosscoder.
        width: Z, the number of latents.
        steps: optimizer steps.
        penalty: "linear" or "quadratic" in the L0.
        **changes: fields of the run or of its parts, by name; see `sae.Run.replace`. `l0_target` is 50 by default, for
            a penalty that has one.

    Raises:
        ValueError: for a field that nothing has, or a value that its part refuses.

    Example:
        >>> sae.gemma_scope_2("layer_20/resid_post", 2**14, steps=1_000_000)
        Run(layer_20/resid_post: 16,384 latents, target L0 50, 1,000,000 steps of 4,096 tokens)
    """
    # Not an argument with a default: only a target that the caller gives may change the k of an architecture.
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
    """Returns a run for minutes or hours. The loss, the gradients, the constraint and the folding are the paper's; the
    differences are:

    - The paper's theta moves by about its learning rate a step, relative to itself, so that in a short run it would
      hardly move. Here theta itself is trained, with a learning rate and a bandwidth of its own.
    - Inputs are centred, as real residual streams have a mean far larger than their spread.
    - Encoders begin at a fifth of their decoders' norm, and theta a little above most pre-activations: several times as
      many latents as dimensions, all of full norm, would begin with an error four times the variance. This alone took a
      third off the FVU after 300 steps on the real Gemma 3 270M.
    - Learning rates are higher, the decoder's twice the encoder's (a twentieth off the FVU; half the encoder's put a
      tenth on it), and decay over the second half. Adam has a first moment, without which the rates were not stable,
      and a second moment over a hundred steps.
    - With a target, the penalty stays linear, and a controller moves lambda until the L0 is the target. The quadratic
      penalty also presses on the differences of the L0 between tokens and cost a tenth in FVU at an equal L0. The
      shorter the run, the faster the controller: at the speed that is right for 1,200 steps, it left the L0 up to 13%
      below its target after 450.
    - Latents that have been silent for a twentieth of the run are pulled back.
    - Batches are smaller, so the run has more steps; the warm-ups are a twentieth and a quarter of the run.

    All that depends on the length of the run is a part of it, so that `dataclasses.replace(run, steps=...)` is the
    recipe of the other length.

    Args:
        site: the input site; several sites of one dim make a crosscoder.
        width: Z, the number of latents.
        steps: optimizer steps.
        l0_target: the L0 to aim at; without it lambda is fixed.
        penalty: "linear" or "quadratic" in the L0; the quadratic one needs a target.
        log_threshold: whether to train log(theta), with a learning rate ten times as high, as a logarithm has further
            to go.
        **changes: fields of the run or of its parts, by name; see `sae.Run.replace`.

    Raises:
        ValueError: for a field that nothing has, or a value that its part refuses.

    Example:
        >>> sae.short_run("layer_3/resid_post", 1536, steps=600, l0_target=20, seed=1)
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
            # theta ends at several times its first value.
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
    """Returns the first sparsity term of a recipe.

    Args:
        penalty: "linear" or "quadratic".
        l0_target: the L0 to aim at; None for a fixed lambda.
        changes: the changes of the recipe. Where they name kinds of terms, those decide the penalty.
        linear: lambda of a linear penalty.
        quadratic: lambda of a quadratic penalty.
        warmup: the steps of lambda's warm-up.
        controller: the controller of a quadratic penalty; a linear one with a target always has one.
    """
    if penalty not in PENALTIES:
        raise ValueError(f"penalty is one of {', '.join(PENALTIES)}, got {penalty!r}")
    terms = changes.get("sparsity")
    kinds = [term for term in terms if isinstance(term, str)] if isinstance(terms, (tuple, list)) else []
    if "sparsity" in changes:
        penalty = "quadratic" if "quadratic" in kinds else "linear"
    if penalty == "quadratic":
        if l0_target is None:
            raise ValueError("a quadratic penalty needs an L0 to aim at: give l0_target")
        return Quadratic(quadratic, warmup, l0_target, controller)
    if l0_target is None or "linear" in kinds:
        return Linear(linear, warmup)
    return Controlled(linear, warmup, l0_target)


def _changed(run: Run, l0_target: float | None, changes: Mapping[str, Any]) -> Run:
    """Returns a recipe's run with changes. They may replace the part that has the target, so the target goes last."""
    return run.replace(**changes, **({} if l0_target is None else {"l0_target": l0_target}))
