"""Lists of numbers in flags: numbers that differ from one another."""

import math


def different(flag: str, words: list[str] | None, least: float | None = None) -> list[float]:
    """Different numbers above 0, or from `least` on; none where the flag has no value."""
    if words is None:
        return []
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"--{flag} takes numbers with commas between them, got {','.join(words)!r}") from None
    low = any(not number > 0 if least is None else number < least for number in numbers)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"--{flag} takes finite numbers, got {','.join(words)!r}")
    # As they stand in the names of folders (`naming.run_names`); whole numbers stand there in full.
    different = {f"{number:g}" if least is None else number for number in numbers}
    if not numbers or low or len(different) < len(numbers):
        bound = "above 0" if least is None else f"from {least} on"
        raise ValueError(f"--{flag} takes different numbers {bound}, got {','.join(words)!r}")
    return numbers


def different_whole(flag: str, words: list[str] | None, least: int = 1) -> list[int]:
    """Different whole numbers, from `least` on; none where the flag has no value."""
    numbers = different(flag, words, least)
    if any(number != int(number) for number in numbers):
        # pyrefly: ignore[no-matching-overload]  not None here
        raise ValueError(f"--{flag} takes whole numbers, got {','.join(words)!r}")
    return [int(number) for number in numbers]
