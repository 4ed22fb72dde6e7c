"""Divides a text into documents to harvest and held-out documents, by a hash of each document's text alone.

So a document and its duplicates are on the same side for every seed, length of sequences and packing, and the sides are
the same whether documents are divided before they are cut into sequences, or sequences afterwards.
"""

import array
import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from sae.text.documents import Document, require_document, require_documents
from sae.text.sequences import Sequences

SHARE = 0.1
Side = Literal["harvest", "held_out", "divided"]
_SPACE, _NEAR = re.compile(r"\s"), 200  # characters within which a space is looked for


def split(
    documents: Sequence[Document] | Sequences, share: float = SHARE
) -> tuple[list[Document], list[Document]] | tuple[Sequences, Sequences]:
    """Divides documents, or the sequences that `cut` made of them, into those to harvest and those that are held out.

    The documents' texts alone decide, as in launches: see `Survey.split`. For sequences without their documents' texts
    (`as_sequences`), the tokens decide.

    Args:
        documents: documents in memory; for more, `survey(iter_documents(path)).split()` reads them one by one. Or
            `Sequences`, not packed; both sides are read into memory.
        share: the part of the text that is held out, in expectation.

    Returns:
        The documents or sequences to harvest, and those that are held out, each in their order.

    Raises:
        ValueError: as `Survey.split` does, and for packed sequences, in which documents of both sides lie together.

    Example:
        >>> documents = [Document(f"d{i}", "s", f"text number {i}") for i in range(100)]
        >>> train, held_out = split(documents)
        >>> len(train) + len(held_out), split(documents[::-1])[1] == held_out[::-1]
        (100, True)
    """
    if isinstance(documents, Sequences):
        return _split_sequences(documents, share)
    sides = survey(documents).split(share)
    return list(sides.harvested(documents)), list(sides.held_out(documents))


def _split_sequences(sequences: Sequences, share: float) -> tuple[Sequences, Sequences]:
    """Divides sequences as `split` does. The last sequences of a divided document are held out, at least one."""
    several = (sequences.tokens[:, 1:] == sequences.tokens[:, :1]).any() and not sequences.rows_are_documents
    if several or (sequences.origin is not None and sequences.origin.packed):
        raise ValueError(
            "packed sequences have several documents each, so they cannot be divided by document: divide the documents "
            "by sae.text.split(documents), and cut each side"
        )
    present, document, rows = np.unique(sequences.document, return_inverse=True, return_counts=True)
    order = np.lexsort((sequences.offset, document))
    first = np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(int)
    if sequences.hashes is None:
        parts = np.split(sequences.tokens[order], first[1:])
        hashes = np.asarray([_digest(np.ascontiguousarray(part, "<i4").tobytes()) for part in parts], np.uint64)
    else:
        hashes = sequences.hashes[present]
    names = {int(key): sequences.documents[number][0] for key, number in zip(hashes, present, strict=True)}
    sides = Survey(hashes, rows, rows > 1, names).split(share)
    held_out = np.zeros(len(sequences), bool)
    for key, start, count in zip(hashes.tolist(), first, rows, strict=True):
        side = sides.side(key)
        if side != "harvest":
            begin = 0 if side == "held_out" else count - max(1, int(share * count))
            held_out[order[start + begin : start + count]] = True
    return sequences.take(np.flatnonzero(~held_out)), sequences.take(np.flatnonzero(held_out))


def _digest(contents: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(contents, digest_size=8).digest(), "big")


def text_hash(document: Document) -> int:
    """Returns 64 bits of a hash of a document's text, or messages, without its names, its line ends and the white space
    around it."""
    digest = hashlib.blake2b(digest_size=8)
    if document.messages:
        for message in document.messages:
            role = "model" if message.role == "assistant" else message.role
            digest.update(_bytes(f"\0{role}\0{_plain(message.content)}"))
    else:
        digest.update(_bytes(_plain(document.text)))
    return int.from_bytes(digest.digest(), "big")


def _plain(text: str) -> str:
    return text.strip().replace("\r\n", "\n")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # `cut` refuses what is no text


def survey(documents: Iterable[Document]) -> "Survey":
    """Reads all documents once, and returns their survey, which takes 17 bytes for each.

    Example:
        >>> documents = [Document(f"d{i}", "s", f"text number {i}") for i in range(100)]
        >>> survey(documents).digest() == survey(documents[::-1]).digest()
        True
    """
    hashes, sizes, divisible = array.array("Q"), array.array("q"), array.array("b")
    names: dict[int, str] = {}
    total = 0
    require_documents(documents)
    for document in documents:
        require_document(document)
        key = text_hash(document)
        hashes.append(key)
        sizes.append(document.characters)
        divisible.append(_divisible(document))
        total += document.characters
        if 2 * document.characters > total:  # a document that is more than half in the end is so now
            names.setdefault(key, document.id)
    return Survey(
        np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64),
        np.asarray(sizes, np.int64),
        np.asarray(divisible, bool),
        names,
    )


@dataclasses.dataclass(frozen=True)
class Survey:
    """Hashes and sizes of a text's documents. `survey` makes one.

    Attributes:
        hashes: uint64 [documents], of the texts.
        sizes: int64 [documents], in characters.
        divisible: bool [documents], whether a document can be cut in two.
        names: {hash: id} of large documents.
    """

    hashes: np.ndarray
    sizes: np.ndarray
    divisible: np.ndarray
    names: Mapping[int, str]

    def __contains__(self, document: Document) -> bool:
        """Returns whether the text has this document, under any name."""
        key = np.uint64(text_hash(document))
        at = int(np.searchsorted(self._sorted, key))
        return at < len(self._sorted) and self._sorted[at] == key

    def digest(self) -> str:
        """Returns a sha256 over the texts of the documents, which does not depend on their order and names."""
        return hashlib.sha256(self._sorted.astype("<u8").tobytes()).hexdigest()

    def split(self, share: float = SHARE) -> "Split":
        """Holds out a part of the text: every document with the probability `share`, drawn from its text's hash.

        A document that is more than half of the text, with its duplicates, is divided: its end, the part `share` of it,
        is held out. Where chance holds nothing out, the document with the least hash among those of at most a fifth of
        the text is held out, or the end of the largest document; `Split.note` says so. At most half of the text is held
        out: where chance chose more, the chosen documents with the greatest hashes are harvested.

        Args:
            share: the part of the text to hold out, in expectation.

        Raises:
            ValueError: for a share that is not above 0 and at most 0.5, no document, or a single document that cannot
                be divided.
        """
        if not 0 < share <= 0.5:
            raise ValueError(f"share must be above 0 and at most 0.5, got {share}")
        if not len(self.hashes):
            raise ValueError("the text has no document: give more text")
        keys, sizes, divisible = self._texts()
        total, largest = sizes.sum(), int(np.argmax(sizes))
        name = self.names.get(keys[largest])
        subject = (
            f"{'a document' if name is None else f'document {name!r}'} is {sizes[largest] / total:.0%} of the text"
        )
        end = f"{subject}: its end, {share:.0%} of it, is held out"
        sides: dict[int, Side] = {}
        notes, held = [], 0.0
        if 2 * sizes[largest] > total:
            sides[keys[largest]] = "divided" if divisible[largest] else "harvest"
            held = share * sizes[largest] * divisible[largest]
            notes.append(end if divisible[largest] else f"{subject} and cannot be divided: it is harvested")
        chosen = itertools.takewhile(lambda key: key < int(share * 2**64), keys)
        for key, size in zip(chosen, sizes, strict=False):
            if key in sides:
                continue
            if 2 * (held + size) > total:
                sides[key] = "harvest"
            else:
                held += size
        if not held:
            small = [key for key, size in zip(keys, sizes, strict=True) if 5 * size <= total]
            others = [key for key in keys if key != keys[largest]]
            if divisible[largest] and not small:
                sides[keys[largest]] = "divided"
                notes.append(end)
            elif others:
                sides[(small or others)[0]] = "held_out"
                notes.append(f"chance holds out none of {len(keys)} documents: one is held out all the same")
            else:
                raise ValueError(
                    f"the text is a single document{'' if name is None else f' ({name!r})'} that cannot be divided, so "
                    "nothing can be held out of it: give more text, or held-out text of its own"
                )
        return Split(share, sides, "; ".join(notes))

    def _texts(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Returns the distinct texts by rising hash: hashes, sizes of all copies together, and whether they divide."""
        keys, first, index = np.unique(self.hashes, return_index=True, return_inverse=True)
        return keys.tolist(), np.bincount(index.ravel(), self.sizes), self.divisible[first]

    @functools.cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort(self.hashes)


@dataclasses.dataclass(frozen=True)
class Split:
    """The two sides of a text. `Survey.split` makes one.

    Attributes:
        share: the probability with which a document is held out.
        sides: {hash: side} of the documents that chance alone does not place.
        note: one line about these documents; empty for none.
    """

    share: float
    sides: Mapping[int, Side]
    note: str = ""

    def harvested(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents to harvest; only the beginning of a divided document."""
        return self._part(documents, "harvest")

    def held_out(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the held-out documents. The end of a divided document has its id, followed by "(end)"."""
        return self._part(documents, "held_out")

    def _part(self, documents: Iterable[Document], wanted: Side) -> Iterator[Document]:
        for document in documents:
            side = self.side(text_hash(document))
            if side == "divided":
                yield _divided(document, self.share)[wanted == "held_out"]
            elif side == wanted:
                yield document

    def side(self, key: int) -> Side:
        """Returns the side of the document with a hash."""
        return self.sides.get(key, "held_out" if key < int(self.share * 2**64) else "harvest")


def _divisible(document: Document) -> bool:
    """Returns whether `_divided` can cut a document."""
    if document.messages:
        return sum(message.role == "user" for message in document.messages) > 1
    return len(document.text.strip()) > 1


def _divided(document: Document, share: float) -> tuple[Document, Document]:
    """Returns a document's beginning and its end. The end is the part `share` of its characters or somewhat less; it
    begins at a word, or at a user's turn."""
    end_id = f"{document.id} (end)"
    if document.messages:
        at = _turn(document, share)
        system = document.messages[:1] if document.messages[0].role not in ("user", "model", "assistant") else ()
        return (
            dataclasses.replace(document, messages=document.messages[:at]),
            dataclasses.replace(document, id=end_id, messages=system + document.messages[at:]),
        )
    text = document.text.strip()
    at = max(1, int(len(text) * (1 - share)))
    space = _SPACE.search(text, at, at + _NEAR)
    at = at if space is None else space.start()
    return dataclasses.replace(document, text=text[:at]), dataclasses.replace(document, id=end_id, text=text[at:])


def _turn(document: Document, share: float) -> int:
    """Returns the index of the user's message at which a chat's end begins."""
    before = np.cumsum([0, *(len(message.content) for message in document.messages)])
    turns = [number for number, message in enumerate(document.messages) if message.role == "user"][1:]
    late = [number for number in turns if before[number] >= (1 - share) * before[-1]]
    return late[0] if late else turns[-1]
