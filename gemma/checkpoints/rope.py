"""Reads RoPE from transformers' config.json as transformers 5 does, and refuses a RoPE that this package lacks.

transformers 5 (5.23, `modeling_rope_utils.py`, `configuration_gemma3.py`) lets `rope_scaling` of version 4 go before
`rope_parameters`. Where the two disagree, the file was edited by hand or half converted; this package refuses it.
"""

from collections.abc import Mapping

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
# transformers' defaults for Gemma 3; Gemma 2 has one RoPE for all layers.
_THETA = {_GLOBAL: 1_000_000.0, _LOCAL: 10_000.0}


def from_huggingface(values: Mapping) -> dict[str, float]:
    """Returns the bases of both kinds of layers and the scale of positions in global layers, as fields of `Config`.

    Args:
        values: the words of a config.json of gemma2 or gemma3_text.

    Raises:
        ValueError: for another RoPE than those two have, and for words that contradict each other.
    """
    full, local = _gemma_2(values) if values["model_type"] == "gemma2" else _gemma_3(values)
    base, scale = _plain_or_linear(full, _GLOBAL)
    local_base, local_scale = _plain_or_linear(local, _LOCAL)
    if local_scale != 1.0:
        raise ValueError(f"RoPE of local layers is {dict(local)}: only positions of global layers can be divided")
    if values["model_type"] == "gemma2" and scale != 1.0:
        raise ValueError(f"RoPE is {dict(full)}: Gemma 2's positions are not divided")
    return {"rope_base": base, "local_rope_base": local_base, "rope_scale": scale}


def _gemma_2(values: Mapping) -> tuple[dict, dict]:
    """Returns the one RoPE of all layers, twice."""
    scaling, parameters = _mapping(values, "rope_scaling"), _mapping(values, "rope_parameters")
    for word in ("rope_scaling", "rope_parameters"):
        if nested := [key for key in values.get(word) or () if key in (_GLOBAL, _LOCAL)]:
            raise ValueError(f"{word} has {nested}: Gemma 2 has one RoPE for all layers")
    theta = values.get("rope_theta")
    default = {"rope_theta": 10_000.0 if theta is None else theta}
    if scaling and parameters:
        _same(default | scaling, default | parameters, "rope_parameters")
    plain = default | (scaling or parameters)
    return plain, plain


def _gemma_3(values: Mapping) -> tuple[dict, dict]:
    """Returns the RoPE of global layers and of local layers; missing words have their defaults."""
    scaling, parameters = _mapping(values, "rope_scaling"), _mapping(values, "rope_parameters")
    outer = {_GLOBAL: values.get("rope_theta"), _LOCAL: values.get("rope_local_base_freq")}
    halves = {}
    for kind in (_GLOBAL, _LOCAL):
        half = parameters.get(kind)
        if half is not None and not isinstance(half, Mapping):
            raise ValueError(f"rope_parameters has {kind} {half!r}, expected a dict")
        theta = _THETA[kind] if outer[kind] is None else outer[kind]
        halves[kind] = {"rope_theta": theta} | dict(half or {})
    if scaling.get("type", "default") != "default" and "rope_type" not in scaling:
        raise ValueError(
            f"rope_scaling is {scaling}: transformers 4 reads its word type, transformers 5 overlooks it for Gemma 3. "
            "Write rope_type"
        )
    if scaling:
        stretched = halves[_GLOBAL] | scaling
        if parameters:
            _same(stretched, halves[_GLOBAL], f"rope_parameters' {_GLOBAL}")
        halves[_GLOBAL] = stretched
    flat = {key: value for key, value in parameters.items() if key not in (_GLOBAL, _LOCAL)}
    if flat and _meaning(halves[_GLOBAL] | flat) != _meaning(halves[_GLOBAL]):
        raise ValueError(
            f"rope_parameters has {flat}, which belongs to neither {_GLOBAL} nor {_LOCAL}: transformers overlooks it "
            f"and reads {halves}. Put it into one of the two"
        )
    return halves[_GLOBAL], halves[_LOCAL]


def _mapping(values: Mapping, word: str) -> dict:
    entry = values.get(word)
    if entry is not None and not isinstance(entry, Mapping):
        raise ValueError(f"{word} is {entry!r}, expected a dict")
    return {key: value for key, value in (entry or {}).items() if value is not None}


def _meaning(rope: Mapping) -> tuple:
    kind = rope.get("rope_type", rope.get("type", "default"))
    factor = rope.get("factor", 1.0)
    if kind == "linear" and factor == 1.0:
        kind = "default"
    return kind, factor if kind != "default" else 1.0, rope.get("rope_theta")


def _same(scaling: Mapping, parameters: Mapping, place: str) -> None:
    """Raises ValueError unless `rope_scaling` and `rope_parameters` describe the same RoPE."""
    if _meaning(scaling) != _meaning(parameters):
        raise ValueError(
            f"rope_scaling says the RoPE {dict(scaling)}, {place} {dict(parameters)}: it is not clear which is meant, "
            "so remove one of the two words from config.json"
        )


def _plain_or_linear(rope: Mapping, kind: str) -> tuple[float, float]:
    """Returns the base, and the number that positions are divided by.

    Raises:
        ValueError: for another type of RoPE, and for words that change it.
    """
    layers = "global" if kind == _GLOBAL else "local"
    name = rope.get("rope_type", rope.get("type", "default"))
    if name not in ("default", "linear"):
        raise ValueError(
            f"RoPE of {layers} layers is {dict(rope)}: only the types default and linear are computed here"
        )
    if name == "linear" and rope.get("factor") is None:
        raise ValueError(f"RoPE of {layers} layers is {dict(rope)}: the type linear needs a factor")
    harmless = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"}
    unknown = {key: value for key, value in rope.items() if key not in harmless and value is not None}
    if unknown.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"RoPE of {layers} layers is {dict(rope)}: only a partial_rotary_factor of 1 is computed here")
    if unknown:
        raise ValueError(f"RoPE of {layers} layers is {dict(rope)}: {', '.join(unknown)} is not computed here")
    return float(rope["rope_theta"]), float(rope.get("factor", 1.0)) if name == "linear" else 1.0
