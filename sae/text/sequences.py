"""Token sequences, each of which begins with BOS, and what is known of their tokens.

Axis letters: S sequences, T tokens of a sequence.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from sae import showing
from sae.text.origin import Origin

_ROWS = 4096  # hashed at a time


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Tokens ready for the model, and where they are from. The arrays may be memory-mapped files.

    Attributes:
      tokens: [S, T] int32; BOS, then tokens of one document (of several, where they were packed), then padding.
      document: [S] int32, which of `documents` a sequence's first token is from.
      offset: [S] int32, how many tokens of that document come before the sequence's first one.
      documents: (id, source) of every document.
      left_out: [S, T] bool, True at tokens that the model is to read and nobody to harvest, such as the user's part of
        a chat; None where there are none. What it says of BOS and padding, which are no text, counts for nothing.
      tokenizer_sha256: of the tokenizer that made the tokens, `Tokenizer.sha256`; None where nobody says. No part of
        `fingerprint`, as the same ids are the same text for a model.
      origin: how they were cut and where they are from; None where nobody has said.
      of: how many sequences there were, where these are some of them (`take`).
      rows_are_documents: nobody has said which documents the tokens are from, so each sequence counts as one
        (`as_sequences` of an array); what is measured over documents says so.
      hashes: [documents] uint64 of the documents' texts (`splitting.text_hash`), by which `split` holds documents out;
        None where nobody has computed them. No part of `fingerprint`.

    Raises:
      ValueError: for tokens that are not [S, T] integers, a `document` or an `offset` that is not [S] integers, a
        `left_out` that is not [S, T] bool, and masked arrays. What the numbers say is checked before a model reads them
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
                    f"{name} has to be integers [{len(self.tokens)}], one for each sequence, got {array.dtype} "
                    f"{list(array.shape)}"
                )
        check_unmasked(self.tokens)
        given = self.left_out
        if given is not None and (given.shape != self.tokens.shape or given.dtype != bool):
            raise ValueError(
                f"left_out has to be bool {list(self.tokens.shape)}, got {given.dtype} {list(given.shape)}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        left_out = "" if self.left_out is None else ", some of their tokens left out"
        documents = showing.documents(len(self.documents), self.rows_are_documents)
        return f"Sequences({self.size}, {documents}{left_out})"

    @property
    def size(self) -> str:
        """How many there are, of how many, and of what length, in words."""
        few = "" if self.of is None or self.of == len(self) else f"{len(self):,} of "
        # pyrefly: ignore[bad-argument-type]  not None here
        return f"{few}{showing.count(self.of if few else len(self), 'sequence')} of {self.tokens.shape[1]:,} tokens"

    def take(self, rows: np.ndarray | slice) -> "Sequences":
        """Some of the sequences. Numbers are read into memory; a slice stays on disk where the arrays are."""
        return dataclasses.replace(
            self,
            tokens=self.tokens[rows],
            document=self.document[rows],
            offset=self.offset[rows],
            left_out=None if self.left_out is None else self.left_out[rows],
            of=len(self) if self.of is None else self.of,
        )

    def text(self, special_ids: Sequence[int]) -> np.ndarray:
        """[S, T] bool: the tokens to harvest, which are text and not left out."""
        text = is_text(self.tokens, special_ids)
        return text if self.left_out is None else text & ~self.left_out

    def document_at(self) -> np.ndarray:
        """[S, T] int32: the number of every token's document; at padding, that of the last one before it.

        Documents that lie in one sequence are numbered in a row and each begins with BOS, so it is the sequence's first
        document plus the number of BOS after the first.
        """
        if self.rows_are_documents:
            return np.broadcast_to(self.document[:, None], self.tokens.shape)
        # Nothing else is BOS: it is a control piece, which no text is turned into.
        begins = self.tokens == self.tokens[:, :1]
        return (self.document[:, None] - 1 + np.cumsum(begins, axis=1, dtype=np.int32)).astype(np.int32, copy=False)

    def place(self, row: int, position: int) -> tuple[int, int]:
        """Which document the token at a position is from, and which of that document's tokens it is, from 0 on."""
        if self.rows_are_documents:
            return int(self.document[row]), position
        begins = np.flatnonzero(self.tokens[row, : position + 1] == self.tokens[row, 0])
        before = int(self.offset[row]) if len(begins) == 1 else 0
        return int(self.document[row]) + len(begins) - 1, before + position - int(begins[-1]) - 1

    def fingerprint(self) -> str:
        """sha256 over the tokens, what is left out, and the names of the documents: two corpora with the same are the
        same."""
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
    """Raises ValueError for a masked array, whose mask nothing here would heed.

    Example:
      >>> check_unmasked(np.asarray([[2, 57]]))
    """
    if isinstance(tokens, np.ma.MaskedArray):
        raise ValueError(
            "tokens must be a plain array, got a masked one: give `sae.text.Sequences` with the mask as its `left_out`"
        )


def batch_at(tokens: np.ndarray, start: int, size: int, pad: int) -> np.ndarray:
    """The sequences from `start` on as [size, T] int32. The last batch is filled up with padding, so that one compiled
    program serves all; what fills it is no text.

    Example:
      >>> batch_at(np.ones((3, 2), np.int32), 2, 2, pad=0).tolist()
      [[1, 1], [0, 0]]
    """
    batch = np.full((size, tokens.shape[1]), pad, np.int32)
    batch[: len(tokens) - start] = tokens[start : start + size]
    return batch


def is_text(tokens: np.ndarray, special_ids: Sequence[int]) -> np.ndarray:
    """Which tokens are text: a mask in the tokens' shape, False at BOS, EOS and padding. Training and evaluation leave
    those out by this one rule.

    Example:
      >>> is_text(np.asarray([[2, 57, 1, 0]]), special_ids=(0, 1, 2)).tolist()
      [[False, True, False, False]]
    """
    return ~np.isin(tokens, special_ids)
