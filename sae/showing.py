"""One-line texts for the objects that a user prints, also where arrays are tracers, shapes or placeholders of a
transformation.

It knows nothing of the objects: classes hand over names and arrays.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_SITES = 3  # up to three sites are named; more are counted
_FEW = 3
_CHARACTERS = 40


def count(number: int, noun: str) -> str:
    """Returns a number with its noun.

    Example:
        >>> count(1, "segment"), count(2000, "segment")
        ('1 segment', '2,000 segments')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def documents(number: int, rows: bool) -> str:
    """Returns a number of documents, or of rows of an array that stand for documents.

    Example:
        >>> documents(2, rows=False), documents(2, rows=True)
        ('2 documents', '2 rows taken for documents')
    """
    if not rows:
        return count(number, "document")
    return f"{count(number, 'row')} taken for {'a document' if number == 1 else 'documents'}"


def joined(sites: str | Sequence[str]) -> str:
    """Returns the names of sites, or their number where they are many.

    Example:
        >>> joined(["layer_0/mlp_out", "layer_1/mlp_out"])
        'layer_0/mlp_out, layer_1/mlp_out'
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    return ", ".join(sites) if len(sites) <= _SITES else count(len(sites), "site")


def some(names: Iterable[object], most: int = _FEW) -> str:
    """Returns the first of some names, and how many more there are.

    Example:
        >>> some(["a", "b", "c", "d", "e"]), some(["a", "b"])
        ('a, b, c and 2 more', 'a, b')
    """
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def short(text: str, characters: int = _CHARACTERS) -> str:
    """Returns a text in quotes, cut where it is long.

    Example:
        >>> short("And the king said", 7)
        "'And the...'"
    """
    return repr(text if len(text) <= characters else f"{text[:characters]}...")


def size(number: float) -> str:
    """Returns a number of bytes in words, in powers of a thousand.

    Example:
        >>> size(1_152_000_000), size(999)
        ('1.15 GB', '999 bytes')
    """
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= power:
            return f"{number / power:.3g} {unit}"
    return f"{number:.0f} bytes"


def kind(value: Any) -> str:
    """Returns a value's kind in words, for errors ("got ...").

    Example:
        >>> kind("my.csv"), kind(["one", "two"]), kind(np.zeros((2, 3)))
        ("the text 'my.csv'", 'a list of 2 str', 'an array float64 [2, 3]')
    """
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return f"the text {short(value)}"
    if is_array(value):
        return f"an array {np.dtype(value.dtype).name} {list(value.shape)}"
    name = type(value).__name__
    article = "an" if name[0] in "AEIOUaeiou" else "a"
    if type(value) in (list, tuple):  # a named tuple has a name of its own
        return f"{article} {name} of {len(value):,} {type(value[0]).__name__}" if value else f"an empty {name}"
    return f"{article} {name}"


def is_array(value: Any) -> bool:
    """Returns whether a value has a shape and a dtype: an array, a tracer, or the shape of one."""
    return isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype")


def dtypes(arrays: Sequence) -> str:
    """Returns the dtypes of arrays, each once, in the order of the arrays."""
    return " and ".join(dict.fromkeys(np.dtype(array.dtype).name for array in arrays))


def fields(value: Any) -> str:
    """Returns a dataclass by its fields, arrays by dtype and shape, also where a transformation has replaced arrays.

    Example:
        >>> import jax, sae
        >>> jax.tree.map(lambda array: array.ndim, sae.JumpReLU(*[np.zeros(s) for s in ((2, 3), 3, (3, 2), 2, 3)]))
        JumpReLU(W_enc=2, b_enc=1, W_dec=2, b_dec=1, threshold=1)
    """
    parts = []
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if part is None:
            continue
        if is_array(part):
            text = f"{np.dtype(part.dtype).name}{list(part.shape)}"
        else:
            text = " ".join(repr(part).split())
            text = text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
        parts.append(f"{field.name}={text}")
    return f"{type(value).__name__}({', '.join(parts)})"


def with_short_texts(value: Any) -> str:
    """Returns a dataclass as Python shows it. Long texts are cut and long tuples counted."""
    parts = []
    for field in dataclasses.fields(value):
        if not field.repr:
            continue
        part = getattr(value, field.name)
        if isinstance(part, str) and len(part) > _CHARACTERS:
            parts.append(f"{field.name}={short(part)} ({len(part):,} characters)")
        elif isinstance(part, tuple) and len(part) > _FEW:
            parts.append(f"{field.name}=({part[0]!r}, ... {len(part):,} in all)")
        else:
            parts.append(f"{field.name}={part!r}")
    return f"{type(value).__name__}({', '.join(parts)})"


def autoencoder(value: Any, names: Sequence[str], ranks: Sequence[int]) -> str:
    """Returns an autoencoder or a crosscoder in words: its sites and model, its sizes, its dtype.

    Args:
        value: an object with `info` and the arrays `names`.
        names: the arrays' names; the first is W_enc [..., A, Z], the third W_dec [Z, ..., A].
        ranks: the number of axes of each array; axes before them are those of stacked autoencoders.
    """
    arrays = [getattr(value, name) for name in names]
    stacked = [len(a.shape) - rank if is_array(a) else -1 for a, rank in zip(arrays, ranks, strict=True)]
    if min(stacked) < 0 or len(set(stacked)) > 1:
        return fields(value)
    W_enc, W_dec = arrays[0].shape[stacked[0] :], arrays[2].shape[stacked[0] :]
    *sites, A, Z = W_enc
    text = f"{' x '.join(f'{axis:,}' for axis in (*sites, A))} -> {count(Z, 'latent')}"
    if W_dec[-1] != A:
        text += f" -> {W_dec[-1]:,}"
    if stacked[0]:
        text = f"{' x '.join(f'{axis:,}' for axis in arrays[0].shape[: stacked[0]])} stacked, {text}"
    if getattr(value, "W_skip", None) is not None:
        text += ", skip"
    place = "" if value.info is None else f"{value.info.label}: "
    return f"{type(value).__name__}({place}{text}, {dtypes(arrays)})"
