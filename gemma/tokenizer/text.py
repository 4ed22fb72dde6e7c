"""A model's tokenizer: from texts to token ids and back."""

import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gemma.tokenizer.added import AddedToken
from gemma.tokenizer.chat_methods import ChatMethods
from gemma.tokenizer.engines import GONE, Packaged, SentencePiece
from gemma.tokenizer.pieces import SPACE
from gemma.tokenizer.settings import Settings

_ROLES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}


class Tokenizer(ChatMethods):
    """A tokenizer: text to token ids and back, with the ids of transformers' tokenizer for the same files.

    Args:
        model_proto: a SentencePiece model's bytes, the content of `tokenizer.model`.
        settings: the settings that stand beside it.
        engine: encodes and decodes; by default an engine of that model.
        json: the content of tokenizer.json, if the model was made from that.

    Attributes:
        bos: the id of BOS; `bos_id` is the same.
        eos: the id of EOS; `eos_id` is the same.
        pad: the id of padding; `pad_id` is the same.
        special_ids: these ids and that of `<eos>`, which are no text.
        model_proto: the SentencePiece model's bytes; None for a vocabulary of another kind.
        settings: the settings that stand beside the vocabulary.
        engine: encodes and decodes.
        sha256: a hash of everything that decides about ids, to tell tokenizers apart.

    Example:
        >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
        >>> tokenizer.decode(tokenizer.encode("The sea"))
        'The sea'
    """

    def __init__(
        self,
        model_proto: bytes | None,
        settings: Settings | None = None,
        *,
        engine: SentencePiece | Packaged | None = None,
        json: bytes | None = None,
    ):
        self.model_proto, self.json = model_proto, json
        self.settings = settings = Settings() if settings is None else settings
        # pyrefly: ignore[bad-argument-type]  one of the two is there
        self.engine = SentencePiece(model_proto, settings.added) if engine is None else engine
        self.pad, self.eos, self.bos = (self._special(role) for role in _ROLES)
        plain_eos = self.find("<eos>")
        ids = (self.pad, self.eos, self.bos, self.eos if plain_eos is None else plain_eos)
        self.special_ids = tuple(dict.fromkeys(ids))
        # pyrefly: ignore[bad-argument-type]  one of the two is there
        sha256 = hashlib.sha256(json or model_proto)
        # With a tokenizer.model alone it is the file's hash, so that files of older versions stay valid.
        odd = {role: id_ for role, id_, usual in zip(_ROLES, ids, (0, 1, 2), strict=False) if id_ != usual}
        if settings.added or odd:
            sha256.update(repr((settings.added, odd)).encode())
        self.sha256 = sha256.hexdigest()
        self._expressions: dict[str, re.Pattern] = {}

    def _special(self, role: str) -> int:
        """Returns the id of a special token; -1 if the vocabulary lacks it."""
        token = self.settings.tokens.get(role, _ROLES[role])
        if isinstance(token, int):
            return token
        id_ = self.find(token)
        return -1 if id_ is None else id_

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer from `tokenizer.model` or `tokenizer.json`, with the settings beside it in its folder.

        Args:
            path: the file.

        Raises:
            ValueError: for a file that is no tokenizer, or that lacks one of Gemma's special tokens.
        """
        from gemma.checkpoints import places
        from gemma.tokenizer import files

        return files.read(places.path(path))

    def with_settings(self, settings: Settings) -> "Tokenizer":
        """Returns a tokenizer with the same vocabulary and added tokens, and other settings."""
        return Tokenizer(self.model_proto, settings, engine=self.engine, json=self.json)

    bos_id = property(lambda self: self.bos)
    eos_id = property(lambda self: self.eos)
    pad_id = property(lambda self: self.pad)

    def __len__(self) -> int:
        """Returns the number of pieces, V, with added tokens."""
        return len(self.engine)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self):,} pieces)"

    def find(self, piece: str) -> int | None:
        """Returns the id of a piece that is spelled as in the vocabulary; None if the vocabulary lacks it."""
        return self.engine.find(piece)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def encode(self, text: str, *, add_bos: bool | None = None, marks: bool | None = None) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: any text.
            add_bos: whether BOS comes first. By default the tokenizer's settings decide (which may add EOS, too); with
                Gemma's, BOS comes first.
            marks: whether a mark that the text spells out, such as `<end_of_turn>` or `<bos>`, is that mark, as in
                transformers; else it is text like any other. By default the tokenizer's settings decide; without
                them it is a mark.

        Raises:
            ValueError: for a text with a lone surrogate, which UTF-8 does not have.

        Example:
            >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
            >>> tokenizer.encode("The sea")
            [2, 392, 1788]
        """
        settings = self.settings
        marks = not settings.marks_are_text if marks is None else marks
        try:
            ids = self.engine.encode(text) if marks else self._encode_apart(text)
        except (RuntimeError, UnicodeEncodeError, TypeError) as error:
            raise _why_not(text, error) from error
        if self.adds_bos if add_bos is None else add_bos:
            ids = [self.bos, *ids]
        if add_bos is None and settings.add_eos:
            ids = [*ids, self.eos]
        return ids

    def _encode_apart(self, text: str) -> list[int]:
        """Returns token ids with marks as text: each by itself, so that no piece spans it and the text around it."""
        ids = self.engine.encode(text)
        if self._special_marks.isdisjoint(ids):
            return ids
        spelled = [self.engine.piece(id_) for id_ in self._special_marks.intersection(ids)]
        expression = "(" + "|".join(map(re.escape, sorted(spelled, key=len, reverse=True))) + ")"
        parts = enumerate(re.split(expression, text))
        return [i for k, part in parts for i in (self.engine.encode_plain if k % 2 else self._encode_apart)(part)]

    @functools.cached_property
    def _special_marks(self) -> frozenset[int]:
        return frozenset(token.id for token in self.engine.added.values() if token.special)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids.

        Padding at both ends, a BOS before the text and an EOS after it vanish; within it they are shown, like other
        marks. Broken UTF-8, and an id without a piece, is the replacement character.

        Args:
            ids: the ids, integers.

        Example:
            >>> gemma.load("gemma2-tiny").tokenizer.decode([2, 392, 1788, 1])
            'The sea'
        """
        numbers = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).tolist()
        return self.decode_part(numbers, first=True)

    def decode_part(self, ids: list[int], *, first: bool) -> str:
        """Returns the text of ids as `decode` does; unless they are the `first` ones, padding and BOS are shown."""
        start, end = 0, len(ids)
        while first and start < end and ids[start] == self.pad:
            start += 1
        if first and start < end and ids[start] == self.bos:
            start += 1
        while start < end and ids[end - 1] in self.special_ids and ids[end - 1] != self.bos:
            end -= 1
        return self.engine.decode(ids[start:end])

    def may_change(self, id_: int) -> bool:
        """Returns whether later tokens can change a token's text: bytes join, and a last EOS or padding vanishes."""
        return not self.engine.joins or id_ in self.special_ids or self.engine.is_byte(id_)

    def byte(self, id_: int) -> int | None:
        """Returns the byte that a token stands for; None for a piece of text, a mark, or an id without a piece.

        Example:
            >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
            >>> [tokenizer.byte(id_) for id_ in tokenizer.encode("\U0001f469", add_bos=False)]
            [240, 159, 145, 169]
        """
        return int(self.engine.piece(int(id_))[3:5], 16) if self.engine.is_byte(int(id_)) else None

    def piece(self, id_: int) -> str:
        """Returns one token as a person reads it.

        A space stands for SentencePiece's lower one-eighth block. A byte is its character if it is printable ASCII,
        else <0x..>. An id without a piece is the replacement character.
        """
        piece = self.engine.piece(int(id_))
        if self.engine.is_byte(int(id_)):
            character = chr(int(piece[3:5], 16))
            return character if character.isascii() and character.isprintable() else piece
        return piece.replace(SPACE, " ")

    def raw_piece(self, id_: int) -> str:
        """Returns one token as the vocabulary has it; for an id without a piece, a text that no other id has."""
        piece = self.engine.piece(id_)
        return f"{piece}{id_}" if piece == GONE else piece

    @property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        """The tokens that are taken out of a text before all else, marks among them."""
        return tuple(self.engine.added.values())

    @property
    def adds_bos(self) -> bool:
        """Whether a text gets BOS if the caller does not say."""
        return self.settings.add_bos is not False

    def misfit(self, vocab_size: int) -> str | None:
        """Returns why this is no tokenizer of a model with `vocab_size` embeddings; None if it is one.

        Marks past the last embedding do no harm: Gemma 3's tokenizer has one for images, which its text models lack.
        """
        if all(not self.engine.from_text(id_) for id_ in range(vocab_size, len(self))):
            return None
        return f"{len(self)} pieces, but the model has only {vocab_size} embeddings"


def _why_not(text: object, error: Exception) -> Exception:
    """Returns the error that says why a text has no tokens."""
    if not isinstance(text, str):
        return TypeError(f"a text must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as wrong:
        character = text[wrong.start]
        return ValueError(
            f"character {wrong.start} of the text is the lone surrogate {character!a}, which UTF-8 does not have: "
            "read the text with errors='replace'"
        )
    return error
