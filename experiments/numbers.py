"""Lists of numbers in flags, all of which differ."""

import math


def different(flag: str, words: list[str] | None, least: float | None = None) -> list[float]:
    """Returns different numbers above 0, or from `least` on; none without a value.

    Args:
      flag: the name of the flag.
      words: its value.
      least: the least number; None for all above 0.

    Raises:
      ValueError: for words that are no such numbers, or numbers that are equal.
    """
    if words is None:
        return []
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"--{flag} takes numbers with commas between them, got {','.join(words)!r}") from None
    low = any(not number > 0 if least is None else number < least for number in numbers)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"--{flag} takes finite numbers, got {','.join(words)!r}")
    # As in the names of folders (`naming.run_names`), where whole numbers stand in full.
    different = {f"{number:g}" if least is None else number for number in numbers}
    if not numbers or low or len(different) < len(numbers):
        bound = "above 0" if least is None else f"from {least} on"
        raise ValueError(f"--{flag} takes different numbers {bound}, got {','.join(words)!r}")
    return numbers


def different_whole(flag: str, words: list[str] | None, least: int = 1) -> list[int]:
    """Returns different whole numbers from `least` on; none without a value. Raises ValueError as `different` does."""
    numbers = different(flag, words, least)
    if any(number != int(number) for number in numbers):
        # pyrefly: ignore[no-matching-overload]  not None here
        raise ValueError(f"--{flag} takes whole numbers, got {','.join(words)!r}")
    return [int(number) for number in numbers]
