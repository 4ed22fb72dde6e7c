"""Other projects' names of models and sites.

They are hook names of TransformerLens (`blocks.3.hook_resid_post`) and paths of modules in Hugging Face's Gemma
(`model.layers.3.output`). A name that is not in the tables stays unchanged: then no model has such a site, and the user
names the right one by `dataclasses.replace(autoencoder, info=...)`.
"""

import json
import re
from collections.abc import Iterator

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "ln2.hook_normalized": "mlp_normed",  # after the norm's division, before its gain
    "mlp.hook_post": "mlp_hidden",
    "hook_mlp_out": "mlp_out",
}
_HUGGING_FACE = {
    "self_attn.o_proj.input": "attn_z",
    "pre_feedforward_layernorm.output": "mlp_in",  # after the gain
    "post_feedforward_layernorm.output": "mlp_out",
    "output": "resid_post",
}
_PATTERNS = (
    (re.compile(r"blocks\.(\d+)\.(.+)"), _TRANSFORMER_LENS),
    (re.compile(r"model\.layers\.(\d+)\.(.+)"), _HUGGING_FACE),
)
_MODELS = {
    "gemma2-{}": re.compile(r"(?:google/)?gemma-(?:v2-|2-)(2b|9b|27b)(?:-pt|-it)?"),
    "gemma3-{}": re.compile(r"(?:google/)?gemma-(?:v3-|3-)(270m|1b|4b|12b|27b)(?:-pt|-it)?"),
}


def site_of(hook: str) -> str:
    """Returns the site of a hook; the hook itself where it is unknown.

    Example:
        >>> site_of("blocks.3.hook_mlp_out"), site_of("model.layers.17.output"), site_of("hook_embed")
        ('layer_3/mlp_out', 'layer_17/resid_post', 'embed')
    """
    for pattern, kinds in _PATTERNS:
        if (match := pattern.fullmatch(hook)) and match[2] in kinds:
            return f"layer_{int(match[1])}/{kinds[match[2]]}"
    return "embed" if hook == "hook_embed" else hook


def transformer_lens_hook(site: str) -> str:
    """Returns TransformerLens's name of a site; the site itself where it has none.

    Example:
        >>> transformer_lens_hook("layer_3/attn_z")
        'blocks.3.attn.hook_z'
    """
    return "hook_embed" if site == "embed" else _hook(site, "blocks", _TRANSFORMER_LENS)


def hugging_face_path(site: str) -> str:
    """Returns the path of a site in Hugging Face's Gemma; the site itself where it has none.

    Example:
        >>> hugging_face_path("layer_17/mlp_in")
        'model.layers.17.pre_feedforward_layernorm.output'
    """
    return _hook(site, "model.layers", _HUGGING_FACE)


def _hook(site: str, prefix: str, kinds: dict[str, str]) -> str:
    match = re.fullmatch(r"layer_(\d+)/(.+)", site)
    hooks = {kind: hook for hook, kind in kinds.items()}
    return f"{prefix}.{match[1]}.{hooks[match[2]]}" if match and match[2] in hooks else site


def model_of(name: str) -> str:
    """Returns this library's name of a model on the hub; an instruction-tuned model has its base's. Other names stay.

    Example:
        >>> model_of("google/gemma-2-2b"), model_of("google/gemma-3-270m-pt"), model_of("gpt2")
        ('gemma2-2b', 'gemma3-270m', 'gpt2')
    """
    for template, pattern in _MODELS.items():
        if match := pattern.fullmatch(name):
            return template.format(match[1])
    return name


def hub_name(model: str, training: str = "{}") -> str:
    """Returns the hub's name of a model; other names stay.

    Args:
        model: this library's name, which an instruction-tuned model shares with its base.
        training: an autoencoder's `info.training`. Where its file, or its repository, named an instruction-tuned model,
            the result is that name.

    Example:
        >>> hub_name("gemma2-2b"), hub_name("gemma3-270m"), hub_name("gemma3-1b"), hub_name("gpt2")
        ('google/gemma-2-2b', 'google/gemma-3-270m', 'google/gemma-3-1b-pt', 'gpt2')
        >>> hub_name("gemma3-1b", '{"gemma_scope_2": {"config": {"model_name": "google/gemma-3-1b-it"}}}')
        'google/gemma-3-1b-it'
    """
    for text in _texts(json.loads(training)):
        if text != model and model_of(text) == model and text.endswith("-it"):
            return text if text.startswith("google/") else f"google/{text}"
        repository = re.fullmatch(r"gemma-scope-(2-)?(\w+)-it(?:-\w+)?", text)
        if repository and model == f"gemma{3 if repository[1] else 2}-{repository[2]}":
            return f"google/gemma-{3 if repository[1] else 2}-{repository[2]}-it"
    if match := re.fullmatch(r"gemma2-(2b|9b|27b)", model):
        return f"google/gemma-2-{match[1]}"
    if match := re.fullmatch(r"gemma3-(270m|1b|4b|12b|27b)", model):
        return f"google/gemma-3-{match[1]}" + ("" if match[1] == "270m" else "-pt")
    return model


def _texts(facts: object) -> Iterator[str]:
    """Yields every text in a value of JSON."""
    if isinstance(facts, str):
        yield facts
    elif isinstance(facts, dict | list):
        for value in facts.values() if isinstance(facts, dict) else facts:
            yield from _texts(value)
