"""Token sequences, each of which begins with BOS, and the documents of their tokens.

Axis letters: S sequences, T tokens of a sequence.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from sae import showing
from sae.text.origin import Origin

_ROWS = 4096  # rows that are hashed at a time


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Tokens ready for the model, and their documents. The arrays may be memory-mapped files.

    Attributes:
        tokens: int32 [S, T]; BOS, then tokens of one document (of several where they were packed), then padding.
        document: int32 [S], the index in `documents` of the document of a sequence's first token.
        offset: int32 [S], the number of that document's tokens before the sequence's first one.
        documents: (id, source) of every document.
        left_out: bool [S, T], True at tokens that the model reads and no harvest stores, such as the user's part of a
            chat; None for no such tokens. Its values at BOS and padding, which are no text, do not matter.
        tokenizer_sha256: `Tokenizer.sha256` of the tokenizer that made the tokens; None where it is unknown. No part of
            `fingerprint`, as the same ids are the same text for a model.
        origin: how the text was cut, and its source; None where it is unknown.
        of: where these are some of more sequences (`take`), the number of all.
        rows_are_documents: whether each sequence counts as a document because its documents are unknown
            (`as_sequences` of an array); measures over documents say so.
        hashes: uint64 [documents], of the documents' texts (`splitting.text_hash`), by which `split` holds documents
            out; None where they were not computed. No part of `fingerprint`.

    Raises:
        ValueError: for tokens that are not integers [S, T], a `document` or an `offset` that is not integers [S], a
            `left_out` that is not bool [S, T], and masked arrays. The values are checked before a model reads them
            (`check_sequences`).
    """

    tokens: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    documents: tuple[tuple[str, str], ...]
    left_out: np.ndarray | None = None
    tokenizer_sha256: str | None = None
    origin: Origin | None = None
    of: int | None = None
    rows_are_documents: bool = False
    hashes: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        if self.tokens.ndim != 2 or not np.issubdtype(self.tokens.dtype, np.integer):
            raise ValueError(f"tokens must be integers [S, T], got {self.tokens.dtype} {list(self.tokens.shape)}")
        for name in ("document", "offset"):
            array = getattr(self, name)
            if array.shape != self.tokens.shape[:1] or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"{name} must be integers [{len(self.tokens)}], one for each sequence, got {array.dtype} "
                    f"{list(array.shape)}"
                )
        check_unmasked(self.tokens)
        marks = self.left_out
        if marks is not None and (marks.shape != self.tokens.shape or marks.dtype != bool):
            raise ValueError(f"left_out must be bool {list(self.tokens.shape)}, got {marks.dtype} {list(marks.shape)}")

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        left_out = "" if self.left_out is None else ", some of their tokens left out"
        documents = showing.documents(len(self.documents), self.rows_are_documents)
        return f"Sequences({self.size}, {documents}{left_out})"

    @property
    def size(self) -> str:
        """The number of sequences (of all, where these are some) and their length, in words."""
        few = "" if self.of is None or self.of == len(self) else f"{len(self):,} of "
        # pyrefly: ignore[bad-argument-type]  not None here
        return f"{few}{showing.count(self.of if few else len(self), 'sequence')} of {self.tokens.shape[1]:,} tokens"

    def take(self, rows: np.ndarray | slice) -> "Sequences":
        """Returns some of the sequences. For indices they are read into memory; for a slice they stay on disk."""
        return dataclasses.replace(
            self,
            tokens=self.tokens[rows],
            document=self.document[rows],
            offset=self.offset[rows],
            left_out=None if self.left_out is None else self.left_out[rows],
            of=len(self) if self.of is None else self.of,
        )

    def text(self, special_ids: Sequence[int]) -> np.ndarray:
        """Returns the tokens to harvest, which are text and not left out: bool [S, T]."""
        text = is_text(self.tokens, special_ids)
        return text if self.left_out is None else text & ~self.left_out

    def document_at(self) -> np.ndarray:
        """Returns the index of every token's document, int32 [S, T]; at padding, that of the last token before it.

        The documents of one sequence have consecutive indices and each begins with BOS. So a token's document is the
        sequence's first one plus the number of BOS after the first.
        """
        if self.rows_are_documents:
            return np.broadcast_to(self.document[:, None], self.tokens.shape)
        # BOS is a control piece, which no text contains.
        begins = self.tokens == self.tokens[:, :1]
        return (self.document[:, None] - 1 + np.cumsum(begins, axis=1, dtype=np.int32)).astype(np.int32, copy=False)

    def place(self, row: int, position: int) -> tuple[int, int]:
        """Returns the index of the document of the token at a position, and the token's index in that document."""
        if self.rows_are_documents:
            return int(self.document[row]), position
        begins = np.flatnonzero(self.tokens[row, : position + 1] == self.tokens[row, 0])
        before = int(self.offset[row]) if len(begins) == 1 else 0
        return int(self.document[row]) + len(begins) - 1, before + position - int(begins[-1]) - 1

    def fingerprint(self) -> str:
        """Returns a sha256 over the tokens, the marks of tokens left out, and the names of the documents: corpora with
        equal fingerprints are equal."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.document, self.offset):
            _update(digest, array, "<i4")
        digest.update(json.dumps(self.documents).encode())
        if self.left_out is not None:
            digest.update(b"left_out")
            _update(digest, self.left_out, "|b1")
        return digest.hexdigest()


def _update(digest, array: np.ndarray, dtype: str) -> None:
    for start in range(0, len(array), _ROWS):
        digest.update(np.ascontiguousarray(array[start : start + _ROWS], dtype).tobytes())


def check_unmasked(tokens: np.ndarray) -> None:
    """Raises ValueError for a masked array, whose mask would be ignored here.

    Example:
        >>> check_unmasked(np.asarray([[2, 57]]))
    """
    if isinstance(tokens, np.ma.MaskedArray):
        raise ValueError(
            "tokens must be a plain array, got a masked one: give `sae.text.Sequences` with the mask as its `left_out`"
        )


def batch_at(tokens: np.ndarray, start: int, size: int, pad: int) -> np.ndarray:
    """Returns the sequences from `start` on as int32 [size, T]. The last batch is filled up with padding, which is no
    text, so that one compiled program serves all batches.

    Example:
        >>> batch_at(np.ones((3, 2), np.int32), 2, 2, pad=0).tolist()
        [[1, 1], [0, 0]]
    """
    batch = np.full((size, tokens.shape[1]), pad, np.int32)
    batch[: len(tokens) - start] = tokens[start : start + size]
    return batch


def is_text(tokens: np.ndarray, special_ids: Sequence[int]) -> np.ndarray:
    """Returns which tokens are text, in the tokens' shape: False at BOS, EOS and padding. Training and evaluation leave
    these out by this one rule.

    Example:
        >>> is_text(np.asarray([[2, 57, 1, 0]]), special_ids=(0, 1, 2)).tolist()
        [[False, True, False, False]]
    """
    return ~np.isin(tokens, special_ids)
