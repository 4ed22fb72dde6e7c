"""`cut`: documents become tokens, and tokens become sequences of one length.

Axis letters: S sequences, T tokens of a sequence; R of the sequences, a block of them.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import grain
import numpy as np

from gemma import Tokenizer
from sae.text import storing
from sae.text.chat import encode_chat
from sae.text.documents import Document
from sae.text.pipeline import read_ahead
from sae.text.sequences import Sequences
from sae.text.storing import Block

# Documents are tokenised so many at a time, or so many characters of them if that is less.
_DOCUMENTS, _CHARACTERS = 1024, 2**22


def cut(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    length: int,
    *,
    packed: bool = False,
    only_model_turns: bool = False,
    folder: str | Path | None = None,
    key: str | None = None,
) -> Sequences:
    """Cuts documents into sequences of `length` tokens, each of which begins with BOS. The order is the documents'.

    Chats are put into Gemma's template first (see `encode_chat`).

    Args:
      documents: read once, and not kept: with `iter_documents` no more than a few megabytes of them are in memory.
      tokenizer: the model's.
      length: T, BOS included.
      packed: False: a sequence is of one document, and the last of each document is padded.
        True: documents are laid one after another, each begun by BOS, and cut with no regard to where they end; only
        the very last sequence is padded. Attention goes across the documents of a packed sequence: nothing masks it.
        `Sequences.document_at` tells the tokens' documents.
      only_model_turns: leaves out all but the contents of the model's turns (`Sequences.left_out`); chats only.
      folder: where given, tokens go to files there as they are made, and come back memory-mapped: memory does not grow
        with the text, except by the documents' names. A folder that was made with the same tokenizer, arguments and
        `key` is taken as it is, and no document is read; one that was left half made is made anew. Processes of one
        machine may be given the same folder: one of them makes it, and the others wait.
      key: with `folder`: says which documents these are (a path and a date, a hash), whatever the caller trusts.

    Raises:
      ValueError: for a length under 2; documents without a single token, or with `only_model_turns` without one of a
        model's turn, or a document that is no chat; a chat that cannot be encoded; a folder without a key, or one that
        holds something else (it says what differs).
    """
    if length < 2:
        raise ValueError(f"a sequence needs BOS and one token at least, got length {length}")
    names: list[tuple[str, str]] = []
    encoded = _encoded(documents, tokenizer, only_model_turns, names)
    blocks = (_packed if packed else _one_by_one)(encoded, length, tokenizer)
    if not only_model_turns:
        blocks = (block._replace(left_out=None) for block in blocks)
    if folder is None:
        return storing.in_memory(blocks, names)
    if key is None:
        raise ValueError("a folder takes a `key` that says which documents these are, so that others are not mixed up")
    facts = {
        "tokenizer_sha256": tokenizer.sha256,
        "length": length,
        "packed": packed,
        "only_model_turns": only_model_turns,
        "key": key,
    }
    return storing.in_folder(Path(folder), facts, blocks, names)


def _encoded(
    documents: Iterable[Document], tokenizer: Tokenizer, only_model_turns: bool, names: list
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids [n] int32, left out [n] bool) of every document, without BOS; `names` grows with them."""

    def encode(document: Document) -> tuple[np.ndarray, np.ndarray]:
        if document.messages:
            ids, model = encode_chat(document.messages, tokenizer, name=document.id)
            left_out = ~model
        elif only_model_turns:
            raise ValueError(f"document {document.id!r} has no messages, so it has no model's turns: they need chats")
        else:
            ids = np.asarray(tokenizer.encode(document.text, add_bos=False), np.int32)
            left_out = np.zeros(len(ids), bool)
        return ids, left_out

    tokens = kept = 0
    # SentencePiece works without the interpreter's lock, so threads help; grain keeps the order.
    threads = min(16, os.cpu_count() or 1)
    for block in _blocks(documents):
        names += [(document.id, document.source) for document in block]
        for ids, left_out in read_ahead(grain.MapDataset.source(block).map(encode), threads=threads, ahead=64):
            tokens += len(ids)
            kept += len(ids) - int(left_out.sum())
            yield ids, left_out
    if not tokens:
        raise ValueError("the documents hold no token at all: there is nothing to cut into sequences")
    if only_model_turns and not kept:
        raise ValueError("no chat has a model's turn with text in it: there would be nothing left")


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    block, characters = [], 0
    for document in documents:
        block.append(document)
        characters += document.characters
        if len(block) == _DOCUMENTS or characters >= _CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _one_by_one(encoded: Iterable[tuple[np.ndarray, np.ndarray]], length: int, tokenizer: Tokenizer) -> Iterator[Block]:
    """The sequences of each document."""
    body = length - 1
    for number, (ids, left_out) in enumerate(encoded):
        rows = -(-len(ids) // body)
        block = _empty(rows, length, tokenizer)
        for into, values in ((block.tokens, ids), (block.left_out, left_out)):
            flat = np.concatenate([values, into[:, 1:].ravel()[len(values) :]])
            into[:, 1:] = flat.reshape(rows, body)
        block.document[:] = number
        block.offset[:] = np.arange(rows) * body
        yield block


def _packed(encoded: Iterable[tuple[np.ndarray, np.ndarray]], length: int, tokenizer: Tokenizer) -> Iterator[Block]:
    """One sequence after another."""
    row, filled = None, 0  # the open sequence, and how many tokens it has

    for number, (ids, left_out) in enumerate(encoded):
        done = 0  # tokens of this document that have found their place
        begun = False
        while not begun or done < len(ids):
            if row is None:
                # Its BOS is the document's own where that begins here, else one more.
                row, filled = _empty(1, length, tokenizer), 1
                row.document[:], row.offset[:] = number, done
            elif not begun:
                row.tokens[0, filled] = tokenizer.bos
                filled += 1
            begun = True
            count = min(length - filled, len(ids) - done)
            row.tokens[0, filled : filled + count] = ids[done : done + count]
            row.left_out[0, filled : filled + count] = left_out[done : done + count]
            filled, done = filled + count, done + count
            if filled == length:
                yield row
                row = None
    if row is not None:
        yield row


def _empty(rows: int, length: int, tokenizer: Tokenizer) -> Block:
    """Sequences of BOS and padding, all of it left out."""
    tokens = np.full((rows, length), tokenizer.pad, np.int32)
    tokens[:, 0] = tokenizer.bos
    return Block(tokens, np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.ones((rows, length), bool))
