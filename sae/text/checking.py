"""Checks that tokens belong to a model, which harvesting and evaluation make before the model reads any of them.

Axis letters: S sequences, T tokens of a sequence.
"""

import dataclasses

import numpy as np

from sae import showing
from sae.language_model import LanguageModel
from sae.text.documents import Document
from sae.text.sequences import Sequences, check_unmasked

_ROWS = 4096  # sequences looked at together: they may be memory-mapped files that are larger than memory


def require_sequences(value: object) -> None:
    """Raises ValueError for a value that is no `Sequences`, with the function that makes them of it."""
    if not isinstance(value, Sequences):
        raise ValueError(f"expected token sequences, got {showing.kind(value)}: {_makes_them(value)}")


def _makes_them(value: object) -> str:
    """Returns in words the function that makes sequences of a value."""
    first = value[0] if isinstance(value, list | tuple) and value else None
    if isinstance(first, Document):
        return "sae.text.cut(documents, model.tokenizer, 256) cuts documents into them"
    if showing.is_array(value) or isinstance(first, list | tuple | int):
        return "sae.text.as_sequences(tokens, model) makes them of token ids [S, T]"
    return (
        "sae.text.cut(documents, model.tokenizer, 256) makes them of documents, which sae.text.read_documents(path) "
        "reads or sae.text.Document(id, source, text) makes"
    )


def as_sequences(text: Sequences | np.ndarray, model: LanguageModel) -> Sequences:
    """Returns a text as token sequences that fit a model: by their ids, and by their tokenizer where they record it.

    Args:
        text: `Sequences`, or integers [S, T] without documents: then each row counts as a document
            (`Sequences.rows_are_documents`).
        model: the model that is to read the tokens.

    Returns:
        The sequences, with tokens of int32. Tokens that are int32 already are not copied, so a memory map stays one.

    Raises:
        ValueError: as `check_sequences` does, and for an array that is no integers [S, T].

    Example:
        >>> import gemma
        >>> as_sequences([[2, 7, 9], [2, 5, 0]], gemma.load("gemma2-tiny"))
        Sequences(2 sequences of 3 tokens, 2 rows taken for documents)
    """
    if isinstance(text, Sequences):
        check_sequences(text, model)
        tokens = text.tokens.astype(np.int32, copy=False)
        return text if tokens is text.tokens else dataclasses.replace(text, tokens=tokens)
    check_unmasked(text)
    first = text[0] if isinstance(text, list | tuple) and text else text
    if not (showing.is_array(text) or showing.is_array(first) or isinstance(first, list | tuple | int)):
        require_sequences(text)
    try:
        tokens = np.asarray(text)
    except ValueError:  # numpy's own message is about its arrays
        raise ValueError(
            "token sequences that are given as lists need one length, got several lengths: pad them with "
            "model.tokenizer.pad, or make sequences of text by sae.text.cut"
        ) from None
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens must be integers [S, T], got {tokens.dtype} {list(tokens.shape)}: give the ids of a tokenizer"
        )
    _check_range(tokens, model)
    rows = np.arange(len(tokens), dtype=np.int32)
    return Sequences(
        tokens.astype(np.int32, copy=False),
        rows,
        np.zeros_like(rows),
        tuple((f"row {row}", "array") for row in range(len(tokens))),
        rows_are_documents=True,
    )


def check_sequences(sequences: Sequences, model: LanguageModel) -> None:
    """Raises ValueError for sequences of another tokenizer than the model's, ids outside its vocabulary, sequences that
    do not begin with BOS, and tokens of a document that the sequences do not list.

    Example:
        >>> import gemma
        >>> ids, zero = np.asarray([[2, 10**6]]), np.zeros(1, int)
        >>> sequences = Sequences(ids, zero, zero, (("d", "s"),))
        >>> check_sequences(sequences, gemma.load("gemma2-tiny"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: the tokens have the id 1000000, while the vocabulary of gemma2-tiny is 0 to ...
    """
    check_tokenizer(sequences, model)
    _check_range(sequences.tokens, model)
    _check_documents(sequences, None if model.tokenizer is None else model.tokenizer.bos)


def check_tokenizer(sequences: Sequences, model: LanguageModel) -> None:
    """Raises ValueError, naming both, for sequences of another tokenizer than the model's."""
    tokenizer_of_text, read = sequences.tokenizer_sha256, None if model.tokenizer is None else model.tokenizer.sha256
    if tokenizer_of_text is None or read is None or tokenizer_of_text == read:
        return
    raise ValueError(
        f"these sequences were cut with the tokenizer {tokenizer_of_text[:12]}…, while {model.name} has the tokenizer "
        f"{read[:12]}…: cut the text with model.tokenizer. If both give the same ids, "
        "dataclasses.replace(sequences, tokenizer_sha256=None) turns this check off"
    )


def _check_documents(sequences: Sequences, bos: int | None) -> None:
    """Raises ValueError unless every token has a document: `Sequences.document_at` relies on BOS for that."""
    count = len(sequences.documents)
    if len(sequences) and int(sequences.offset.min()) < 0:
        raise ValueError(f"an offset counts the tokens of a document from 0 on, got {int(sequences.offset.min())}")
    for start in range(0, len(sequences), _ROWS):
        tokens, document = sequences.tokens[start : start + _ROWS], sequences.document[start : start + _ROWS]
        first = tokens[:, :1]
        if not sequences.rows_are_documents and tokens.size:
            bos = int(first[0, 0]) if bos is None else bos
            if (wrong := np.flatnonzero(first[:, 0] != bos)).size:
                raise ValueError(
                    f"each sequence has to begin with BOS, {bos}, but sequence {start + wrong[0]} begins with "
                    f"{first[wrong[0], 0]}: cut the text with `sae.text.cut`, or give the tokens alone, so that each "
                    "row counts as a document"
                )
        last = document if sequences.rows_are_documents else document - 1 + (tokens == first).sum(axis=1)
        if int(document.min()) < 0 or int(last.max()) >= count:
            wrong = int(document.min()) if int(document.min()) < 0 else int(last.max())
            raise ValueError(
                f"these sequences list {showing.count(count, 'document')}, counted from 0, and have tokens of document "
                f"{wrong}: `documents` has to list every document that `document` and the BOS of packed sequences count"
            )


def _check_range(tokens: np.ndarray, model: LanguageModel) -> None:
    for start in range(0, len(tokens), _ROWS):
        part = tokens[start : start + _ROWS]
        if not part.size:
            continue
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= model.vocab_size:
            whose = "they may be of another model's tokenizer"
            if low < 0:
                whose = "no tokenizer gives negative ids, so they may mark padding"
            raise ValueError(
                f"the tokens have the id {low if low < 0 else high}, while the vocabulary of {model.name} is 0 to "
                f"{model.vocab_size - 1}: {whose}. Cut the text with model.tokenizer"
            )
