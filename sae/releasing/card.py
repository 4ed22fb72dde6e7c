"""The model card of a release, `README.md`: its autoencoders, data, recipe, metrics, and the facts that are missing."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sae import showing
from sae.evaluation.fidelity import Metrics
from sae.formats import names
from sae.formats.format import formats
from sae.releasing import card_facts, checksums, saelens_entry
from sae.releasing.layouts import TITLES, Placed
from sae.releasing.tables import code, markdown

NAME = "README.md"
PICTURE = "tradeoff.png"
NOT_GIVEN = "not given"
# The metrics of the fidelity suite, in words; `sae.Metrics` has the formulas.
_WORDS = {
    "l0": "the mean number of active latents of a token",
    "fvu": "the fraction of variance unexplained: squared error over squared distance from the mean",
    "loss": "the model's next-token loss in nats, `loss_spliced` that with the reconstruction in place of the "
    "activation, `loss_zero` that with zeros in its place",
    "delta_loss": "`loss_spliced` less `loss`",
    "loss_recovered": "(`loss_zero` - `loss_spliced`) / (`loss_zero` - `loss`)",
    "dead": "latents that fired on none of the `tokens`",
}


@dataclasses.dataclass(frozen=True)
class Licences:
    """The licences of a release; None for a licence that its publisher does not give.

    Attributes:
        autoencoders: the licence of the autoencoders, by its name on the hub, such as "apache-2.0".
        model: the licence of the model, in words.
        text: the licence of the text of training, in words.

    Example:
        >>> sae.Licences(autoencoders="cc-by-4.0", model="Gemma Terms of Use")
        Licences(autoencoders='cc-by-4.0', model='Gemma Terms of Use', text=None)
    """

    autoencoders: str | None = None
    model: str | None = None
    text: str | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and (not isinstance(value, str) or not value.strip() or "\n" in value):
                raise ValueError(f"Licences: {field.name} is a licence in a line, or None; got {value!r:.60}")


def missing(placed: Sequence[Placed], licences: Licences) -> list[str]:
    """Returns the facts that a release lacks, a line each."""
    lines = [
        f"the licence of the {what} is {NOT_GIVEN}"
        for what, value in dataclasses.asdict(licences).items()
        if value is None
    ]
    unmeasured: dict[str, list[str]] = {}
    for one in placed:
        if one.entry.measured is None:
            unmeasured.setdefault(one.entry.unmeasured, []).append(one.path)
    lines += [f"metrics of {_of(paths, placed)}: {reason}" for reason, paths in unmeasured.items()]
    for what, value_of in card_facts.EXPECTED.items():
        if paths := [one.path for one in placed if value_of(one.entry) is None]:
            lines.append(f"{what} of {_of(paths, placed)}: not on record")
    return lines


def _of(paths: Sequence[str], placed: Sequence[Placed]) -> str:
    if len(paths) == len(placed):
        return "all autoencoders"
    return ", ".join(paths) if len(paths) <= 3 else showing.count(len(paths), "autoencoder")


def text(placed: Sequence[Placed], layout: str, repository: str | None, licences: Licences) -> str:
    """Returns the card.

    Args:
        placed: the autoencoders, with their places.
        layout: the layout of the release.
        repository: `owner/name`; None where the user names none.
        licences: the licences, as far as they are given.
    """
    info = placed[0].entry.info
    model = names.hub_name(info.model, info.training)
    lacking = missing(placed, licences)
    sections = [
        _front(model, licences),
        f"# Sparse autoencoders of {info.model}",
        _about(placed, layout, repository),
        "## Autoencoders",
        *_metrics(placed),
        "## Data",
        *card_facts.data(placed),
        "## Recipe",
        *card_facts.recipe(placed),
        "## Licences",
        markdown(["of", "licence"], [[of, value or NOT_GIVEN] for of, value in dataclasses.asdict(licences).items()]),
        "## Provenance",
        *card_facts.provenance(placed),
        f"`sha256sum -c {checksums.NAME}` checks every file of this release.",
        "## Not on record",
        "\n".join(f"- {line[0].upper()}{line[1:]}." for line in lacking) or "Nothing that this card has a place for.",
    ]
    return "\n\n".join(sections) + "\n"


def _front(model: str, licences: Licences) -> str:
    """Returns the front matter, which the hub reads. Without a licence in it, the hub shows none."""
    lines = [] if licences.autoencoders is None else [f"license: {saelens_entry.scalar(licences.autoencoders)}"]
    lines.append("library_name: mishax-lite")
    if "/" in model:  # a repository of the hub
        lines.append(f"base_model: {saelens_entry.scalar(model)}")
    return "\n".join(["---", *lines, "tags:", "- sparse-autoencoder", "- interpretability", "---"])


def _about(placed: Sequence[Placed], layout: str, repository: str | None) -> str:
    info = placed[0].entry.info
    titles = " and ".join(dict.fromkeys(formats[one.format].title for one in placed))
    kinds = list(dict.fromkeys(one.kind for one in placed))
    where = saelens_entry.scalar(repository or "the folder of this file")
    count = showing.count(len(placed), "autoencoder")
    lines = [
        f"{count} of {info.model}, of the kind{'s' * (len(kinds) > 1)} {', '.join(kinds)}, in the folder tree of "
        f"{TITLES[layout]}; the files are in {titles}. Activations go in and come out in {info.units} units.",
        "```python\nimport sae  # a package of mishax-lite\n\n"
        f"autoencoder = sae.load({where}, {saelens_entry.scalar(placed[0].path)})\n```",
    ]
    problem = saelens_entry.unreadable(placed, repository)
    if problem is None:
        problem = f"`{saelens_entry.NAME}` has an entry for SAELens's registry."
    return "\n\n".join([*lines, problem])


def _metrics(placed: Sequence[Placed]) -> list[str]:
    """Returns a table of all metrics, the meanings of its columns, and the picture."""
    measured = [one.entry.measured.metrics.to_dict() for one in placed if one.entry.measured is not None]
    columns = list(dict.fromkeys(name for metrics in measured for name in metrics if name not in ("site", "width")))
    rows = []
    for one in placed:
        entry = one.entry
        sites = showing.joined(entry.info.site)
        if entry.info.site_out != entry.info.site:
            sites += f" to {showing.joined(entry.info.site_out)}"
        cells: Mapping[str, Any] = {} if entry.measured is None else entry.measured.metrics.to_dict()
        aim = card_facts.NOT_ON_RECORD if entry.aim is None else f"{entry.aim:g}"
        values = [_cell(cells[name]) if name in cells else entry.unmeasured for name in columns]
        rows.append([code(one.path), sites, f"{entry.outline.width:,}", aim, *values])
    parts = [markdown(["path", "site", "latents", "L0 aimed at", *columns], rows)]
    if not measured:
        return [*parts, "No metrics: " + "; ".join(dict.fromkeys(one.entry.unmeasured for one in placed)) + "."]
    words = [f"- `{name}`: {meaning}." for name, meaning in _WORDS.items() if name in columns]
    texts = dict.fromkeys((one.entry.measured.model, one.entry.measured.text) for one in placed if one.entry.measured)
    over = "; ".join(f"`{text}…`, in the model `{model}…`" for model, text in texts)
    several = " Figures of different texts do not compare." if len(texts) > 1 else ""
    parts += ["\n".join(words), f"Measured on the text whose fingerprint begins with {over}.{several}{_seen(placed)}"]
    return [*parts, f"![L0 against loss recovered, and against FVU]({PICTURE})"]


def _seen(placed: Sequence[Placed]) -> str:
    """Returns a sentence on whether that is the text of training, as far as fingerprints tell."""
    pairs = [(one.entry.measured.text, card_facts.text_fingerprint(one.entry)) for one in placed if one.entry.measured]
    same = {None if trained is None else trained.startswith(text) for text, trained in pairs}
    if same == {True}:
        return " That is the text that was trained on."
    if same == {False}:
        return (
            " The text of training has another fingerprint; whether it shares sequences with this one is not on record."
        )
    return ""


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def metrics_of(placed: Sequence[Placed]) -> list[Metrics]:
    """Returns the metrics of the autoencoders that have some."""
    return [one.entry.measured.metrics for one in placed if one.entry.measured is not None]
