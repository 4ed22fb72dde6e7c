"""`sae.train`: trains autoencoders from a store, several in one reading of it; runs can be stopped and resumed."""

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
    """Trains one autoencoder or several, on the same batches.

    Args:
        run: one run, or several that agree in steps, batch_size and data_seed. Sites, widths, architectures, targets,
            learning rates, seeds and the rest may differ.
        store: a store with the runs' sites, or another source (`sae.stream`, `sae.rows`).
        mesh: with axes `data` and `latent`; all devices along `data` by default.
        together: how runs of one shape share a step: "side_by_side", one after another; "vmapped" or "scanned", stacked
            in one program. The first is fastest on CPU (`experiments/benchmarks/sweep_cost.py`); stacking saves
            launches where autoencoders are small.
        checkpoint_dir: a folder for checkpoints. The run goes on from a checkpoint there, to the same result as if it
            had not been stopped (on another mesh, the same up to rounding). SIGTERM and SIGHUP save and raise
            `Preempted`; without a folder they act as usual. An error or Ctrl-C keeps the last checkpoint.
        save_every: steps between checkpoints; the last and the best (`trainer.checkpoints.Checkpoints`) are kept.
        log_every: steps between records of the history.
        reports: objects that receive every record, such as `sae.TensorBoard(folder)`; subclasses of `sae.Report`.
        progress: by default a bar with L0, FVU, dead latents and the part of the time spent waiting for data (as of the
            last record), an estimate before it and a table of the runs after it, on standard error, where that is a
            terminal or this is a notebook. True shows them everywhere, False nowhere. Or a function that is called as
            tqdm is, with the steps to come, `total`, `initial` and `desc`.

    Returns:
        The pair `autoencoders, history` (`sae.trainer.result.Result`, whose `table()` shows both). The autoencoders are
        folded to raw activations, in the order of the runs; latents that are split over the mesh stay split; `largest`
        has the largest activation of each latent over batches after the last step (`sae.finish`). The history is a list
        of dicts: for each run one at the first step, at every `log_every`th and at the last, with means over the
        batches since the record before:

        - `run` (its index), `site`, `l0_target`, `step`, `tokens`;
        - `loss`, its parts `reconstruction` and `penalty`, in scaled units, and `coefficient`, lambda; `fvu`;
        - `l0`, `l0_quantiles` over tokens (5%, 25%, 50%, 75%, 95%), `dead`: the number of latents that were silent for
          the last `dead_tokens` tokens (as many as the run says, or half of what the run has seen), and `density`: the
          numbers of latents that fire with frequencies between `diagnostics.DENSITY_EDGES`;
        - for a JumpReLU, `threshold_mean`, `threshold_moved` (mean |log(theta / theta_0)|), and `window`, the part of
          pre-activations with a straight-through gradient; for other architectures, their own `records`;
        - `gradients`: their norms.

    Raises:
        ValueError: for a site that the store lacks, runs that cannot share batches, a mesh that the width or the batch
            cannot be split over, too little memory, a checkpoint of another run or of another source, a folder that
            cannot be written, or a loss that is not finite. All but the last before the first step.
        OSError: where the disk has no room for the checkpoints; before the first step, as far as that can be known.
        Preempted: at SIGTERM or SIGHUP; the run is saved.

    Warns:
        TrainingWarning: in words, once for each run: warm-ups longer than the run, thresholds that do not move, an L0
            far off its target, an FVU that diverges, dead latents, steps that wait for data.

    Example:
        >>> run = sae.short_run("layer_1/resid_post", width=64, steps=4, batch_size=64, l0_target=8)
        >>> result = sae.train(run, store)
        >>> result.autoencoder
        JumpReLU(layer_1/resid_post of gemma2-tiny: 192 -> 64 latents, float32)
        >>> result.history[-1]["step"]
        3
    """
    runs = estimating.runs_of(run, "sae.train")
    if not isinstance(store, Source):
        raise ValueError(
            "sae.train reads a store, a stream or rows: give the result of sae.harvest, sae.stream, sae.rows or "
            f"sae.ActivationStore.open(path), got {showing.kind(store)}"
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
    """Returns numbers of steps, given by the names of arguments, as plain ints.

    Raises:
        ValueError: for a number that is no whole number from 1 on.
    """
    for name, number in numbers.items():
        try:
            numbers[name] = operator.index(number)
        except TypeError:
            raise ValueError(f"{name} must be a whole number of steps, got {number!r}") from None
        if numbers[name] < 1:
            raise ValueError(f"{name} must be at least 1 step, got {number}")
    return list(numbers.values())
