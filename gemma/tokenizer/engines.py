"""From text to ids and back: by SentencePiece, or by the package `tokenizers` for a vocabulary of another kind.

The engines know nothing of BOS, of chats and of files.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gemma.tokenizer import pieces
from gemma.tokenizer.added import AddedToken, Finder
from gemma.tokenizer.pieces import SPACE

if TYPE_CHECKING:
    import sentencepiece

GONE = "\ufffd"  # the text of ids without a piece


class SentencePiece:
    """A SentencePiece model with added tokens, which gives the ids of transformers' tokenizer for it.

    Args:
        model: the bytes of a `ModelProto`.
        added: tokens beside its pieces, or that say more about one of its pieces.
        bare: pieces of the control type that no text gives.

    Raises:
        RuntimeError: for bytes that are no model.
        ValueError: for an added token whose id is another piece's, or whose content has another id.
    """

    def __init__(self, model: bytes, added: Sequence[AddedToken] = (), bare: frozenset[bytes] = frozenset()):
        import sentencepiece  # a model without a tokenizer, as the tests on GPUs have, needs none

        # Only `Finder` sees whether a token is a single word, so the model itself must never find these tokens.
        words = {token.content for token in added if token.single_word}
        changed = pieces.for_encoding(model, bare | {word.encode() for word in words})
        processor = sentencepiece.SentencePieceProcessor(model_proto=changed)
        size = processor.get_piece_size()
        _check(processor, added)
        beyond = {token.id: token.content for token in added if token.id >= size}
        self._holes = frozenset(range(size, max(beyond, default=-1) + 1)) - beyond.keys()
        if beyond:
            additions = [
                (beyond[id_], pieces.CONTROL if beyond[id_] in words else pieces.USER_DEFINED)
                if id_ in beyond
                else (f"{GONE}{id_}", pieces.CONTROL)
                for id_ in range(size, max(beyond) + 1)
            ]
            processor = sentencepiece.SentencePieceProcessor(model_proto=pieces.with_pieces(changed, additions))
        self._processor = processor
        self._size, self.merged = processor.get_piece_size(), size
        self._lengths = {}
        # Whether the text of ids is the texts of their parts joined: not if a first space is left out.
        space = self.find(SPACE)
        self.joins = space is None or processor.decode([space]) == " "
        self._unknown = processor.unk_id()
        # The ids that SentencePiece's own `decode` leaves out, or shows in another way.
        self._named = {self._unknown: processor.id_to_piece(self._unknown), **dict.fromkeys(self._holes, GONE)}
        self._named |= {token.id: token.content for token in added if token.single_word}
        ids = {}  # those of the model, as SentencePiece has them
        for start, end, type_ in pieces.marks(model):
            if model[start:end] not in bare:
                piece = model[start:end].decode()
                special = type_ == pieces.CONTROL or piece in _SPECIAL
                ids[piece] = AddedToken(piece, processor.piece_to_id(piece), special, normalized=False)
        self._mark_ids = {t.id for t in ids.values() if t.special or SPACE not in t.content} | beyond.keys()
        ids[self.unknown] = AddedToken(self.unknown, self._unknown, special=True, normalized=False)
        self.added = ids | {token.content: token for token in added}
        self._words, self._finder = self._by_hand(added)

    def _by_hand(self, added: Sequence[AddedToken]) -> tuple[tuple[str, ...] | None, Finder]:
        """Returns the words of texts in which SentencePiece misses added tokens, and a finder for these.

        The words are None if it may miss added tokens, as `tokenizers` finds them, in every text.
        """
        unknown = self.unknown
        # Pieces with a U+2581 match where the text itself has one; elsewhere they are merged.
        few = [token for content, token in self.added.items() if SPACE in content or content == unknown]
        odd = any(
            not token.plain
            or " " in token.content
            or (token.id < self._size and not self._is_mark(token.id) and token not in few)
            or (token.normalized and SPACE in token.content)
            for token in added
        )
        if odd or self._is_unigram() or _may_overlap(self.added.values()):
            return None, Finder(self.added.values())
        return (unknown, SPACE), Finder(few)

    def _is_unigram(self) -> bool:
        """Returns whether this is a unigram model, which scores user-defined pieces: BPE has no second best text."""
        try:
            return len(self._processor.nbest_encode_as_ids("a", 2)) > 0
        except RuntimeError:
            return False

    @property
    def unknown(self) -> str:
        """The piece for unknown text."""
        return self._named[self._unknown]

    def _is_mark(self, id_: int) -> bool:
        return id_ in self._mark_ids or self._processor.IsControl(id_)

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, with its added tokens.

        Raises:
            RuntimeError: for a text that UTF-8 does not have.
        """
        if self._words is not None and not any(word in text for word in self._words):
            return self._processor.encode(text)
        parts = ([part] if isinstance(part, int) else self._processor.encode(part) for part in self._finder.split(text))
        return list(itertools.chain.from_iterable(parts))

    def encode_with_places(self, text: str) -> tuple[list[int], list[int]]:
        """Returns the ids of a text, and the index of the character at which each begins."""
        ids = self.encode(text)
        ends = np.cumsum([0, *map(self._bytes, ids)])
        characters = np.cumsum([0, *(len(c.encode()) for c in text.replace(SPACE, " "))])
        return ids, (np.searchsorted(characters, ends[:-1], side="right") - 1).tolist()

    def encode_plain(self, text: str) -> list[int]:
        """Returns the ids of a short text by merging alone, without added tokens."""
        find, score = self._processor.piece_to_id, self._processor.get_score
        symbols = list(text.replace(" ", SPACE))
        while True:
            pairs = [a + b for a, b in itertools.pairwise(symbols)]
            options = [(-score(find(pair)), place) for place, pair in enumerate(pairs) if self._is_normal(pair)]
            if not options:
                break
            best = min(options)[1]
            symbols[best : best + 2] = [pairs[best]]
        ids = [[find(s)] if self._is_normal(s) else [find(f"<0x{b:02X}>") for b in s.encode()] for s in symbols]
        return list(itertools.chain.from_iterable(ids))

    def _is_normal(self, piece: str) -> bool:
        id_ = self._processor.piece_to_id(piece)
        return not (id_ == self._unknown or self._is_mark(id_) or self._processor.IsByte(id_))

    def _bytes(self, id_: int) -> int:
        """Returns the number of bytes of a token in a text that has spaces for U+2581."""
        if id_ not in self._lengths:
            piece = self._processor.id_to_piece(id_)
            self._lengths[id_] = 1 if self._processor.IsByte(id_) else len(piece.replace(SPACE, " ").encode())
        return self._lengths[id_]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids; U+FFFD for each id without a piece."""
        if self._named.keys().isdisjoint(ids) and max(ids, default=0) < self._size and min(ids, default=0) >= 0:
            return self._processor.decode(ids)
        parts, run = [], []
        for id_ in [*ids, -1]:
            if 0 <= id_ < self._size and id_ not in self._named:
                run.append(id_)
                continue
            parts += [self._processor.decode(run), self._named.get(id_, GONE)]
            run = []
        return "".join(parts[:-1])

    def piece(self, id_: int) -> str:
        """Returns a piece as the vocabulary has it; U+FFFD for an id without one."""
        return self._processor.id_to_piece(id_) if 0 <= id_ < self._size and id_ not in self._holes else GONE

    def find(self, piece: str) -> int | None:
        """Returns the id of a piece; None if the vocabulary lacks it."""
        id_ = self._processor.piece_to_id(piece)
        return id_ if self._processor.id_to_piece(id_) == piece and id_ not in self._holes else None

    def is_byte(self, id_: int) -> bool:
        """Returns whether an id stands for one byte."""
        return 0 <= id_ < self._size and self._processor.IsByte(id_)

    def from_text(self, id_: int) -> bool:
        """Returns whether a text without added tokens can give this id."""
        return not self._is_mark(id_) and id_ != self._unknown


class Packaged:
    """A tokenizer.json in the package `tokenizers`, with the same methods as `SentencePiece`.

    Args:
        contents: the content of the file.
        added: tokens that the file may lack.

    Raises:
        ImportError: without the package.
        ValueError: for a file that the package does not read, and for an added token that it gives another id.
    """

    joins = False  # some decoders leave out a first space

    def __init__(self, contents: bytes, added: Sequence[AddedToken] = ()):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(contents)
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"the package tokenizers cannot read it: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for token in added:
            flags = {
                name: getattr(token, name) for name in ("special", "normalized", "lstrip", "rstrip", "single_word")
            }
            one = tokenizers.AddedToken(token.content, **flags)
            (self._tokenizer.add_special_tokens if token.special else self._tokenizer.add_tokens)([one])
            if self._tokenizer.token_to_id(token.content) != token.id:
                raise ValueError(
                    f"the added token {token.content!r} has the id {token.id}, but the package tokenizers gives it "
                    f"{self._tokenizer.token_to_id(token.content)}"
                )
        self.added = {token.content: token for token in added}
        self._marks = {token.id for token in added}
        self._size = max(self._tokenizer.get_vocab().values()) + 1

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_places(self, text: str) -> tuple[list[int], list[int]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def encode_plain(self, text: str) -> list[int]:
        tokenizer = self._tokenizer
        text = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
        before = tokenizer.pre_tokenizer
        parts = [text] if before is None else [part for part, _ in before.pre_tokenize_str(text)]
        return [token.id for part in parts for token in tokenizer.model.tokenize(part)]

    def decode(self, ids: list[int]) -> str:
        parts, run = [], []
        for id_ in [*ids, -1]:
            if self.piece(id_) != GONE:
                run.append(id_)
                continue
            parts += [self._tokenizer.decode(run, skip_special_tokens=False), GONE]
            run = []
        return "".join(parts[:-1])

    def piece(self, id_: int) -> str:
        piece = self._tokenizer.id_to_token(id_) if 0 <= id_ < self._size else None
        return GONE if piece is None else piece

    def find(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    def is_byte(self, id_: int) -> bool:
        return re.fullmatch("<0x[0-9A-F]{2}>", self.piece(id_)) is not None

    def from_text(self, id_: int) -> bool:
        return id_ not in self._marks and self.piece(id_) != GONE


# Special in transformers, whatever their type is: the marks of turns, and the tokens that GemmaTokenizer names.
_SPECIAL = frozenset(("<start_of_turn>", "<end_of_turn>", "<pad>", "<eos>", "<bos>", "<mask>"))


def _check(processor: "sentencepiece.SentencePieceProcessor", added: Sequence[AddedToken]) -> None:
    """Raises ValueError unless added tokens and pieces agree on their ids."""
    size = processor.get_piece_size()
    for token in added:
        id_ = processor.piece_to_id(token.content)
        exists = processor.id_to_piece(id_) == token.content
        if exists and id_ != token.id:
            raise ValueError(f"the added token {token.content!r} has the id {token.id}, but is piece {id_}")
        if not exists and token.id < size:
            piece = processor.id_to_piece(token.id)
            raise ValueError(f"the added token {token.content!r} has the id {token.id}, which is {piece!r}'s")


def _may_overlap(added: Iterable[AddedToken]) -> bool:
    """Returns whether a token searched in the raw text can overlap one that is searched later."""
    raw = {token.content for token in added if not token.normalized}
    later = [token.content for token in added if token.normalized]
    if not later:
        return False
    starts = {text[:n] for text in raw for n in range(1, len(text) + 1)}
    ends = {text[n:] for text in raw for n in range(len(text))}
    return any(
        text[n:] in starts or text[:n] in ends or any(text[n:m] in raw for m in range(n + 1, len(text) + 1))
        for text in later
        for n in range(1, len(text))
    )
