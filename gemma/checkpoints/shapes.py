"""Recognises the preset of a checkpoint without `config.json` from the shapes of its tensors."""

import dataclasses

from gemma import configs
from gemma.configs import Config


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The sizes that shapes tell: V, L, D, F, N·H, K·H, and whether queries and keys are normed."""

    vocab_size: int
    num_layers: int
    d_model: int
    d_ff: int
    query_width: int
    key_width: int
    qk_norm: bool

    @classmethod
    def of(cls, c: Config) -> "Shapes":
        """Returns the sizes of a configuration."""
        widths = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim)
        return cls(c.vocab_size, c.num_layers, c.d_model, c.d_ff, *widths, c.qk_norm)


def named(config: Config) -> Config:
    """Returns a configuration under a preset's name if it is that preset's except for V, else unchanged."""
    for preset in configs.presets():
        if dataclasses.replace(config, name=preset.name, vocab_size=preset.vocab_size) == preset:
            return dataclasses.replace(config, name=preset.name)
    return config


def recognise(where: str, shapes: Shapes) -> Config:
    """Returns the preset with these shapes.

    V is the preset's, except for Gemma 3 4B and larger: DeepMind's checkpoints and GGUF files have 262144 embeddings,
    the hub's have 262208.

    Args:
        where: the file or folder, for messages.
        shapes: the sizes that its tensors tell.

    Raises:
        ValueError: if no preset has these shapes. They do not tell the query scale, the window and the pattern of
            layers, so no other model can be recognised.
    """
    for preset in configs.presets():
        if dataclasses.replace(Shapes.of(preset), vocab_size=shapes.vocab_size) == shapes:
            shorter = (preset.vocab_size, shapes.vocab_size) == (262_208, 262_144)
            return dataclasses.replace(preset, vocab_size=262_144) if shorter else preset
    sizes = ", ".join(f"{field} {value}" for field, value in dataclasses.asdict(shapes).items())
    raise ValueError(
        f"{where} has no config.json, and no preset has the shapes of its tensors ({sizes}): "
        "put a config.json beside it, transformers' or the fields of gemma.Config"
    )
