"""Configurations of the Gemma 2 and Gemma 3 text models.

The numbers are from google-deepmind/gemma (v2.0.8, `gemma/transformer.py`; Gemma 3: `gemma/gm/nn/_gemma.py`) and from
the models' `config.json` on the Hugging Face hub; both agree.
"""

import dataclasses
import difflib
from typing import Any

import jax
import jax.numpy as jnp

LOCAL, GLOBAL = "local", "global"
_SIZES = 1 << 31  # positions along an axis are int32
_NUMBERS = 1 << 127  # about float32's largest number


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape and the constants of one model.

    Attributes:
        name: the model's name.
        vocab_size: V, the number of tokens.
        num_layers: L, the number of layers.
        d_model: D, the width of the residual stream.
        d_ff: F, the width of the feed-forward layer.
        num_heads: N, the number of query heads.
        num_kv_heads: K, the number of key/value heads.
        head_dim: H, the width of a head.
        query_scale: queries are multiplied by it, after RoPE.
        window: the number of keys that a query of a local layer sees, counting its own.
        layer_pattern: the kinds of layers, repeated; the last repetition may be cut short.
        attn_softcap: the softcap of the scores; None for no softcap.
        final_softcap: the softcap of the logits; None for no softcap.
        rope_base: the base of RoPE in global layers.
        local_rope_base: the base of RoPE in local layers.
        rope_scale: positions in global layers are divided by it.
        qk_norm: whether queries and keys have an RMSNorm over H, before RoPE.

    Raises:
        ValueError: for sizes that cannot belong together.

    Example:
        >>> import dataclasses
        >>> config = dataclasses.replace(gemma.config("gemma2-tiny"), name="shallow", num_layers=2)
        >>> config.layer_kinds
        ('local', 'global')
    """

    name: str
    vocab_size: int
    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float
    window: int
    layer_pattern: tuple[str, ...] = (LOCAL, GLOBAL)
    attn_softcap: float | None = 50.0
    final_softcap: float | None = 30.0
    rope_base: float = 10_000.0
    local_rope_base: float = 10_000.0
    rope_scale: float = 1.0
    qk_norm: bool = False

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
        """Returns the fields as a dict for JSON; `from_dict` reads it back."""
        return dataclasses.asdict(self)


def from_dict(values: dict) -> Config:
    """Returns the configuration of a dict from `Config.to_dict`.

    Args:
        values: the fields by name.

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
    """Raises ValueError for a dtype of parameters and activations that this model cannot be computed in.

    Gemma 3's residual stream reaches values above float16's largest, 65504 (huggingface/transformers #36822).
    """
    dtype = jnp.dtype(dtype)
    if dtype in (jnp.float32, jnp.bfloat16):
        return
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating-point one, such as jnp.bfloat16; got {dtype}")
    if dtype == jnp.float16:
        if config.qk_norm:
            raise ValueError(
                f"{config.name} is a Gemma 3, whose activations exceed float16's largest number, 65504, and become "
                "infinite: use dtype=jnp.bfloat16, which takes as much memory, or float32"
            )
    # pyrefly: ignore[missing-attribute]  JAX makes the attribute when it runs
    elif dtype != jnp.float64 or not jax.config.jax_enable_x64:
        why = "JAX has it only under jax_enable_x64" if dtype == jnp.float64 else "the forward pass does not support it"
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
    """Returns the configurations of all presets."""
    return tuple(_PRESETS.values())


def config(name: str) -> Config:
    """Returns the configuration of a preset.

    Args:
        name: "gemma2-2b", "gemma2-9b", "gemma2-27b", "gemma3-270m", "gemma3-1b", "gemma3-4b", "gemma3-12b",
            "gemma3-27b", or "gemma2-tiny", which is shipped with this package.

    Raises:
        ValueError: for another name.

    Example:
        >>> config = gemma.config("gemma3-270m")
        >>> config.num_layers, config.d_model
        (18, 640)
    """
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown model {name!r}: the presets are {', '.join(_PRESETS)}{hint}")
    return _PRESETS[name]
