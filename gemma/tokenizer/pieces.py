"""Writes a SentencePiece model's bytes from a vocabulary, and changes them so that a text gives transformers' ids.

The bytes are those of the protocol buffer `ModelProto` (sentencepiece's `sentencepiece_model.proto`). They are written
and read here, as the generated module depends on the version of protobuf.
"""

import re
import struct
from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # a piece's types
BPE, UNIGRAM = 2, 1  # a model's types
SPACE = "\u2581"
_SPACE = SPACE.encode()


def model_from_pieces(
    pieces: Sequence[bytes],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    pad: int,
    eos: int,
    bos: int,
    unk: int,
    kind: int = BPE,
) -> bytes:
    """Returns a SentencePiece model of Gemma's kind, made from its vocabulary alone, as GGUF files have it.

    Gemma's model is a BPE model with byte fallback that leaves texts unchanged: identity normaliser, no dummy prefix,
    extra white space kept, spaces escaped as U+2581.

    Args:
        pieces: the pieces in the order of their ids; those of the user-defined type (runs of spaces) have plain spaces.
        scores: their scores.
        types: their types, such as `NORMAL`.
        pad: the id of padding.
        eos: the id of EOS.
        bos: the id of BOS.
        unk: the id of the piece for unknown text.
        kind: the model's type, `BPE` or `UNIGRAM`.

    Raises:
        ValueError: for lists of different lengths.
    """
    if not len(pieces) == len(scores) == len(types):
        raise ValueError(
            f"got {len(pieces)} pieces, {len(scores)} scores and {len(types)} types: give each piece a score and a type"
        )
    parts = []
    types = list(map(int, types))
    types[unk] = UNKNOWN  # llama.cpp has another control token there
    packed = np.asarray(scores, "<f4").tobytes()
    for at, (piece, type_) in enumerate(zip(pieces, types, strict=True)):
        if type_ == USER_DEFINED:
            piece = piece.replace(b" ", _SPACE)
        head = _HEADS[len(piece)] if len(piece) <= _LONGEST else _head(len(piece))
        parts += (head, piece, b"\x15", packed[4 * at : 4 * at + 4], _TYPES[type_])
    # TrainerSpec's fields by number: model_type, vocab_size, byte_fallback; unk_id, bos_id, eos_id, pad_id, and the
    # pieces of these ids, which are what counts.
    ids = (unk, bos, eos, pad)
    trainer = _integers({3: kind, 4: len(pieces), 35: 1, **dict(zip(range(40, 44), ids, strict=True))})
    trainer += b"".join(
        _varint(field << 3 | 2) + _varint(len(pieces[id_])) + pieces[id_]
        for field, id_ in zip(range(45, 49), ids, strict=True)
    )
    # NormalizerSpec's: add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces; field 1 is the name.
    normalizer = b"\x0a\x08identity" + _integers({3: 0, 4: 0, 5: 1})
    for key, body in ((b"\x12", trainer), (b"\x1a", normalizer)):
        parts.append(key + _varint(len(body)) + body)
    return b"".join(parts)


def with_pieces(model: bytes, pieces: Sequence[tuple[str, int]]) -> bytes:
    """Returns a model with further (piece, type) after its own: protocol buffers may hold a list in several places."""
    return model + b"".join(_piece(piece.encode(), 0.0, type_) for piece, type_ in pieces)


class Mark(NamedTuple):
    """A piece that is no part of ordinary text.

    Attributes:
        start: where its bytes begin in the model.
        end: where they end.
        type: CONTROL or USER_DEFINED.
    """

    start: int
    end: int
    type: int


# The field of a type, with one of the two types.
_TYPE = re.compile(rb"\x18([\x03\x04])")
_LONGEST = 1000  # bytes of a piece that `marks` finds
_BEFORE_ALL = 1e6  # ordinary pieces have scores of 0 and less; float32 holds every integer up to this


def marks(model: bytes) -> list[Mark]:
    """Returns the control and user-defined pieces of a model, in its order.

    It finds them by the bytes around them: going through all pieces takes a second for 262144 of them.
    """
    result = []
    for match in _TYPE.finditer(model):
        end = match.start() - 5
        if end < 1 or model[end] != 0x15:  # the score's field, which is before the type
            continue
        for length in range(1, min(_LONGEST, end) + 1):
            head = _HEADS[length]
            if model.startswith(head, end - length - len(head)):
                result.append(Mark(end - length, end, match[1][0]))
                break
    return result


def for_encoding(model: bytes, unseen: Container[bytes] = ()) -> bytes:
    """Returns the model that turns a text to transformers' ids.

    transformers takes both control and user-defined pieces out of a text before anything else, while SentencePiece
    takes user-defined ones alone. So control pieces become user-defined. User-defined pieces with a U+2581 (runs of
    spaces) become normal ones: transformers searches the text for that character, but the text has spaces, so it makes
    these pieces by merging, those with lower ids first.

    Args:
        model: the model.
        unseen: pieces that it must not find in a text.
    """
    changed = bytearray(model)
    score = _BEFORE_ALL
    for start, end, type_ in marks(model):
        piece = model[start:end]
        if piece in unseen:
            changed[end + 6] = CONTROL
        elif type_ == CONTROL:
            changed[end + 6] = USER_DEFINED
        elif _SPACE in piece:
            struct.pack_into("<f", changed, end + 1, score)
            score -= 1
            changed[end + 6] = NORMAL
    return bytes(changed)


def _piece(piece: bytes, score: float, type_: int) -> bytes:
    return _head(len(piece)) + piece + b"\x15" + struct.pack("<f", score) + _TYPES[type_]


def _head(length: int) -> bytes:
    """Returns the bytes before a piece of `length` bytes that has a score and a type."""
    inner = b"\x0a" + _varint(length)
    return b"\x0a" + _varint(len(inner) + length + 7) + inner


def _integers(fields: dict[int, int]) -> bytes:
    """Returns a protocol buffer of integers by field number."""
    return b"".join(_varint(field << 3) + _varint(value) for field, value in fields.items())


def _varint(value: int) -> bytes:
    """Returns a non-negative integer as protocol buffers write it: seven bits to a byte, lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


_HEADS = [_head(length) for length in range(_LONGEST + 1)]
_TYPES = [b"\x18" + _varint(type_) for type_ in range(16)]
