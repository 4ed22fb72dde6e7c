"""Reads the model and the site from the paths of Gemma Scope's folders, which have no info.json:

google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz
google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6/params.npz

Repositories are `gemma-scope-{2b, 9b, 27b}-{pt, it}-{res, att, mlp, transcoders}` (arXiv 2408.05147, section 4). A
repository may have been downloaded to a folder of that name, or be in the hub's cache:
`models--google--gemma-scope-2b-pt-res`.
"""

import json
import re
from pathlib import Path

from sae.autoencoder import Info

_REPOSITORY = re.compile(r"(?:models--[\w.-]+?--)?(gemma-scope-(2b|9b|27b)-(pt|it)-(res|att|mlp|transcoders))")
# Input and output sites. Transcoders read after the norm's division, before its gain (`mlp_normed`).
SITES = {
    "res": ("resid_post", "resid_post"),
    "att": ("attn_z", "attn_z"),
    "mlp": ("mlp_out", "mlp_out"),
    "transcoders": ("mlp_normed", "mlp_out"),
}


def info_of(folder: Path) -> Info | None:
    """Returns the `Info` that the path of an autoencoder's folder gives; None for a path that is not Gemma Scope's.

    Args:
        folder: a folder within one that has the name of a repository of Gemma Scope.

    Returns:
        The info. Its model is the base, `gemma2-2b`, for instruction-tuned models too; `training` has the repository
        and the folder in it, whose name has the L0.

    Example:
        >>> info_of(Path("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")).site
        'layer_20/resid_post'
    """
    parts = folder.absolute().parts
    matches = [(at, match) for at, part in enumerate(parts) if (match := _REPOSITORY.fullmatch(part))]
    if not matches:
        return None
    at, match = matches[-1]
    repository, size, kind = match[1], match[2], match[4]
    inside = parts[at + 1 :]
    if inside[:1] == ("snapshots",):  # of the hub's cache, and then a commit
        inside = inside[2:]
    layers = [layer[1] for part in inside if (layer := re.fullmatch(r"layer_(\d+)", part))]
    if len(layers) == 1:
        site, site_out = (f"layer_{int(layers[0])}/{name}" for name in SITES[kind])
    elif not layers and "embedding" in inside and kind == "res":
        site = site_out = "embed"
    else:
        return None
    facts = {"repository": repository, "folder": "/".join(inside)}
    return Info(f"gemma2-{size}", site, site_out, training=json.dumps({"gemma_scope": facts}, sort_keys=True))
