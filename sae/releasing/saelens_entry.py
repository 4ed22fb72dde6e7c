"""`pretrained_saes.yaml`: an entry for SAELens's registry of that name, and YAML's scalars.

SAELens reads `owner/name` with a path in it without any entry where the files are in its own format. With the entry in
its registry, `SAE.from_pretrained(release, sae_id)` reads the formats of Gemma Scope and sparsify too, by the loader
that `conversion_func` names (sae_lens/loading/pretrained_sae_loaders.py).
"""

import json
import math
import re
from collections.abc import Sequence

from sae.formats import names
from sae.releasing.layouts import Placed

NAME = "pretrained_saes.yaml"
# By format, SAELens's loader; None for that of its own files.
_LOADERS = {"saelens": None, "gemma_scope": "gemma_2", "gemma_scope_2": "gemma_3", "sparsify": "sparsify"}
# What gemma_2 takes from names: the model and the kind of the site from the repository, the width from the folder.
_REPOSITORY = re.compile(r"(?=.*(2b|9b|27b))(?=.*(res|mlp|att))")
# gemma_3 takes the hook from the folder: that of these kinds is right. It has hook_attn_out for attn_out, which reads
# what the heads give, and the norm before its gain for transcoders, which read it after.
_SAME_HOOK = ("resid_post", "mlp_out")
_WIDTHS = ("4k", "16k", "32k", "65k", "131k", "262k", "524k", "1m")


def scalar(value: object) -> str:
    """Returns a value as YAML: None, a number, or a text in quotes.

    Example:
        >>> scalar("3: a"), scalar(None), scalar(0.25), scalar(7)
        ('"3: a"', 'null', '0.25', '7')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "null"
    if isinstance(value, float):
        digits = f"{value:.6f}".rstrip("0")
        return f"{digits}0" if digits.endswith(".") else digits
    return json.dumps(value, ensure_ascii=False)  # whose texts and whole numbers are YAML's, too


def entry(placed: Sequence[Placed], repository: str | None) -> str | None:
    """Returns the entry as YAML; None where SAELens has no loader for the files.

    Args:
        placed: the autoencoders; those that SAELens has no loader for are left out, and so are those in another format
            than the first that it has one for.
        repository: `owner/name`; None where none was named, which the entry says.
    """
    readable = [one for one in placed if one.format in _LOADERS]
    if not readable:
        return None
    format = readable[0].format
    chosen = [one for one in readable if one.format == format]
    info = chosen[0].entry.info
    model = names.hub_name(info.model, info.training)
    comments = [f"# An entry for sae_lens/{NAME} of SAELens."]
    if len(chosen) < len(placed):
        comments.append(f"# Left out, as SAELens does not read them so: {len(placed) - len(chosen)} of other formats.")
    if problem := unreadable(placed, repository):
        comments.append(f"# {problem}")
    lines = [
        f"{scalar(_release(repository, info.model))}:",
        f"  conversion_func: {scalar(_LOADERS[format])}",
        *([f"  links:\n    model: {scalar(f'https://huggingface.co/{model}')}"] if "/" in model else []),
        f"  model: {scalar(re.sub('^google/(?=gemma-2-)', '', model))}",
        f"  repo_id: {scalar(repository)}" + ("" if repository else "  # no repository was named"),
        "  saes:",
    ]
    for one in chosen:
        lines += [f"  - id: {scalar(one.path)}", f"    path: {scalar(one.path)}"]
        if (measured := one.entry.measured) is not None:
            lines += [f"    variance_explained: {scalar(1 - measured.metrics.fvu)}"]
            lines += [f"    l0: {scalar(measured.metrics.l0)}"]
    return "\n".join([*comments, *lines]) + "\n"


def unreadable(placed: Sequence[Placed], repository: str | None) -> str | None:
    """Returns why SAELens does not read the files as they are called, in words; None where it does, by its source.

    Args:
        placed: the autoencoders.
        repository: `owner/name`, or None.
    """
    if not any(one.format in _LOADERS for one in placed):
        return "SAELens has no loader for these files: the format saelens is read by it."
    first = [one for one in placed if one.format == "gemma_scope"]
    widths = [match[1] for one in first if (match := re.search(r"width_(\w+?)/", one.path))]
    if first and (_REPOSITORY.match(repository or "") is None or set(widths) - set(_WIDTHS)):
        return (
            "SAELens's loader gemma_2 knows models, sites and widths by names such as gemma-scope-2b-pt-res and "
            "width_16k alone, and does not read this release: the format saelens is read by it."
        )
    if kinds := sorted({one.kind for one in placed if one.format == "gemma_scope_2"} - set(_SAME_HOOK)):
        return (
            f"SAELens's loader gemma_3 goes by the folder, and takes {', '.join(kinds)} for other hooks than these "
            "autoencoders read: the format saelens names the hooks themselves."
        )
    return None


def _release(repository: str | None, model: str) -> str:
    return repository.rpartition("/")[2] if repository else f"{model}-saes"
