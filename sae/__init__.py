"""Sparse autoencoders for any language model that speaks `LanguageModel`: this package harvests activations, trains
autoencoders on them, measures and shows them, and puts them back into the running model."""

from mishax_lite.hashing import fingerprint
from sae.adapting import AdaptedModel
from sae.autoencoder import Info, JumpReLU
from sae.checking import Check, CheckWarning, check
from sae.counted import Counted, Sinks
from sae.cross_layer import CrossLayerTranscoder
from sae.crosscoder import Crosscoder
from sae.evaluation.fidelity import Metrics, evaluate
from sae.evaluation.nearest_latents import Nearest, nearest
from sae.evaluation.tables import as_table
from sae.firing import Firing, top_latents
from sae.formats.files import load, save
from sae.formats.releases import Published, releases
from sae.gated import Gated
from sae.harvesting import harvest
from sae.interventions import ablate, clamp, of_max, splice, steer
from sae.language_model import LanguageModel, Site
from sae.looking import Latents, latents
from sae.normed_topk import NormedTopK
from sae.patching import patch_grid
from sae.recipes import gemma_scope, gemma_scope_2, short_run
from sae.releasing.card import Licences
from sae.releasing.making import Release, release
from sae.releasing.pushing import push
from sae.relu import ReLU
from sae.runs import Run
from sae.site_kinds import SiteKind
from sae.store.given import rows
from sae.store.reading import ActivationStore
from sae.streaming import stream
from sae.topk import TopK
from sae.trainer.estimating import Estimate, estimate
from sae.trainer.preemption import Preempted
from sae.trainer.reporting import Report
from sae.trainer.trackers import TensorBoard, WeightsAndBiases
from sae.training import TrainingWarning, train
from sae.transcoder_set import TranscoderSet

__all__ = [
    "ActivationStore",
    "AdaptedModel",
    "Check",
    "CheckWarning",
    "Counted",
    "CrossLayerTranscoder",
    "Crosscoder",
    "Estimate",
    "Firing",
    "Gated",
    "Info",
    "JumpReLU",
    "LanguageModel",
    "Latents",
    "Licences",
    "Metrics",
    "Nearest",
    "NormedTopK",
    "Preempted",
    "Published",
    "ReLU",
    "Release",
    "Report",
    "Run",
    "Sinks",
    "Site",
    "SiteKind",
    "TensorBoard",
    "TopK",
    "TrainingWarning",
    "TranscoderSet",
    "WeightsAndBiases",
    "ablate",
    "as_table",
    "check",
    "clamp",
    "estimate",
    "evaluate",
    "explore",
    "fingerprint",
    "gemma_scope",
    "gemma_scope_2",
    "harvest",
    "latents",
    "load",
    "nearest",
    "of_max",
    "patch_grid",
    "push",
    "release",
    "releases",
    "rows",
    "save",
    "short_run",
    "splice",
    "steer",
    "stream",
    "top_latents",
    "train",
]


def __getattr__(name: str):
    # Only pages need the packages of the extra `pages`.
    if name == "explore":
        from sae.explorer.building import explore

        globals()[name] = explore
        return explore
    raise AttributeError(f"module 'sae' has no attribute {name!r}")
