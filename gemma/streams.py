"""Texts that grow token by token: pieces that join to the whole text, and stop strings wherever tokens end."""

from collections.abc import Sequence

from gemma.tokenizer import Tokenizer

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes of UTF-8


class Piece(str):
    """A piece of a text, a `str` that knows where it belongs.

    Attributes:
        row: the index of its text in `Generation.texts`.
        tokens: the ids that the piece comes from; several, or none, where a character takes several tokens.
    """

    row: int
    tokens: list[int]

    def __new__(cls, text: str, row: int, tokens: Sequence[int]) -> "Piece":
        piece = super().__new__(cls, text)
        piece.row, piece.tokens = row, list(tokens)
        return piece


class Growing:
    """One text that grows.

    Args:
        tokenizer: the tokenizer; None if tokens have no text.
        stop_tokens: ids that end the text, and are no part of it.
        stop: texts that end the text, and are no part of it.

    Attributes:
        tokens: the ids so far, with the ones that ended the text.
        text: the text so far. The beginning of a stop string is held back until it is clear that it is none.
        ended: whether a stop token or a stop string has come.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop_tokens: Sequence[int], stop: Sequence[str]):
        self._tokenizer, self._stop_tokens, self._stop = tokenizer, frozenset(stop_tokens), tuple(stop)
        self.tokens: list[int] = []
        self.ended = False
        self.text = ""
        self._whole = ""  # the text of the tokens before `_open`
        self._open = 0  # the first token whose text may still change
        self._pending: list[int] = []  # tokens whose text is not in `text`

    def add(self, token: int) -> tuple[str, list[int]]:
        """Adds a token, and returns the new text with the tokens that it comes from."""
        self.tokens.append(token)
        if token in self._stop_tokens:
            self.ended = True
            return self.finish(before=len(self.tokens) - 1)
        self._pending.append(token)
        return self._grow(len(self.tokens), last=False)

    def finish(self, before: int | None = None) -> tuple[str, list[int]]:
        """Returns the rest of the text with its tokens; `before` is the number of tokens that are text."""
        return self._grow(len(self.tokens) if before is None else before, last=True)

    def _grow(self, count: int, last: bool) -> tuple[str, list[int]]:
        if self._tokenizer is None:
            tokens, self._pending = self._pending, []
            return "", tokens
        tail = self.tokens[self._open : count]
        whole = self._whole + self._tokenizer.decode_part(tail, first=self._open == 0)
        place = self._stop_place(whole)
        if place is not None:
            self.ended, whole = True, whole[:place]
        elif not last:
            if self._is_closed(tail):
                self._whole, self._open = whole, count
            whole = whole[: len(whole) - self._held_back(whole)]
        new = whole[len(self.text) :]
        if not new and not (last or self.ended):
            return "", []
        self.text += new
        tokens, self._pending = self._pending, []
        return new, tokens

    def _is_closed(self, tail: Sequence[int]) -> bool:
        """Returns whether no later token changes this text: bytes may join to a character, end marks may vanish."""
        # pyrefly: ignore[missing-attribute]  what is closed is text
        return bool(tail) and not self._tokenizer.may_change(tail[-1])

    def _held_back(self, whole: str) -> int:
        """Returns how many characters at the end may begin a stop string, or be an unfinished character."""
        broken = len(whole) - len(whole.rstrip(_BROKEN))
        unfinished = min(broken, _LONGEST_CHARACTER - 1) if self._open < len(self.tokens) else 0
        whole = whole[: len(whole) - unfinished]
        starts = (next((n for n in range(len(stop) - 1, 0, -1) if whole.endswith(stop[:n])), 0) for stop in self._stop)
        return unfinished + max(starts, default=0)

    def _stop_place(self, whole: str) -> int | None:
        """Returns where the first stop string begins, or None. Nothing of it is in `text`, which holds it back."""
        places = [place for place in (whole.find(stop, len(self.text)) for stop in self._stop) if place >= 0]
        return min(places, default=None)
