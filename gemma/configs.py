"""Configurations of the Gemma 2 and Gemma 3 text models.

Numbers from google-deepmind/gemma (v2.0.8, `gemma/transformer.py`; Gemma 3: `gemma/gm/nn/_gemma.py`) and the models'
`config.json` on the Hugging Face hub; both agree.
"""

import dataclasses
import difflib
from typing import Any

import jax
import jax.numpy as jnp

LOCAL, GLOBAL = "local", "global"
_SIZES = 1 << 31  # positions along an axis are int32
_NUMBERS = 1 << 127  # float32's largest, about


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape and the constants of one model. Letters in brackets are the axis letters used everywhere.

    Raises:
      ValueError: when made with sizes that cannot belong together.
    """

    name: str
    vocab_size: int  # V
    num_layers: int  # L
    d_model: int  # D
    d_ff: int  # F
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    query_scale: float  # queries are multiplied by it, after RoPE
    window: int  # a local layer's query sees this many keys, itself among them
    layer_pattern: tuple[str, ...] = (LOCAL, GLOBAL)  # repeated over the layers, the last repetition may be cut short
    attn_softcap: float | None = 50.0  # None: no softcap
    final_softcap: float | None = 30.0
    rope_base: float = 10_000.0  # of global layers
    local_rope_base: float = 10_000.0
    rope_scale: float = 1.0  # positions in global layers are divided by it
    qk_norm: bool = False  # RMSNorm of queries and keys over H, before RoPE

    def __post_init__(self):
        for field in ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim", "window"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{self.name}: {field} must be a positive integer, got {value!r}")
            if value >= _SIZES:
                raise ValueError(f"{self.name}: {field} must be less than 2^31, as every axis is, got {value!r}")
        for field in ("query_scale", "attn_softcap", "final_softcap", "rope_base", "local_rope_base", "rope_scale"):
            value = getattr(self, field)
            if value is None and field.endswith("softcap"):
                continue
            if not isinstance(value, int | float) or not 0 < value < _NUMBERS:
                raise ValueError(f"{self.name}: {field} must be a positive number below 2^127, got {value!r}")
            if value >= _SIZES:  # JAX takes no larger int
                object.__setattr__(self, field, float(value))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.name}: num_heads must be a multiple of num_kv_heads, "
                f"got {self.num_heads} query heads and {self.num_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"{self.name}: RoPE rotates pairs, so head_dim must be even, got {self.head_dim}")
        if not self.layer_pattern or set(self.layer_pattern) - {LOCAL, GLOBAL}:
            raise ValueError(f"{self.name}: layer_pattern takes 'local' and 'global', got {self.layer_pattern}")

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """`local` or `global` for each of the L layers."""
        return tuple(self.layer_pattern[i % len(self.layer_pattern)] for i in range(self.num_layers))

    def to_dict(self) -> dict:
        """A JSON-ready dict; `from_dict` reads it back."""
        return dataclasses.asdict(self)


def from_dict(values: dict) -> Config:
    """The inverse of `Config.to_dict`.

    Raises:
      ValueError: for a missing or unknown field.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing, unknown = sorted(required - set(values)), sorted(set(values) - set(fields))
    if missing or unknown:
        raise ValueError(f"a model's config needs the fields of gemma.Config: missing {missing}, unknown {unknown}")
    pattern = tuple(values.get("layer_pattern", fields["layer_pattern"].default))
    settings: dict[str, Any] = {**values, "layer_pattern": pattern}
    return Config(**settings)


def check_dtype(config: Config, dtype: jnp.dtype) -> None:
    """Raises ValueError for a dtype of parameters and activations in which this model cannot be computed.

    Gemma 3's residual stream reaches values above float16's largest, 65504 (huggingface/transformers #36822).
    """
    dtype = jnp.dtype(dtype)
    if dtype in (jnp.float32, jnp.bfloat16):
        return
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is of parameters and activations, so of floating-point numbers; got {dtype}")
    if dtype == jnp.float16:
        if config.qk_norm:
            raise ValueError(
                f"{config.name} is a Gemma 3, whose activations exceed float16's largest number, 65504, and become "
                "infinite: use dtype=jnp.bfloat16, which takes as much memory, or float32"
            )
    # pyrefly: ignore[missing-attribute]  JAX makes the attribute when it runs
    elif dtype != jnp.float64 or not jax.config.jax_enable_x64:
        why = "JAX has it under jax_enable_x64 alone" if dtype == jnp.float64 else "the forward pass has it not"
        raise ValueError(f"dtype is float32, bfloat16 or, for Gemma 2, float16; got {dtype}: {why}")


_GEMMA_3 = {
    "layer_pattern": (LOCAL,) * 5 + (GLOBAL,),
    "attn_softcap": None,
    "final_softcap": None,
    "rope_base": 1_000_000.0,
    "qk_norm": True,
}

# Columns: V, L, D, F, N, K, H, query scale, window. The 27B models scale queries by (D/N)^-1/2, the others by H^-1/2.
# Gemma 3's larger models stretch the positions of their global layers.
_PRESETS = {
    preset.name: preset
    for preset in (
        Config("gemma2-2b", 256_000, 26, 2304, 9216, 8, 4, 256, 256**-0.5, 4096),
        Config("gemma2-9b", 256_000, 42, 3584, 14_336, 16, 8, 256, 256**-0.5, 4096),
        Config("gemma2-27b", 256_000, 46, 4608, 36_864, 32, 16, 128, 144**-0.5, 4096),
        Config("gemma2-tiny", 4096, 6, 192, 512, 4, 2, 48, 48**-0.5, 64),
        Config("gemma3-270m", 262_144, 18, 640, 2048, 4, 1, 256, 256**-0.5, 512, **_GEMMA_3),
        Config("gemma3-1b", 262_144, 26, 1152, 6912, 4, 1, 256, 256**-0.5, 512, **_GEMMA_3),
        Config("gemma3-4b", 262_208, 34, 2560, 10_240, 8, 4, 256, 256**-0.5, 1024, rope_scale=8.0, **_GEMMA_3),
        Config("gemma3-12b", 262_208, 48, 3840, 15_360, 16, 8, 256, 256**-0.5, 1024, rope_scale=8.0, **_GEMMA_3),
        Config("gemma3-27b", 262_208, 62, 5376, 21_504, 32, 16, 128, 168**-0.5, 1024, rope_scale=8.0, **_GEMMA_3),
    )
}


def presets() -> tuple[Config, ...]:
    """All that `config` knows."""
    return tuple(_PRESETS.values())


def config(name: str) -> Config:
    """The configuration of a preset: gemma2-{2b, 9b, 27b}, gemma3-{270m, 1b, 4b, 12b, 27b}, or gemma2-tiny, which is
    shipped with this package.

    Raises:
      ValueError: for another name.
    """
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown model {name!r}: the presets are {', '.join(_PRESETS)}{hint}")
    return _PRESETS[name]
