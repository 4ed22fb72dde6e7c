"""`sae.train`: autoencoders from a store, several in one pass over it, stopped and resumed at will."""

import operator
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from sae import showing
from sae.progress import Progress, chosen, say
from sae.runs import Run
from sae.store.source import Source
from sae.trainer import estimating
from sae.trainer.complaints import TrainingWarning
from sae.trainer.reporting import Report
from sae.trainer.result import Result
from sae.trainer.session import Session

__all__ = ["TrainingWarning", "train"]


def train(
    run: Run | Sequence[Run],
    store: Source,
    mesh: Mesh | None = None,
    *,
    together: str = "side_by_side",
    checkpoint_dir: str | Path | None = None,
    save_every: int = 200,
    log_every: int = 50,
    reports: Sequence[Report] = (),
    progress: Progress | bool | None = None,
) -> Result:
    """Trains one autoencoder or several, on the same batches of one pass over the store.

    Args:
      run: one run, or several that agree in steps, batch_size and data_seed. Sites, widths, architectures, targets,
        learning rates, seeds and the rest may differ.
      store: has the runs' sites; or what `sae.stream` returns.
      mesh: with axes `data` and `latent`; all devices along `data` by default.
      together: how runs of one shape share a step: "side_by_side", one after another; "vmapped" or "scanned", stacked
        in one program. The first is fastest on CPU (`experiments/benchmarks/sweep_cost.py`); stacking saves launches
        where autoencoders are small.
      checkpoint_dir: where given, the run is saved there and goes on from what is there, to the same result as if it
        had not been stopped; on another mesh, to the same up to rounding. SIGTERM and SIGHUP save and raise
        `Preempted`; without it, they do what they always do. An error or Ctrl-C keeps what was saved.
      save_every: steps between checkpoints; the last and the best (`trainer.checkpoints.Checkpoints`) are kept.
      log_every: steps between records of the history.
      reports: told of every record, for example `sae.TensorBoard(folder)`; subclasses of `sae.Report`.
      progress: by default a bar with L0, FVU, dead latents and the share of time spent waiting for data (as of the last
        record), what the run takes before it and a table of the runs after it, on standard error, where that is a
        terminal or this is a notebook. True shows them everywhere, False nowhere. Or a function that is called with the
        steps to come, and `total`, `initial` and `desc`, as tqdm is.

    Returns:
      The pair `autoencoders, history` (`sae.trainer.result.Result`, whose `table()` shows both). The autoencoders are
      folded to raw activations, in the order of the runs; where latents are split over the mesh, they stay split;
      `largest` has the largest activation of each latent over the batches that come after the last step
      (`sae.finish`). The history is a list of dicts: for each run one at the first step, at every
      `log_every`th and at the last, with means over the batches since the one before:

      - `run` (its number), `site`, `l0_target`, `step`, `tokens`;
      - `loss`, its parts `reconstruction` and `penalty`, in scaled units, and `coefficient`, lambda; `fvu`;
      - of the latents, `l0`, `l0_quantiles` over tokens (5%, 25%, 50%, 75%, 95%), `dead`: how many were silent for the
        last `dead_tokens` tokens (as many as the run says, or half of what the run has seen), and `density`: how
        many fire with frequencies between `diagnostics.DENSITY_EDGES`;
      - of a JumpReLU's thresholds, `threshold_mean`, `threshold_moved` (mean |log(theta / theta_0)|), and `window`, the
        share of pre-activations with a straight-through gradient; of other architectures, what they say of themselves;
      - `gradients`: their norms.

    Raises:
      ValueError: for a site the store has not, runs that cannot share batches, a mesh that the width or the batch
        cannot be split over, more memory than there is, a checkpoint of another run or of another source, a folder that
        cannot be written, or a loss that is not finite. All but the last before the first step.
      OSError: when the disk has no room for the checkpoints; before the first step, as far as that can be known.
      Preempted: when SIGTERM or SIGHUP came; what was trained is saved.

    Warns:
      TrainingWarning: in words, each thing once for each run: warm-ups longer than the run, thresholds that do not
        move, an L0 far off its target, an FVU that diverges, dead latents, steps that wait for data.
    """
    runs = estimating.runs_of(run, "sae.train")
    if not isinstance(store, Source):
        raise ValueError(
            "sae.train takes a store or a stream to read from: what sae.harvest or sae.stream returns, or "
            f"sae.ActivationStore.open(path); got {showing.kind(store)}"
        )
    progress = chosen(progress if progress is not None or jax.process_index() == 0 else False)
    save_every, log_every = _steps_between(save_every=save_every, log_every=log_every)
    with Session(
        runs,
        store,
        estimating.default_mesh() if mesh is None else mesh,
        together=together,
        folder=checkpoint_dir,
        save_every=save_every,
        log_every=log_every,
        reports=reports,
        progress=progress,
    ) as session:
        for step in session.steps():
            if not session.step(step):
                break
        session.finish()
    result = session.result()
    say(progress, result.table())
    return result


def _steps_between(**numbers: int) -> list[int]:
    """Numbers of steps by the names of arguments, plain.

    Raises:
      ValueError: for one that is no whole number from 1 on.
    """
    for name, number in numbers.items():
        try:
            numbers[name] = operator.index(number)
        except TypeError:
            raise ValueError(f"{name} must be a whole number of steps, got {number!r}") from None
        if numbers[name] < 1:
            raise ValueError(f"{name} must be at least 1 step, got {number}")
    return list(numbers.values())
