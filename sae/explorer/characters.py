"""Tokens as a person reads them: bytes that make a character together, and marks that turn the direction of text."""

import unicodedata
from collections.abc import Sequence

from sae.language_model import Tokenizer

BREAK = "↵"
# Embeddings, overrides, isolates and marks of direction (UAX #9): unclosed, they would turn what stands after them.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LONGEST = 4  # bytes of a character in UTF-8
_JOINER = "\u200d"


class Characters:
    """The labels of a tokenizer's tokens, alone and in running text.

    Args:
      tokenizer: the model's.

    Attributes:
      labels: of each id, what it is by itself; a byte beyond ASCII as <0x..>.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.labels = [tokenizer.piece(i).replace("\n", BREAK) for i in range(len(tokenizer))]
        self._bytes = {i: byte for i in range(len(tokenizer)) if (byte := tokenizer.byte(i)) is not None}

    def spans(self, tokens: Sequence[int], start: int, stop: int) -> list[tuple[int, int, str]]:
        """(first token, the one after the last, text) of each token, or of the bytes that make a character together.

        Line breaks get a mark that shows; the break itself stays, after the mark. Bytes that are no character are shown
        each by itself.

        Args:
          tokens: of a sequence, without padding.
          start, stop: which of them; a character that lies across an end is there whole.
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
        """Where the character ends that begins with a token, and its text; one token's where it is no byte."""
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
    """Whether something in a text sets the direction of what follows it.

    Example:
      >>> turns("reversed: \\u202eabc"), turns("שלום")
      (True, False)
    """
    return not _TURNING.isdisjoint(text)


def first(text: str, characters: int) -> str:
    """The start of a text, which does not end within a character."""
    place = min(len(text), characters)
    while _is_within(text, place):
        place -= 1
    return text[:place]


def last(text: str, characters: int) -> str:
    """The end of a text, which does not begin within a character: with an accent, say."""
    place = max(0, len(text) - characters)
    while _is_within(text, place):
        place += 1
    return text[place:]


def _is_within(text: str, place: int) -> bool:
    """Whether what stands before a place and what follows are shown as one: an accent, a tone of skin, joined emoji."""
    if not 0 < place < len(text):
        return False
    after = text[place]
    return (
        unicodedata.category(after)[0] == "M"
        or _JOINER in text[place - 1 : place + 1]
        or "\U0001f3fb" <= after <= "\U0001f3ff"
    )
