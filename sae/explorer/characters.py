"""Tokens as a person reads them: bytes that make a character together, and marks that turn the direction of text."""

import unicodedata
from collections.abc import Sequence

from sae.language_model import Tokenizer

BREAK = "↵"
# Embeddings, overrides, isolates and marks of direction (UAX #9): unclosed, they would turn the text after them.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LONGEST = 4  # bytes of a character in UTF-8
_JOINER = "\u200d"


class Characters:
    """The labels of a tokenizer's tokens, alone and in running text.

    Args:
      tokenizer: the model's.

    Attributes:
      labels: the text of each id by itself; a byte beyond ASCII is <0x..>.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.labels = [tokenizer.piece(i).replace("\n", BREAK) for i in range(len(tokenizer))]
        self._bytes = {i: byte for i in range(len(tokenizer)) if (byte := tokenizer.byte(i)) is not None}

    def spans(self, tokens: Sequence[int], start: int, stop: int) -> list[tuple[int, int, str]]:
        """Returns (first token, the one after the last, text) for each token, or the bytes of a character together.

        Line breaks get a mark that shows; the break itself stays after the mark. Each byte that belongs to no character
        stands by itself.

        Args:
          tokens: of a sequence, without padding.
          start: the first token.
          stop: the token after the last. A character across either end stays whole.
        """
        spans, place = [], start
        while place > max(0, start - _LONGEST + 1) and 0x80 <= self._bytes.get(int(tokens[place]), 0) < 0xC0:
            place -= 1  # a byte that continues a character
        while place < stop:
            after, text = self._character(tokens, place)
            if after > start:
                spans.append((place, after, text.replace("\n", BREAK).replace(BREAK, BREAK + "\n")))
            place = after
        return spans

    def _character(self, tokens: Sequence[int], start: int) -> tuple[int, str]:
        """Returns where the character that begins with a token ends, and its text. A token that is no byte is one."""
        bytes_ = bytearray()
        for token in tokens[start : start + _LONGEST]:
            if int(token) not in self._bytes:
                break
            bytes_.append(self._bytes[int(token)])
            try:
                character = bytes_.decode("utf-8")
            except UnicodeDecodeError:
                continue
            if len(bytes_) > 1:  # ASCII has its label, since some of it does not print
                return start + len(bytes_), character
            break
        return start + 1, self.labels[tokens[start]]


def turns(text: str) -> bool:
    """Returns whether a character of a text sets the direction of the text after it.

    Example:
      >>> turns("reversed: \\u202eabc"), turns("שלום")
      (True, False)
    """
    return not _TURNING.isdisjoint(text)


def first(text: str, characters: int) -> str:
    """Returns the start of a text, at most so many code points, that does not end within a character."""
    place = min(len(text), characters)
    while _is_within(text, place):
        place -= 1
    return text[:place]


def last(text: str, characters: int) -> str:
    """Returns the end of a text, at most so many code points, that begins with a whole character and not an accent."""
    place = max(0, len(text) - characters)
    while _is_within(text, place):
        place += 1
    return text[place:]


def _is_within(text: str, place: int) -> bool:
    """Returns whether the code points around a place are shown as one: an accent, a tone of skin, joined emoji."""
    if not 0 < place < len(text):
        return False
    after = text[place]
    return (
        unicodedata.category(after)[0] == "M"
        or _JOINER in text[place - 1 : place + 1]
        or "\U0001f3fb" <= after <= "\U0001f3ff"
    )
