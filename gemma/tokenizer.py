"""Gemma's tokenizer: a SentencePiece model with byte fallback and the special ids pad 0, eos 1, bos 2."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import sentencepiece


class Tokenizer:
    """Text to token ids and back.

    Attributes:
      bos, eos, pad: ids of the special tokens.
      special_ids: the three together; what they mark is no text.
      sha256: of the SentencePiece model, to tell tokenizers apart.
    """

    def __init__(self, model_proto: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        self.pad, self.eos, self.bos = (self._processor.pad_id(), self._processor.eos_id(), self._processor.bos_id())
        self.special_ids = (self.pad, self.eos, self.bos)
        self.sha256 = hashlib.sha256(model_proto).hexdigest()

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Raises ValueError when the file is no SentencePiece model with Gemma's special ids."""
        try:
            tokenizer = cls(Path(path).read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
        if tokenizer.special_ids != (0, 1, 2):
            raise ValueError(f"{path} has pad, eos and bos at {tokenizer.special_ids}, Gemma's are 0, 1 and 2")
        return tokenizer

    def __len__(self) -> int:
        """The number of pieces, V."""
        return self._processor.get_piece_size()

    def find(self, piece: str) -> int | None:
        """The id of a piece, as it stands in the vocabulary; None where it is none."""
        id_ = self._processor.piece_to_id(piece)
        return id_ if self._processor.id_to_piece(id_) == piece else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """Token ids; text is never parsed for special tokens, except those that the model itself lists as pieces."""
        return [self.bos] * add_bos + self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special tokens vanish, broken UTF-8 shows as the replacement character."""
        return self._processor.decode([int(i) for i in ids if int(i) not in self.special_ids])

    def piece(self, id_: int) -> str:
        """One token as a person reads it: a space for SentencePiece's lower one-eighth block; a byte of its own as the
        character that it is in ASCII, as <0x..> elsewhere."""
        piece = self._processor.id_to_piece(int(id_))
        if self._processor.is_byte(int(id_)):
            character = chr(int(piece[3:5], 16))
            return character if character.isascii() and character.isprintable() else piece
        return piece.replace("\u2581", " ")
