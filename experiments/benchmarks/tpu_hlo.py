"""Reads compiled programs: collectives in XLA's text, and operations that were asked for in less than float32."""

import dataclasses
import math
import re
from collections import Counter

_KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\]")
# Sums and ill-conditioned operations: in a model in bfloat16 these are in float32 all the same.
_FLOAT32 = ("rsqrt", "sqrt", "exponential", "log", "sine", "cosine", "power", "tanh", "reduce")
_STABLE = re.compile(rf'"?stablehlo\.({"|".join(_FLOAT32)})"?[ (].*tensor<([^<>]*)>$')


@dataclasses.dataclass(frozen=True)
class Moved:
    """An array that a collective gives to a chip."""

    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        bits = 8 if self.dtype == "pred" else int(re.sub(r"e.*", "", self.dtype).lstrip("bfsu"))
        return math.prod(self.shape) * bits // 8


def collectives(text: str) -> Counter[Moved]:
    """Counts the arrays that collectives give to each chip, in the text of an optimised HLO module.

    A loop's body counts once. Axes of length 1 are left out of shapes.
    """
    moved: Counter[Moved] = Counter()
    for line in text.splitlines():
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        arrays = _ARRAY.findall(match[1])
        # The type of an asynchronous start lists operands, then results, then contexts; all-reduce's, results alone.
        if match[3] and match[2] != "all-reduce":
            arrays = arrays[1:2] if match[2] in ("all-gather", "collective-permute") else arrays
        for dtype, dims in arrays:
            moved[Moved(match[2], dtype, tuple(int(n) for n in dims.split(",") if n not in ("", "1")))] += 1
    return moved


def not_activations(moved: Counter[Moved], tokens: int, d_model: int) -> list[Moved]:
    """Returns the arrays that are neither a sum of activations [tokens, D] of a chip's tokens, nor a sum of one number
    for each token at most: parameters, for example.
    """

    def is_sum(m: Moved) -> bool:
        size = math.prod(m.shape)
        return m.kind == "all-reduce" and (size <= tokens or (m.shape[-1] == d_model and size == tokens * d_model))

    return [m for m in moved if not is_sum(m)]


def below_float32(text: str, d_ff: int) -> Counter[str]:
    """Counts the operations of norms, softmax, RoPE, softcaps and losses that are in less than float32, in the text of
    a StableHLO module (the request to XLA). The tanh of the feed-forward's gelu [B, T, F] may be, and does not count.
    """
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        match = _STABLE.search(line.rstrip())
        if match is None:
            continue
        *dims, dtype = match[2].split("x")
        if dtype in ("bf16", "f16") and not (match[1] == "tanh" and dims and int(dims[-1]) == d_ff):
            counts[f"{match[1]} {match[2]}"] += 1
    return counts
