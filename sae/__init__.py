"""Sparse autoencoders for Gemma: harvesting activations, training on them, measuring and looking at what comes out."""

from sae.autoencoder import Info, JumpReLU
from sae.crosscoder import Crosscoder
from sae.evaluation.fidelity import Metrics, evaluate
from sae.formats.files import load, save
from sae.harvesting import harvest
from sae.recipes import TrainConfig, gemma_scope, gemma_scope_2, short_run
from sae.store.reading import ActivationStore
from sae.store.sharing import share
from sae.streaming import stream
from sae.trainer.planning import Plan, plan
from sae.trainer.preemption import Preempted
from sae.trainer.reporting import TensorBoard, WeightsAndBiases
from sae.training import TrainingWarning, train

__all__ = [
    "ActivationStore",
    "Crosscoder",
    "Info",
    "JumpReLU",
    "Metrics",
    "Plan",
    "Preempted",
    "TensorBoard",
    "TrainConfig",
    "TrainingWarning",
    "WeightsAndBiases",
    "evaluate",
    "gemma_scope",
    "gemma_scope_2",
    "harvest",
    "load",
    "plan",
    "save",
    "share",
    "short_run",
    "stream",
    "train",
]
