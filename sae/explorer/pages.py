"""Feature pages: static files that open without a network. Jinja2 escapes the text of the corpus."""

import dataclasses
import functools
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath

import numpy as np

from sae.evaluation.latents import BINS, LatentStatistics, TopTokens
from sae.explorer.characters import Characters, first, last, turns
from sae.files import replace_file
from sae.language_model import Tokenizer
from sae.progress import every
from sae.released import Released
from sae.showing import count
from sae.text import Sequences

try:
    import jinja2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "feature pages need the package jinja2: pip install jinja2 (the extra `pages`)", name=error.name
    ) from None

TOKENS_BEFORE, TOKENS_AFTER = 32, 16


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sae", "explorer/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    # pyrefly: ignore[unsupported-operation]  Jinja declares the tests that it has itself
    environment.tests["turning"] = turns
    return environment


def link(place: PurePath) -> str:
    """Returns a link to a file below a page, whatever the names of its folders.

    Example:
      >>> link(PurePath("lr=1e-3 #2/50%/index.html"))
      'lr%3D1e-3%20%232/50%25/index.html'
    """
    return "/".join(urllib.parse.quote(os.fsencode(part), safe="") for part in place.parts)


@dataclasses.dataclass(frozen=True)
class About:
    """What pages say of the text of their metrics.

    Attributes:
      text: its name, after "tokens of": "held-out text".
      omissions: the tokens of it that do not count (`Counted.omissions`).
    """

    text: str
    omissions: str


@dataclasses.dataclass(frozen=True)
class Explanations:
    """Latents in words.

    Attributes:
      about: what explanations are, in a line.
      of: takes the number of a latent and returns its explanation.
    """

    about: str
    of: Callable[[int], str]


def write_index(folder: Path, model: str, rows: Sequence[dict], tokens: int, about: About) -> Path:
    """Writes `index.html` and `style.css`, and returns the path of the first.

    Args:
      folder: where they go.
      model: the name of the model.
      rows: dicts with `href` (from `link`), `site`, `width`, `target` and `metrics`.
      tokens: how many tokens the metrics are over.
      about: what the page says of the text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # pyrefly: ignore[missing-attribute]  not None here
    style, _, _ = _environment().loader.get_source(_environment(), "style.css")
    replace_file(folder / "style.css", style)
    page = _environment().get_template("index.html").render(
        root="", model=model, rows=rows, tokens=count(tokens, "token"), about=about
    )  # fmt: skip
    replace_file(folder / "index.html", _writable(page))
    return folder / "index.html"


def write_latents(
    folder: Path,
    root: str,
    name: str,
    autoencoder: Released,
    statistics: LatentStatistics,
    effects: TopTokens | None,
    sequences: Sequences,
    tokenizer: Tokenizer,
    about: About,
    *,
    explanations: Explanations | None = None,
    progress: Callable[..., Iterable] = lambda latents, **_: latents,
) -> Path:
    """Writes a page for each latent that fired, and then their list, `index.html`. Where it exists, all pages exist.

    Args:
      folder: where they go.
      root: the path from there to the folder of the first page, such as "../../".
      name: the pages' name for the autoencoder.
      autoencoder: on raw activations.
      statistics: of the autoencoder, over `sequences`.
      effects: from `top_tokens`, or None where latents have no direct effect on the logits.
      sequences: the text of the examples.
      tokenizer: to show tokens.
      about: what the pages say of the text.
      explanations: shown on the page of each latent and in the list; None for none.
      progress: called with the latents to come, and `total` and `desc`, as tqdm is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    characters = Characters(tokenizer)
    labels = characters.labels
    alive = np.nonzero(statistics.fired)[0].tolist()
    threshold = np.asarray(autoencoder.thresholds)
    template = _environment().get_template("latent.html")
    rows = []
    for place, z in enumerate(every(progress(alive, total=len(alive), desc=f"pages {name}"), alive)):
        numbers = range(statistics.example_sequence.shape[1])
        examples = [_example(statistics, z, e, sequences, characters, tokenizer.pad) for e in numbers]
        examples = [example for example in examples if example is not None]
        top, bottom = [], []
        if effects is not None:
            top = _with_effects(labels, effects.promoted[z], effects.promotion[z])
            bottom = _with_effects(labels, effects.suppressed[z], effects.suppression[z])
        explanation = None if explanations is None else explanations.of(z)
        frequency = f"{statistics.fired[z] / statistics.tokens:.3%}"
        page = template.render(
            root=root,
            name=name,
            latent=z,
            explanation=explanation,
            explanations=explanations,
            previous=alive[place - 1] if place else None,
            next=alive[place + 1] if place + 1 < len(alive) else None,
            frequency=frequency,
            tokens=count(statistics.tokens, "token"),
            threshold=f"{threshold[z]:.3g}",
            largest=f"{statistics.largest[z]:.3g}",
            bars=(bars := _bars(statistics, z)),
            reach=bars[-1]["high"],
            top=top,
            bottom=bottom,
            examples=examples,
        )
        (folder / f"{z}.html").write_text(_writable(page), encoding="utf-8")
        rows.append({
            "latent": z,
            "fired": int(statistics.fired[z]),
            "frequency": frequency,
            "largest": f"{statistics.largest[z]:.3g}",
            "explanation": explanation,
            "top": [token for token, _ in top[:4]],
            **_snippet(examples[0]),
        })  # fmt: skip
    # pyrefly: ignore[unsupported-operation]  a number
    rows.sort(key=lambda row: -row["fired"])
    dead = np.nonzero(statistics.fired == 0)[0].tolist()
    page = _environment().get_template("latents.html").render(
        root=root, name=name, width=autoencoder.width, tokens=count(statistics.tokens, "token"), rows=rows, dead=dead,
        about=about, explanations=explanations,
    )  # fmt: skip
    replace_file(folder / "index.html", _writable(page))
    return folder / "index.html"


# Control characters but tab and line feed, and code points that are no character: browsers differ in showing them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


def _writable(page: str) -> str:
    """Returns a page with labels such as <0x1B> for control characters, and escapes for code points that UTF-8 has no
    bytes for, such as half of a surrogate pair in a document's name."""
    page = _CONTROL.sub(lambda match: f"&lt;0x{ord(match[0]):02X}&gt;", page)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _with_effects(labels: list[str], ids: np.ndarray, effects: np.ndarray) -> list[tuple[str, str]]:
    return [(labels[i], f"{effect:+.2f}") for i, effect in zip(ids, effects, strict=True)]


def _bars(statistics: LatentStatistics, z: int) -> list[dict]:
    """Returns the histogram's bars up to the largest activation's: heights of 0 to 100, logarithmic in the count."""
    counts = np.trim_zeros(statistics.histogram[z], "b")  # the range grows by doubling, and ends far above
    most = np.log1p(counts.max())
    width = statistics.histogram_range[z] / BINS
    return [
        {
            "height": round(100 * float(np.log1p(number) / most), 1),
            "tokens": count(int(number), "token"),
            "low": f"{i * width:.3g}",
            "high": f"{(i + 1) * width:.3g}",
        }
        for i, number in enumerate(counts)
    ]


def _example(
    statistics: LatentStatistics, z: int, e: int, sequences: Sequences, characters: Characters, pad: int
) -> dict | None:
    """Returns the text around the peak of an example, in runs of tokens that are shaded alike; None without an example.

    A character is never parted, and has the strongest shade of its tokens.
    """
    row, peak = int(statistics.example_sequence[z, e]), int(statistics.example_peak[z, e])
    if row < 0:
        return None
    tokens, values = sequences.tokens[row], statistics.example_activation[z, e]
    # Padding comes last. By some rules padding and BOS count, and then either may be the peak.
    length = max(int(np.flatnonzero(tokens != pad).max(initial=0)), peak) + 1
    start, stop = max(min(1, peak), peak - TOKENS_BEFORE), min(length, peak + TOKENS_AFTER + 1)
    runs: list[dict] = []
    for begin, end, text in characters.spans(tokens[:length], start, stop):
        largest = values[begin:end].max()
        if largest > 0:
            each = ", ".join(f"{value:.3g}" for value in values[begin:end])
            shade = f"{max(largest / statistics.largest[z], 0.01):.2f}"
            runs.append({"text": text, "shade": shade, "value": each, "peak": begin <= peak < end})
        elif runs and not runs[-1]["shade"]:
            runs[-1]["text"] += text
        else:
            runs.append({"text": text, "shade": "", "value": "", "peak": False})
    document, token = sequences.place(row, peak)
    return {
        "pieces": runs,
        "largest": f"{values[peak]:.3g}",
        "document": sequences.documents[document][0],
        "token": max(0, token),  # BOS comes before a document's first
    }


def _snippet(example: dict, characters: int = 36) -> dict:
    """Returns the peak of an example with a few characters on either side."""
    place = next(i for i, piece in enumerate(example["pieces"]) if piece["peak"])
    before = "".join(piece["text"] for piece in example["pieces"][:place])
    after = "".join(piece["text"] for piece in example["pieces"][place + 1 :])
    one_line = lambda text: text.replace("\n", "")  # noqa: E731
    return {
        "before": last(one_line(before), characters),
        "peak": one_line(example["pieces"][place]["text"]),
        "after": first(one_line(after), characters // 2),
    }
