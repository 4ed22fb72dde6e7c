"""`cut`: documents become tokens, and tokens become sequences of one length.

Axis letters: S sequences, T tokens of a sequence, R sequences of a block.
"""

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sae import showing
from sae.fields import plain
from sae.files import local_path
from sae.language_model import Tokenizer
from sae.text import storing
from sae.text.chat import encode_chat
from sae.text.documents import Document, require_document, require_documents
from sae.text.origin import Origin
from sae.text.pipeline import installed_grain, read_ahead
from sae.text.sequences import Sequences
from sae.text.splitting import text_hash
from sae.text.storing import Block
from sae.text.tally import SKIP_BAD, Tally, TextWarning

# Documents are tokenised 1024 at a time, or fewer where they have more than 2^22 characters together.
_DOCUMENTS, _CHARACTERS = 1024, 2**22


def cut(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    length: int,
    *,
    packed: bool = False,
    only_model_turns: bool = False,
    folder: str | Path | None = None,
    key: str | Path | None = None,
    skip_bad: bool = False,
    tally: Tally | None = None,
) -> Sequences:
    """Cuts documents into sequences of `length` tokens, each of which begins with BOS, in the order of the documents.

    The sequences record the tokenizer (`Sequences.tokenizer_sha256`), so that a model with another one refuses them.

    Chats are put into the model's template first (see `encode_chat`).

    Args:
        documents: documents, which are read once and not kept: with `iter_documents` no more than a few megabytes of
            them are in memory.
        tokenizer: the model's.
        length: T, BOS included.
        packed: False: a sequence has tokens of one document, and the last sequence of each document is padded. True:
            documents are laid one after another, each with BOS before it, and cut without regard to their ends; only
            the very last sequence is padded. Attention goes across the documents of a packed sequence: nothing masks
            it. `Sequences.document_at` tells the tokens' documents.
        only_model_turns: whether to leave out all but the contents of the model's turns (`Sequences.left_out`); for
            chats alone.
        folder: a folder for the tokens. They are written to files as they are made, and come back memory-mapped, so
            that memory grows with the documents' names alone. A folder that was made with the same tokenizer, arguments
            and `key` is used again without reading a document; a half-made one is made anew. Processes of one machine
            may share a folder: one of them makes it, and the others wait.
        key: with `folder`, a text that identifies the documents (a path and a date, a hash).
        skip_bad: whether to leave out and count chats that the model's template refuses, and with `only_model_turns`
            documents that are no chat. Otherwise the first of them is an error.
        tally: a tally that grows with the documents left out. Without one, a `TextWarning` at the end reports them.

    Returns:
        The sequences, with their `origin`.

    Raises:
        ValueError: for a length under 2; documents without a single token, or with `only_model_turns` without a token
            of a model's turn, or a document that is no chat; a chat that cannot be encoded; a folder without a key, or
            a folder with other contents (it names the differences).

    Example:
        >>> import gemma
        >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
        >>> cut([Document("a", "s", "The sea. " * 9)], tokenizer, 8).tokens.shape[1]
        8
    """
    require_documents(documents)
    if not hasattr(tokenizer, "encode"):
        raise ValueError(f"cut takes a tokenizer, such as model.tokenizer; got {showing.kind(tokenizer)}")
    # Plain values, as a folder keeps them in JSON.
    length, packed, only_model_turns, skip_bad = (
        plain(name, value, kind)
        for name, value, kind in (
            ("length", length, int),
            ("packed", packed, bool),
            ("only_model_turns", only_model_turns, bool),
            ("skip_bad", skip_bad, bool),
        )
    )
    key = plain("key", os.fspath(key) if isinstance(key, os.PathLike) else key, str | None)
    if length < 2:
        raise ValueError(f"a sequence needs at least BOS and one token, got length {length}")
    names: list[tuple[str, str]] = []
    hashes: list[int] = []
    refused = Tally()
    encoded = _encoded(documents, tokenizer, only_model_turns, names, hashes, skip_bad, refused)
    blocks = (_packed if packed else _one_by_one)(encoded, length, tokenizer)
    if not only_model_turns:
        blocks = (block._replace(left_out=None) for block in blocks)
    origin = Origin(length, packed, only_model_turns)
    if folder is None:
        sequences = storing.in_memory(blocks, names, hashes, tokenizer.sha256)
    elif key is None:
        raise ValueError(
            "`folder` needs a `key` that identifies the documents, so that the folder is not taken for other documents"
        )
    else:
        facts = {
            "tokenizer_sha256": tokenizer.sha256,
            "length": length,
            "packed": packed,
            "only_model_turns": only_model_turns,
            "key": key,
        }
        # Folders of earlier versions lack this fact, and bad documents were errors.
        facts |= {"skip_bad": True} if skip_bad else {}
        sequences = storing.in_folder(local_path(folder), facts, blocks, names, hashes, refused)
    if tally is not None:
        tally.add(refused)
    elif refused.bad:
        warnings.warn("; ".join(refused.omissions), TextWarning, stacklevel=2)
    return dataclasses.replace(sequences, origin=origin)


def _encoded(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    only_model_turns: bool,
    names: list,
    hashes: list,
    skip_bad: bool,
    refused: Tally,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (ids int32 [n], left out bool [n]) of every document, without BOS; `names`, `hashes` and `refused` grow
    with the documents."""

    # The ids that the tokenizer puts around every text, usually BOS; a sequence's own BOS comes later.
    around = tokenizer.encode("")
    before = int(around[:1] == [tokenizer.bos])
    after = len(around) - before

    def encode(document: Document) -> tuple[np.ndarray, np.ndarray]:
        if document.messages:
            # pyrefly: ignore[bad-argument-type]  with chats the tokenizer has `chat_turns`, or an error says so
            ids, model = encode_chat(document.messages, tokenizer, name=document.id)
            left_out = ~model
        elif only_model_turns:
            raise ValueError(
                f"document {document.id!r} has no messages, so it has no model's turns: only_model_turns needs chats"
            )
        else:
            ids = np.asarray(tokenizer.encode(document.text), np.int32)
            ids = ids[before : len(ids) - after]
            left_out = np.zeros(len(ids), bool)
        return ids, left_out

    def try_to_encode(document: Document) -> tuple[np.ndarray, np.ndarray] | ValueError:
        # Returned and not raised: grain adds notes on its own frames to errors of its threads.
        try:
            return encode(document)
        except ValueError as error:
            return error

    tokens = kept = 0
    # SentencePiece works without the interpreter's lock, so threads help; grain keeps the order.
    threads = min(16, os.cpu_count() or 1)
    for block in _blocks(documents):
        dataset = installed_grain().MapDataset.source(block).map(try_to_encode)
        for document, encoded in zip(block, read_ahead(dataset, threads=threads, ahead=64), strict=True):
            if isinstance(encoded, ValueError):
                problem = f"{document.where}: {encoded}" if document.where else str(encoded)
                if not skip_bad:
                    raise ValueError(f"{problem}. {SKIP_BAD}") from encoded
                refused.leave_out(problem)
                continue
            ids, left_out = encoded
            tokens += len(ids)
            kept += len(ids) - int(left_out.sum())
            names.append((document.id, document.source))
            hashes.append(text_hash(document))
            yield ids, left_out
    bad = "".join(f"; {line}" for line in refused.omissions)
    if not tokens:
        raise ValueError(f"the documents have no tokens, so there is nothing to cut into sequences{bad}")
    if only_model_turns and not kept:
        raise ValueError(f"no chat has a model's turn with text, so only_model_turns would leave nothing{bad}")


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    block, characters = [], 0
    for document in documents:
        require_document(document)
        block.append(document)
        characters += document.characters
        if len(block) == _DOCUMENTS or characters >= _CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _one_by_one(encoded: Iterable[tuple[np.ndarray, np.ndarray]], length: int, tokenizer: Tokenizer) -> Iterator[Block]:
    """Yields the sequences of each document."""
    body = length - 1
    for number, (ids, left_out) in enumerate(encoded):
        rows = -(-len(ids) // body)
        block = _empty(rows, length, tokenizer)
        for into, values in ((block.tokens, ids), (block.left_out, left_out)):
            # pyrefly: ignore[unsupported-operation]  not None here
            flat = np.concatenate([values, into[:, 1:].ravel()[len(values) :]])
            # pyrefly: ignore[unsupported-operation]  not None here
            into[:, 1:] = flat.reshape(rows, body)
        block.document[:] = number
        block.offset[:] = np.arange(rows) * body
        yield block


def _packed(encoded: Iterable[tuple[np.ndarray, np.ndarray]], length: int, tokenizer: Tokenizer) -> Iterator[Block]:
    """Yields packed sequences, one after another."""
    row, filled = None, 0  # the open sequence, and the number of its tokens

    for number, (ids, left_out) in enumerate(encoded):
        placed = 0  # tokens of this document that are in a sequence
        begun = False
        while not begun or placed < len(ids):
            if row is None:
                # Its BOS is the document's own where the document begins here, else an additional one.
                row, filled = _empty(1, length, tokenizer), 1
                row.document[:], row.offset[:] = number, placed
            elif not begun:
                row.tokens[0, filled] = tokenizer.bos
                filled += 1
            begun = True
            count = min(length - filled, len(ids) - placed)
            row.tokens[0, filled : filled + count] = ids[placed : placed + count]
            # pyrefly: ignore[unsupported-operation]  not None here
            row.left_out[0, filled : filled + count] = left_out[placed : placed + count]
            filled, placed = filled + count, placed + count
            if filled == length:
                yield row
                row = None
    if row is not None:
        yield row


def _empty(rows: int, length: int, tokenizer: Tokenizer) -> Block:
    """Returns sequences of BOS and padding, all of which is left out."""
    tokens = np.full((rows, length), tokenizer.pad, np.int32)
    tokens[:, 0] = tokenizer.bos
    return Block(tokens, np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.ones((rows, length), bool))
