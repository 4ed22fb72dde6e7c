"""Numbers of latents as Gemma Scope's folders call them: `width_16k`, `width_1m`."""

import re

_LABEL = re.compile(r"width_(\d+)(k|m)?(?![a-z\d])", re.IGNORECASE)
_UNITS = {None: 1, "k": 2**10, "m": 2**20}
_POWERS = tuple(2**power for power in range(10, 31))


def label(width: int) -> str:
    """Returns how Gemma Scope's folders call a number of latents: powers of two in thousands or millions, rounded down;
    other numbers by their digits.

    Example:
        >>> label(16384), label(65536), label(2**20), label(1536)
        ('16k', '65k', '1m', '1536')
    """
    if width not in _POWERS:
        return str(width)
    return f"{width // 10**6}m" if width >= 10**6 else f"{width // 1000}k"


def width_of_folder(folder: str) -> int | None:
    """Returns the number of latents in the name of a folder; None where it has none.

    Args:
        folder: `16k` and `65k` are powers of two as in `label`; `24k`, which is none, is 24 x 1024.

    Example:
        >>> width_of_folder("layer_20/width_65k/average_l0_71"), width_of_folder("width_24k"), width_of_folder("a")
        (65536, 24576, None)
    """
    if (match := _LABEL.search(folder)) is None:
        return None
    unit = match[2].lower() if match[2] else None
    powers = [power for power in _POWERS if unit and label(power) == f"{int(match[1])}{unit}"]
    return powers[0] if powers else int(match[1]) * _UNITS[unit]
