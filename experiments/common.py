"""What all launches share: flags, progress bars, the cache of compiled programs, the text with its held-out part, and
where autoencoders are. `running.py` has the beginning and the end of a launch."""

import importlib.metadata
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags

import gemma
import sae
from sae.files import local_path
from sae.formats.finding import activation_dtype as activation_dtype
from sae.formats.finding import autoencoder_folders as autoencoder_folders
from sae.progress import Bar
from sae.text import Sequences, preparing
from sae.text.corpus import Corpus
from sae.text.origin import SHIPPED

from . import helping, reading, stopping

T = TypeVar("T")
SHIPPED_TEXT = Path(gemma.__file__).parent / "tiny"


class progress(Bar):  # named like a function, since it is used as one
    """A progress bar over some items. Its words go to standard output, with the rest of what a launch says."""

    def __iter__(self) -> Iterator:
        for item in super().__iter__():
            stopping.check()
            yield item

    @classmethod
    def write(cls, s: str, file=None, end: str = "\n", nolock: bool = False) -> None:
        # A stage's words stand below its name.
        super().write(textwrap.indent(s, "  "), sys.stdout if file is None else file, end, nolock)
        sys.stdout.flush()


MODEL = flags.DEFINE_string(
    "model",
    "gemma2-tiny",
    "Model: gemma2-tiny (shipped), gemma3-270m (pip), a checkpoint's folder or file, or a hub id.",
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ("float32", "bfloat16", "float16"),
    "Dtype of the model's parameters and activations; float16 is for Gemma 2. Default: the dtype of the autoencoders "
    "or the store in use, else float32. The rows on the disk have --store_dtype.",
)
CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "Text to harvest: plain text, JSON, CSV or Parquet, packed or not, a folder of these, or a dataset that Hugging "
    "Face's `datasets` saved to disk; with `text`, or with `messages` of chats. Default: the text shipped with "
    "gemma2-tiny.",
)
HELD_OUT = flags.DEFINE_string(
    "held_out",
    None,
    "Text to evaluate on. Default: the shipped held-out text, or a tenth of --corpus by a hash of its documents' text.",
)
PACKED = flags.DEFINE_bool(
    "packed",
    False,
    "Lay documents one after another, each begun by BOS, so that no sequence but the last is padded. Attention "
    "goes across the documents of a sequence.",
)
ONLY_MODEL_TURNS = flags.DEFINE_bool(
    "only_model_turns", False, "Harvest of chats what the model says, and nothing else of the template."
)
LENGTH = flags.DEFINE_integer("length", 256, "Tokens of a sequence, BOS included.", lower_bound=3)
MAX_SEQUENCES = flags.DEFINE_integer(
    "max_sequences",
    0,
    "Harvest at most this many sequences of the corpus, taken at random; 0 for all, which is the default. The whole "
    "way in one command has another default, which it says.",
    lower_bound=0,
)
EVAL_SEQUENCES = flags.DEFINE_integer(
    "eval_sequences", 128, "Sequences of held-out text for metrics and pages, taken at random.", lower_bound=1
)
COMPILATION_CACHE = flags.DEFINE_bool(
    "compilation_cache",
    True,
    "On GPUs and TPUs, keep compiled programs in the user's cache folder, for the next launch.",
)
EXPANDED_CACHE = flags.DEFINE_bool(
    "expanded_cache",
    True,
    "Keep the numbers of a GGUF model, expanded, in the user's cache folder, for the next launch.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of every random choice.", lower_bound=0)
# The flags that say how a model is loaded, and how a text is read and cut.
OF_MODELS, OF_TEXTS = ("model", "expanded_cache"), ("corpus", "held_out", "packed", "only_model_turns", "length")
OF_TEXTS += ("max_sequences", "eval_sequences", "skip_bad", "text_dir")
helping.seldom("compilation_cache", "expanded_cache")
# What --help lists, in launches that adopt these flags.
flags.adopt_module_key_flags(reading)


def user_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Returns this package's folder in the user's cache: `$XDG_CACHE_HOME/mishax-lite`, or `~/.cache/mishax-lite`."""
    home = environment.get("XDG_CACHE_HOME")
    # The XDG specification says to ignore relative paths.
    root = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return root / "mishax-lite"


def load_model(recorded: Iterable[str] = ()) -> gemma.Model:
    """Returns the model that `--model` names.

    Without --dtype it has the dtype that a store or autoencoders record, where all of them agree. A GGUF file's numbers
    are expanded once, as `--expanded_cache` says.

    Args:
      recorded: the dtypes on record.
    """
    dtypes = set(recorded)
    dtype = DTYPE.value or (dtypes.pop() if len(dtypes) == 1 else "float32")
    folder = user_cache() / "expanded" if EXPANDED_CACHE.value else None
    before = set() if folder is None else set(folder.glob("*"))
    model = gemma.load(MODEL.value, dtype=np.dtype(dtype), expanded=folder)
    for file in sorted(set() if folder is None else set(folder.glob("*")) - before):
        size = file.stat().st_size / 1e9
        print(f"{MODEL.value} is kept expanded, {size:.1f} GB in {file} (--noexpanded_cache: not)", file=sys.stderr)
    return model


def compilation_cache_folder(device: jax.Device, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Returns where compiled programs for a kind of device are kept, in a folder for each version of the compiler:
    `$XDG_CACHE_HOME/mishax-lite/compiled/jaxlib-0.10.2-NVIDIA_H100_80GB_HBM3`; None for CPUs.

    On some hosts with AVX-512, JAX rejects on reading what it has written for the CPU, with a long error message for
    each program (jax#38445, openxla/xla#44565): it takes the features of the machine for others than those that it
    compiled for.
    """
    if device.platform == "cpu":
        return None
    kind = re.sub(r"[^A-Za-z0-9.]+", "_", device.device_kind).strip("_")
    return user_cache(environment) / "compiled" / f"jaxlib-{importlib.metadata.version('jaxlib')}-{kind}"


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache, as `--compilation_cache` says. Call it before the first compilation.

    A folder that the user has named (JAX_COMPILATION_CACHE_DIR) stays as it is.

    Returns:
      The folder, or None where nothing is kept.
    """
    # pyrefly: ignore[missing-attribute]  JAX makes the attribute when it runs
    if jax.config.jax_compilation_cache_dir is not None:
        # pyrefly: ignore[missing-attribute]  JAX makes the attribute when it runs
        return Path(jax.config.jax_compilation_cache_dir)
    folder = compilation_cache_folder(jax.local_devices()[0]) if COMPILATION_CACHE.value else None
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"compiled programs are not kept: {error}; XDG_CACHE_HOME may name another folder", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def check_texts() -> None:
    """Raises ValueError for flags about text that contradict one another."""
    if CORPUS.value and HELD_OUT.value and local_path(CORPUS.value).absolute() == local_path(HELD_OUT.value).absolute():
        raise ValueError(
            f"--held_out and --corpus are both {CORPUS.value}: held-out text must not be trained on. Without "
            "--held_out, a tenth of the corpus is held out"
        )


def texts(
    model: sae.LanguageModel,
    *,
    most: int | None = None,
    folder: Path = Path("runs/text"),
    say: Callable[[str], object] = print,
) -> tuple[Sequences, Sequences]:
    """Returns the sequences to harvest and those to evaluate on, as the flags say. No document is in both.

    Args:
      model: with its tokenizer.
      most: the most sequences to harvest; by default what `--max_sequences` says.
      folder: where a large text is kept as tokens, unless `--text_dir` names another.
      say: called with a line at a time: what is left out, duplicates, and how many sequences are taken of how many.
    """
    corpus = _corpus(model, say=say)
    train, held_out = (_cut(model, corpus, part, folder, say) for part in ("harvested", "held out"))
    preparing.check_parts(corpus, train, held_out, model.tokenizer, str(CORPUS.value), say)
    return (
        _some(train, MAX_SEQUENCES.value if most is None else most, "--max_sequences", say),
        _some(held_out, EVAL_SEQUENCES.value, "--eval_sequences", say),
    )


def held_out_text(
    model: sae.LanguageModel,
    at_hand: bool = True,
    *,
    folder: Path = Path("runs/text"),
    say: Callable[[str], object] = print,
) -> Sequences:
    """Returns the sequences to evaluate on, as the flags say, and cuts no others.

    Args:
      at_hand: whether the flags name the text that was harvested. If not, the text of --held_out is taken as it is.
      folder: as for `texts`.
      say: as for `texts`.
    """
    corpus = _corpus(model, at_hand, say=say)
    return _some(_cut(model, corpus, "held out", folder, say), EVAL_SEQUENCES.value, "--eval_sequences", say)


def _corpus(model: sae.LanguageModel, at_hand: bool = True, *, say: Callable[[str], object]) -> Corpus:
    if model.tokenizer is None:
        raise ValueError(f"{MODEL.value} has no tokenizer.model, so text cannot be turned into its tokens")
    given = at_hand or not HELD_OUT.value
    return Corpus(
        corpus_path() if given else None, held_out_path(), read=preparing.Reader(say, reading.SKIP_BAD.value), say=say
    )


def corpus_path() -> str | Path:
    """Returns where the text to harvest is."""
    return CORPUS.value or SHIPPED_TEXT / "text.jsonl"


def held_out_path() -> str | Path | None:
    """Returns where the held-out documents are; None where they are a share of the corpus."""
    return HELD_OUT.value or (None if CORPUS.value else SHIPPED_TEXT / "held_out.jsonl")


def _cut(model: sae.LanguageModel, corpus: Corpus, part: Any, folder: Path, say: Callable[[str], object]) -> Sequences:
    form = reading.form(LENGTH.value, PACKED.value, ONLY_MODEL_TURNS.value, folder)
    named = None if corpus.path is None else CORPUS.value or SHIPPED
    names = {"corpus": named, "held_out": HELD_OUT.value, "model": MODEL.value}
    return preparing.sequences_of(corpus, part, model.tokenizer, form, names, say)


def _some(sequences: Sequences, most: int, flag: str, say: Callable[[str], object]) -> Sequences:
    """Returns at most so many sequences, taken at random; 0 for all."""
    taken = preparing.some(sequences, most, SEED.value)
    if len(taken) < len(sequences):
        say(f"{most:,} of {len(sequences):,} sequences are taken, at random ({flag})")
    return taken
