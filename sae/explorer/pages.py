"""Feature pages: static files that open without a network. Text of the corpus goes through Jinja2's escaping."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jinja2
import numpy as np

import gemma
from sae.autoencoder import JumpReLU
from sae.evaluation.latents import BINS, LatentStatistics, TopTokens
from sae.files import replace_file
from sae.text import Sequences

TOKENS_BEFORE, TOKENS_AFTER = 32, 16


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("sae", "explorer/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


BREAK = "↵"


def write_index(folder: Path, model: str, rows: Sequence[dict], tokens: int) -> Path:
    """Writes `index.html` and `style.css`. A row has `href`, `site`, `width`, `target` and `metrics`."""
    folder.mkdir(parents=True, exist_ok=True)
    style, _, _ = _environment().loader.get_source(_environment(), "style.css")
    replace_file(folder / "style.css", style)
    page = _environment().get_template("index.html").render(root="", model=model, rows=rows, tokens=f"{tokens:,}")
    replace_file(folder / "index.html", page)
    return folder / "index.html"


def write_latents(
    folder: Path,
    root: str,
    name: str,
    autoencoder: JumpReLU,
    statistics: LatentStatistics,
    effects: TopTokens | None,
    sequences: Sequences,
    tokenizer: gemma.Tokenizer,
    *,
    progress: Callable[..., Iterable] = lambda latents, **_: latents,
) -> Path:
    """Writes a page for each latent that fired, then the list of them, `index.html`, whose presence says that all are
    there.

    Args:
      folder: where they go.
      root: the way from there to the folder of the first page, such as "../../".
      name: what the autoencoder is called on them.
      autoencoder, statistics: the statistics are over `sequences`.
      effects: from `top_tokens`, or None where latents have no direct effect on the logits.
      sequences: the text, for the examples.
      tokenizer: to show tokens.
      progress: called with the latents to come, and `total` and `desc`, as tqdm is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Line breaks get a mark that shows; in running text the break itself stays, after the mark.
    labels = [tokenizer.piece(i).replace("\n", BREAK) for i in range(len(tokenizer))]
    pieces = [label.replace(BREAK, BREAK + "\n") for label in labels]
    alive = np.nonzero(statistics.fired)[0].tolist()
    threshold = np.asarray(autoencoder.threshold)
    template = _environment().get_template("latent.html")
    rows = []
    for place, z in enumerate(progress(alive, total=len(alive), desc=f"pages {name}")):
        examples = [_example(statistics, z, e, sequences, pieces) for e in range(statistics.example_sequence.shape[1])]
        examples = [example for example in examples if example is not None]
        top, bottom = [], []
        if effects is not None:
            top = _with_effects(labels, effects.promoted[z], effects.promotion[z])
            bottom = _with_effects(labels, effects.suppressed[z], effects.suppression[z])
        frequency = f"{statistics.fired[z] / statistics.tokens:.3%}"
        page = template.render(
            root=root,
            name=name,
            latent=z,
            previous=alive[place - 1] if place else None,
            next=alive[place + 1] if place + 1 < len(alive) else None,
            frequency=frequency,
            tokens=f"{statistics.tokens:,}",
            threshold=f"{threshold[z]:.3g}",
            largest=f"{statistics.largest[z]:.3g}",
            bars=_bars(statistics, z),
            reach=f"{statistics.histogram_range[z]:.3g}",
            top=top,
            bottom=bottom,
            examples=examples,
        )
        (folder / f"{z}.html").write_text(page, encoding="utf-8")
        rows.append({
            "latent": z,
            "fired": int(statistics.fired[z]),
            "frequency": frequency,
            "largest": f"{statistics.largest[z]:.3g}",
            "top": [token for token, _ in top[:4]],
            **_snippet(examples[0]),
        })  # fmt: skip
    rows.sort(key=lambda row: -row["fired"])
    dead = np.nonzero(statistics.fired == 0)[0].tolist()
    page = _environment().get_template("latents.html").render(
        root=root, name=name, width=autoencoder.width, tokens=f"{statistics.tokens:,}", rows=rows, dead=dead
    )  # fmt: skip
    replace_file(folder / "index.html", page)
    return folder / "index.html"


def _with_effects(labels: list[str], ids: np.ndarray, effects: np.ndarray) -> list[tuple[str, str]]:
    return [(labels[i], f"{effect:+.2f}") for i, effect in zip(ids, effects, strict=True)]


def _bars(statistics: LatentStatistics, z: int) -> list[dict]:
    """The histogram's bars: heights of 0 to 100, logarithmic in the count."""
    counts = statistics.histogram[z]
    most = np.log1p(counts.max())
    width = statistics.histogram_range[z] / BINS
    return [
        {
            "height": round(100 * float(np.log1p(count) / most), 1),
            "count": int(count),
            "low": f"{i * width:.3g}",
            "high": f"{(i + 1) * width:.3g}",
        }
        for i, count in enumerate(counts)
    ]


def _example(statistics: LatentStatistics, z: int, e: int, sequences: Sequences, pieces: list[str]) -> dict | None:
    """The text around the peak of an example, in runs of tokens that are shaded alike."""
    row, peak = int(statistics.example_sequence[z, e]), int(statistics.example_peak[z, e])
    if row < 0:
        return None
    tokens, values = sequences.tokens[row], statistics.example_activation[z, e]
    length = int(np.flatnonzero(tokens)[-1]) + 1  # padding, id 0, comes last
    start, stop = max(1, peak - TOKENS_BEFORE), min(length, peak + TOKENS_AFTER + 1)
    runs: list[dict] = []
    for t in range(start, stop):
        if values[t] > 0:
            shade = f"{max(values[t] / statistics.largest[z], 0.01):.2f}"
            runs.append({"text": pieces[tokens[t]], "shade": shade, "value": f"{values[t]:.3g}", "peak": t == peak})
        elif runs and not runs[-1]["shade"]:
            runs[-1]["text"] += pieces[tokens[t]]
        else:
            runs.append({"text": pieces[tokens[t]], "shade": "", "value": "", "peak": False})
    document, token = sequences.place(row, peak)
    return {
        "pieces": runs,
        "largest": f"{values[peak]:.3g}",
        "document": sequences.documents[document][0],
        "token": token,
    }


def _snippet(example: dict, characters: int = 36) -> dict:
    """The peak of an example with a few characters on either side."""
    at = next(i for i, piece in enumerate(example["pieces"]) if piece["peak"])
    before = "".join(piece["text"] for piece in example["pieces"][:at])
    after = "".join(piece["text"] for piece in example["pieces"][at + 1 :])
    one_line = lambda text: text.replace("\n", "")  # noqa: E731
    return {
        "before": one_line(before)[-characters:],
        "peak": one_line(example["pieces"][at]["text"]),
        "after": one_line(after)[: characters // 2],
    }
