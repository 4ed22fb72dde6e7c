"""What all launches share: flags, progress bars, errors in one line, and the text with its held-out part."""

import errno
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

import gemma
import sae
from sae.formats import params_npz
from sae.text import Document, Sequences, cut, iter_documents

T = TypeVar("T")
AUTOENCODER_FILES = (params_npz.GEMMA_SCOPE, params_npz.OWN)
CROSSCODER = "crosscoder_"  # begins the names of their folders
SHIPPED_TEXT = Path(gemma.__file__).parent / "tiny"
_interrupted = threading.Event()


def progress(items: Iterable[T], **about) -> Iterator[T]:
    """A progress bar over some items; about: `total`, `desc`, `initial`, as for tqdm."""
    nothing = about.get("total") == about.get("initial", 0)
    for item in tqdm(items, mininterval=0.5, dynamic_ncols=True, leave=False, disable=nothing, **about):
        if _interrupted.is_set():  # Ctrl-C came where Python swallows exceptions: in a finaliser, say
            raise KeyboardInterrupt
        yield item


def _interrupt(*_):
    _interrupted.set()
    raise KeyboardInterrupt


MODEL = flags.DEFINE_string(
    "model",
    "gemma2-tiny",
    "Model: gemma2-tiny (shipped), gemma3-270m (pip), a checkpoint's folder or file, or a hub id.",
)
CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "Text to harvest: plain text, JSON lines or Parquet, a folder of these, or a dataset that Hugging Face `datasets` "
    "saved to disk; with `text`, or with `messages` of chats. Default: the text shipped with gemma2-tiny.",
)
HELD_OUT = flags.DEFINE_string(
    "held_out", None, "Text to evaluate on. Default: the shipped held-out text, or a tenth of --corpus, by documents."
)
PACKED = flags.DEFINE_bool(
    "packed",
    False,
    "Lay documents one after another, each begun by BOS, so that no sequence but the last is padded. Attention "
    "goes across the documents of a sequence.",
)
ONLY_MODEL_TURNS = flags.DEFINE_bool(
    "only_model_turns", False, "Of chats, harvest what the model says and nothing else of the template."
)
LENGTH = flags.DEFINE_integer("length", 256, "Tokens of a sequence, BOS included.", lower_bound=3)
MAX_SEQUENCES = flags.DEFINE_integer(
    "max_sequences", 2000, "Harvest no more than this many sequences of the corpus, taken at random.", lower_bound=1
)
EVAL_SEQUENCES = flags.DEFINE_integer(
    "eval_sequences", 128, "Sequences of held-out text for figures and pages, taken at random.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of every random choice.", lower_bound=0)


def run(main: Callable[[], None]) -> None:
    """Runs a launch: an error of the user's is one line and exit status 1; a flag out of range, exit status 2."""

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            # absl's message may go over several lines; the first has the flag, the last the bound.
            print(f"error: {' '.join(str(error).split())} (--help lists the flags)", file=sys.stderr)
            sys.exit(2)
        if len(rest) > 1:
            print(f"error: flags only, got {' '.join(rest[1:])!r} (--help lists the flags)", file=sys.stderr)
            sys.exit(2)
        return rest

    def guarded(_):
        # Orbax reports each of its steps at level INFO.
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.getLogger("absl").setLevel(logging.WARNING)
        signal.signal(signal.SIGINT, _interrupt)
        try:
            main()
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                error = f"the disk is full ({error}); what is finished is kept, free some and run again to go on"
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)
        except sae.Preempted as error:
            print(f"stopped: {error}; the same command goes on from there", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)
        except KeyboardInterrupt:
            print("interrupted: what is finished is kept, and the same command goes on from there", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def texts(model: gemma.Model) -> tuple[Sequences, Sequences]:
    """The sequences to harvest and those to evaluate on, as the flags say; no sequence is in both."""
    if model.tokenizer is None:
        raise ValueError(f"{MODEL.value} has no tokenizer.model, so text cannot be turned into its tokens")
    corpus = CORPUS.value or SHIPPED_TEXT / "text.jsonl"
    if HELD_OUT.value or not CORPUS.value:
        train = _cut(model, iter_documents(corpus))
        held_out = _cut(model, iter_documents(HELD_OUT.value or SHIPPED_TEXT / "held_out.jsonl"))
    elif PACKED.value:
        train, held_out = _split_packed(model, corpus)
    else:
        train, held_out = _split(_cut(model, iter_documents(corpus)))
    return _some(train, MAX_SEQUENCES.value), _some(held_out, EVAL_SEQUENCES.value)


def _cut(model: gemma.Model, documents: Iterable[Document]) -> Sequences:
    return cut(documents, model.tokenizer, LENGTH.value, packed=PACKED.value, only_model_turns=ONLY_MODEL_TURNS.value)


def _split_packed(model: gemma.Model, corpus: str) -> tuple[Sequences, Sequences]:
    """As `_split`, before the documents lie in sequences together; a tenth is of their characters here. The text is
    read three times and never held."""
    sizes = np.asarray([document.characters for document in iter_documents(corpus)])
    if len(sizes) == 1:
        return _split(_cut(model, iter_documents(corpus)))
    # A document that is more than half of the text is for the harvest.
    candidates = np.flatnonzero(2 * sizes <= sizes.sum())
    chosen = set(candidates[_tenth(sizes[candidates], sizes.sum() / 10)].tolist())

    def part(held_out: bool) -> Iterator[Document]:
        return (document for number, document in enumerate(iter_documents(corpus)) if (number in chosen) == held_out)

    return _cut(model, part(False)), _cut(model, part(True))


def _split(sequences: Sequences) -> tuple[Sequences, Sequences]:
    """All but a tenth, and a tenth: whole documents taken at random; of a single document, its end."""
    if len(sequences) < 2:
        raise ValueError(
            f"{CORPUS.value} makes a single sequence of {LENGTH.value} tokens: with no --held_out, two are needed at "
            "least, one to harvest and one to evaluate on. Give more text or a smaller --length"
        )
    tenth = max(1, len(sequences) // 10)
    chosen = _tenth(np.bincount(sequences.document, minlength=len(sequences.documents)), tenth)
    held_out = np.isin(sequences.document, chosen)
    if held_out.all():
        held_out = np.arange(len(sequences)) >= len(sequences) - tenth
    return sequences.take(np.flatnonzero(~held_out)), sequences.take(np.flatnonzero(held_out))


def _tenth(sizes: np.ndarray, tenth: float) -> np.ndarray:
    """Numbers of documents [any], taken at random until their sizes sum to a tenth at least."""
    order = np.random.default_rng(SEED.value).permutation(len(sizes))
    return order[: np.searchsorted(np.cumsum(sizes[order]), tenth) + 1]


def _some(sequences: Sequences, most: int) -> Sequences:
    if most >= len(sequences):
        return sequences
    return sequences.take(np.sort(np.random.default_rng(SEED.value).permutation(len(sequences))[:most]))


def autoencoder_folders_of(root: Path, configs: Sequence[sae.TrainConfig]) -> list[Path]:
    """Where autoencoders are kept, in the manner of Gemma Scope: `layer_3/resid_post/width_1536/target_l0_20`. Learning
    rate and seed are named where the runs differ in them."""
    several = [name for name in ("learning_rate", "seed") if len({getattr(c, name) for c in configs}) > 1]

    def folder(config: sae.TrainConfig) -> Path:
        place = root / config.sites[0] if len(config.sites) == 1 else root / f"{CROSSCODER}{_joined(config.sites)}"
        if config.transcodes:
            place = place.with_name(f"{place.name}_to_{_joined(config.sites_out)}{'_skip' if config.skip else ''}")
        aim = f"target_l0_{config.l0_target:g}" if config.l0_target is not None else f"lambda_{config.coefficient:g}"
        return place / f"width_{config.width}" / "_".join([aim, *(f"{n}_{getattr(config, n)}" for n in several)])

    return [folder(config) for config in configs]


def _joined(sites: Sequence[str]) -> str:
    return "+".join(site.replace("/", ".") for site in sites)


def autoencoder_folders(root: Path) -> list[Path]:
    """Every autoencoder under a folder, sites and sparsities in order; not crosscoders, which have no site to evaluate
    at.

    Raises:
      ValueError: when there is none.
    """
    found = sorted({file.parent for name in AUTOENCODER_FILES for file in root.rglob(name)}, key=_natural)
    found = [folder for folder in found if not any(part.startswith(CROSSCODER) for part in folder.parts)]
    if not found:
        raise ValueError(f"no autoencoder under {root}: train some first")
    return found


def _natural(path: Path) -> list:
    """Sorts numbers within names by their value."""
    words = str(path).replace("/", "_").split("_")
    return [(0, float(word), "") if word.replace(".", "", 1).isdigit() else (1, 0.0, word) for word in words]
