"""Gemma's tokenizer: a SentencePiece model with byte fallback and the special ids pad 0, eos 1, bos 2."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece


class Tokenizer:
    """Text to token ids and back.

    Attributes:
      bos, eos, pad: ids of the special tokens.
      special_ids: the three together; what they mark is no text.
      model_proto: the SentencePiece model's bytes, what `tokenizer.model` holds.
      sha256: of these bytes, to tell tokenizers apart.
    """

    def __init__(self, model_proto: bytes):
        self.model_proto = model_proto
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


_UNKNOWN, _USER_DEFINED = 2, 4  # of a piece's types


def model_from_pieces(
    pieces: Sequence[bytes], scores: Sequence[float], types: Sequence[int], *, pad: int, eos: int, bos: int, unk: int
) -> bytes:
    """A SentencePiece model of Gemma's kind from its vocabulary alone, as GGUF files have it.

    Gemma's is a BPE model with byte fallback, which changes nothing of a text: identity normaliser, no dummy prefix,
    extra white space kept, spaces escaped as U+2581. Pieces of the user-defined type (runs of spaces) come with plain
    spaces.

    The bytes are those of the protocol buffer `ModelProto` (sentencepiece's `sentencepiece_model.proto`), written out
    here as the generated module depends on the version of protobuf.
    """
    parts = []
    for id_, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        if kind == _USER_DEFINED:
            piece = piece.replace(b" ", "\u2581".encode())
        if id_ == unk:
            kind = _UNKNOWN  # where llama.cpp has another control token
        body = b"\x0a" + _varint(len(piece)) + piece + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(int(kind))
        parts.append(b"\x0a" + _varint(len(body)) + body)
    # TrainerSpec's fields by number: model_type (2 is BPE), vocab_size, byte_fallback; unk_id, bos_id, eos_id, pad_id,
    # and the pieces that these are, which is what counts.
    ids = (unk, bos, eos, pad)
    trainer = _integers({3: 2, 4: len(pieces), 35: 1, **dict(zip(range(40, 44), ids, strict=True))})
    trainer += b"".join(
        _varint(field << 3 | 2) + _varint(len(pieces[id_])) + pieces[id_]
        for field, id_ in zip(range(45, 49), ids, strict=True)
    )
    # NormalizerSpec's: add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces; field 1 is the name.
    normalizer = b"\x0a\x08identity" + _integers({3: 0, 4: 0, 5: 1})
    for key, body in ((b"\x12", trainer), (b"\x1a", normalizer)):
        parts.append(key + _varint(len(body)) + body)
    return b"".join(parts)


def _integers(fields: dict[int, int]) -> bytes:
    """A protocol buffer of integers by field number."""
    return b"".join(_varint(field << 3) + _varint(value) for field, value in fields.items())


def _varint(value: int) -> bytes:
    """A non-negative integer as protocol buffers write it: seven bits to a byte, lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
