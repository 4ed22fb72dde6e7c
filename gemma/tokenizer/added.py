"""Tokens that stand beside a vocabulary, and the search for them in a text.

The rules are those of the package `tokenizers` (its `added_vocabulary.rs`): before anything else, added tokens are
taken out of a text from left to right, the longest first.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator

from gemma.tokenizer.pieces import SPACE


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is taken out of a text before the vocabulary's rules see it.

    Attributes:
        content: its text.
        id: its id.
        special: whether it is a mark (of a turn, for example) and no text.
        normalized: whether the search for it comes after the text's spaces became U+2581.
        lstrip: whether white space to its left belongs to it.
        rstrip: whether white space to its right belongs to it.
        single_word: whether it must have no letter, digit or underscore to its left and right.
    """

    content: str
    id: int
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @property
    def plain(self) -> bool:
        """Whether it matches wherever its text stands, whatever is around it."""
        return not (self.lstrip or self.rstrip or self.single_word)


def from_fields(fields: dict, id_: int) -> AddedToken:
    """Returns a token from its description in tokenizer.json or tokenizer_config.json.

    Args:
        fields: the description.
        id_: the token's id.

    Raises:
        ValueError: for a token without content.
    """
    content = fields.get("content")
    if not isinstance(content, str) or not content:
        raise ValueError(f"the added token {id_} has the content {content!r}, expected a text")
    special = bool(fields.get("special", False))
    flags = {name: bool(fields.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
    return AddedToken(content, id_, special, bool(fields.get("normalized", not special)), **flags)


class Finder:
    """Splits texts at added tokens."""

    def __init__(self, tokens: Iterable[AddedToken]):
        self._ids = {token.content: token.id for token in tokens}
        self._expressions = [
            re.compile("|".join(map(_expression, sorted(some, key=lambda token: -len(token.content)))))
            for some in ([t for t in tokens if not t.normalized], [t for t in tokens if t.normalized])
            if some
        ]

    def split(self, text: str) -> Iterator[str | int]:
        """Yields the text's parts in order: ids of added tokens, and texts between them. No part is empty."""
        yield from self._split(text, 0)

    def _split(self, text: str, level: int) -> Iterator[str | int]:
        if level == len(self._expressions):
            if text:
                yield text
            return
        start = 0
        for match in self._expressions[level].finditer(text):
            yield from self._split(text[start : match.start()], level + 1)
            yield self._id(match[0])
            start = match.end()
        yield from self._split(text[start:], level + 1)

    def _id(self, text: str) -> int:
        """Returns the id of an added token as the text spells it, maybe in white space or with a space for U+2581."""
        for spelling in (text, text.replace(" ", SPACE), text.replace(SPACE, " "), text.strip()):
            if spelling in self._ids:
                return self._ids[spelling]
        raise AssertionError(f"{text!r} is no added token")


def _expression(token: AddedToken) -> str:
    expression = re.escape(token.content)
    if token.normalized:
        expression = re.sub(rf"\\ |{SPACE}", f"[ {SPACE}]", expression)
    if token.single_word:
        expression = rf"(?<!\w){expression}(?!\w)"
    return r"\s*" * token.lstrip + expression + r"\s*" * token.rstrip
