"""Counts duplicates in a text: documents with the same text as an earlier document, or nearly the same.

Texts of the web repeat each other many times; a model learns such text by heart and an autoencoder spends latents on it
(Lee and others, arXiv 2107.06499). A document is a near-duplicate where at least 0.8 of the runs of five words in it or
an earlier document are in both (their Jaccard index); the threshold is the paper's.

The index is estimated from sketches: the least hashes of a document's runs (Cohen and Kaspi, "Summarizing data using
bottom-k sketches", PODC 2007). Memory is bounded: where more documents come than are remembered, only those stay whose
least hash is in the lower half of all values, then in the lower quarter, and so on. Copies of a text have the same
least hash, and near copies have it as often as they are alike. So duplicates stay together, and the part of duplicates
among the remembered documents is that among all.

Axis letters: N bytes of a text, W words, H runs of words, K hashes of a sketch, C documents that are compared.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

from sae.text.documents import Document

_K = 64  # hashes of a sketch: the error of an index of 0.8 is 0.05
_NEAR = 0.8
_RUN = 5  # words
# Hashes of a sketch by which alike documents are looked up: at an index of 0.8, one pair in 600 has none in common.
_KEYS = 4
_ALIKE = 16  # the most documents for one hash; a hash of more documents is common (a heading, a licence)
_CHARACTERS = 2**20  # the first characters of a document, which near-duplicates are recognised by
_NONE = np.uint64(2**64 - 1)  # fills the sketch of a short document


class Duplicates:
    """Counts duplicates among documents, one after another.

    Args:
        most: the most distinct documents that are remembered, at about 1 KiB each.

    Attributes:
        documents: the number of documents.
        one_in: one document in this many is looked at: 1 until more than `most` were distinct.
        looked_at: the number of documents looked at.
        exact: the number of these with the text, or the messages, of an earlier document.
        near: the number of others that are nearly an earlier document.

    Example:
        >>> duplicates = Duplicates()
        >>> sea = "The sea was calm, and the ships lay still in the harbour that morning."
        >>> texts = (sea, "The king said unto him.", sea, sea.upper())
        >>> documents = [Document(str(number), "s", text) for number, text in enumerate(texts)]
        >>> len(list(duplicates.watch(documents)))
        4
        >>> print(duplicates)
        1 of 4 documents is an exact duplicate, 1 near
    """

    def __init__(self, most: int = 2**16):
        self.documents, self.one_in = 0, 1
        self._most = most
        self._numbers: dict[int, int] = {}  # {exact hash: the document's index among the remembered ones}
        self._alike: dict[int, list[int]] = {}  # {a first hash of a sketch: the indices of its documents}
        self._sketches = np.empty((0, _K), np.uint64)
        self._keys, self._copies, self._near = [], [], []

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents unchanged, and counts each."""
        for document in documents:
            self.add(document)
            yield document

    def add(self, document: Document) -> None:
        """Counts a document."""
        self.documents += 1
        whole = _exact_hash(document)
        number = self._numbers.get(whole)
        if number is not None:
            self._copies[number] += 1
            return
        sketch = _sketch(_words(document))
        least = sketch[0] if sketch[0] != _NONE else np.uint64(whole)
        # pyrefly: ignore[bad-index]  [None] makes an array of a number
        key = int(_mixed(least[None])[0])
        if key >= 2**64 // self.one_in:
            return
        number = len(self._keys)
        if number == len(self._sketches):
            self._sketches = np.concatenate([self._sketches, np.empty((max(64, number), _K), np.uint64)])
        self._near.append(self._is_near(sketch))
        self._keys.append(key)
        self._copies.append(0)
        self._sketches[number] = sketch
        self._numbers[whole] = number
        self._enter(number)
        if number >= self._most:
            self._halve()

    @property
    def looked_at(self) -> int:
        return len(self._keys) + self.exact

    @property
    def exact(self) -> int:
        return sum(self._copies)

    @property
    def near(self) -> int:
        return sum(self._near)

    def __repr__(self) -> str:
        return f"Duplicates({self})"

    def __str__(self) -> str:
        documents = f"{self.documents:,} document{'' if self.documents == 1 else 's'}"
        if self.one_in > 1:
            exact, near = (f"{count / max(1, self.looked_at):.1%}" for count in (self.exact, self.near))
            return f"about {exact} of {documents} are exact duplicates, {near} near (by 1 document in {self.one_in:,})"
        if not self.exact and not self.near:
            return f"no duplicates among {documents}"
        are = "is an exact duplicate" if self.exact == 1 else "are exact duplicates"
        return f"{self.exact:,} of {documents} {are}, {self.near:,} near"

    def _is_near(self, sketch: np.ndarray) -> bool:
        numbers = {number for hash_, _ in self._keys_of(sketch) for number in self._alike.get(hash_, ())}
        if not numbers:
            return False
        others = self._sketches[list(numbers)]  # [C, K]
        # Up to the lesser of the last hashes, both sketches are complete; the sketch of a short document always is.
        bound = np.minimum(others[:, -1:], sketch[-1])
        theirs, ours = (others <= bound) & (others != _NONE), (sketch <= bound) & (sketch != _NONE)
        both = (np.isin(others, sketch) & theirs).sum(axis=1)
        return bool((both >= _NEAR * (theirs.sum(axis=1) + ours.sum(axis=1) - both)).any())

    def _enter(self, number: int) -> None:
        """Enters a document, so that later ones are compared with it."""
        for hash_, common in self._keys_of(self._sketches[number]):
            if not common:
                self._alike.setdefault(hash_, []).append(number)

    def _keys_of(self, sketch: np.ndarray) -> Iterator[tuple[int, bool]]:
        """Yields a sketch's hashes, each with whether it is common, up to the fourth (`_KEYS`) that is not. A common
        hash stays common, so that a later document's hashes go at least as far as an earlier one's."""
        rare = 0
        for hash_ in sketch[sketch != _NONE].tolist():
            common = len(self._alike.get(hash_, ())) >= _ALIKE
            yield hash_, common
            rare += not common
            if rare == _KEYS:
                return

    def _halve(self) -> None:
        """Forgets the documents whose key is in the upper half."""
        while len(self._keys) > self._most:
            self.one_in *= 2
            rest = [number for number, key in enumerate(self._keys) if key < 2**64 // self.one_in]
            after = {before: number for number, before in enumerate(rest)}
            self._numbers = {hash_: after[number] for hash_, number in self._numbers.items() if number in after}
            self._sketches = self._sketches[rest]
            self._keys, self._copies, self._near = (
                [values[number] for number in rest] for values in (self._keys, self._copies, self._near)
            )
        self._alike = {}
        for number in range(len(self._keys)):
            self._enter(number)


def _exact_hash(document: Document) -> int:
    digest = xxhash.xxh3_64(document.text.encode("utf-8"))
    for message in document.messages:
        digest.update(f"\0{message.role}\0{message.content}".encode())
    return digest.intdigest()


def _mixed(values: np.ndarray) -> np.ndarray:
    """Returns hashes of uint64 values: the finaliser of SplitMix64 (Steele and others, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# A word is a run of ASCII letters and digits and of letters of two bytes in UTF-8. A character of three or four bytes
# is a word by itself, since Chinese and Japanese put no space between words.
_LETTER = np.asarray([byte >= 0x80 or chr(byte).isalnum() for byte in range(256)])
_OF_BYTE = np.where(_LETTER, _mixed(np.arange(1, 257, dtype=np.uint64)), np.uint64(0))
_OF_PLACE = _mixed(np.arange(1001, 1065, dtype=np.uint64)) | np.uint64(1)
_OF_WORD = _mixed(np.arange(2001, 2001 + _RUN, dtype=np.uint64)) | np.uint64(1)


def _words(document: Document) -> np.ndarray:
    """Returns hashes [W] of the words of a document, in lower case and without punctuation marks."""
    text = document.text or "\n".join(message.content for message in document.messages)
    text = np.frombuffer(text[:_CHARACTERS].lower().encode("utf-8"), np.uint8)
    letters = _LETTER[text]
    # Marks of three bytes: U+2000 to U+203F and U+3000 to U+303F (dashes, quotation marks, stops), and U+FF00 to U+FF20
    # without the digits (wide ones).
    first, second, third = text[:-2], text[1:-1], text[2:]
    wide = (first == 0xEF) & (second == 0xBC) & (third <= 0xA0) & ((third < 0x90) | (third > 0x99))
    marks = np.flatnonzero((((first == 0xE2) | (first == 0xE3)) & (second == 0x80)) | wide)
    letters[marks[:, None] + np.arange(3)] = False
    before, last = np.r_[False, letters[:-1]], np.r_[np.uint8(0), text[:-1]]
    begins = letters & (~before | (text >= 0xE0) | ((text < 0x80) & (last >= 0x80)))
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.empty(0, np.uint64)
    place = np.arange(starts[0], len(text)) - np.repeat(starts, np.diff(starts, append=len(text)))
    hashes = _OF_BYTE[text[starts[0] :]] * _OF_PLACE[place & 63] * letters[starts[0] :]
    return np.add.reduceat(hashes, starts - starts[0])


def _sketch(words: np.ndarray) -> np.ndarray:
    """Returns the least hashes [K] of the runs of words, in order; a text shorter than a run is one run."""
    if not len(words):
        return np.full(_K, _NONE)
    size = min(_RUN, len(words))
    runs = sum(words[first : len(words) - size + first + 1] * _OF_WORD[first] for first in range(size))
    # pyrefly: ignore[bad-argument-type]  a sum of arrays
    hashes = _mixed(runs)
    if len(hashes) > 4 * _K:
        # A sort of all hashes would cost more than all the rest; repeated runs are the exception.
        least = np.unique(np.partition(hashes, 4 * _K)[: 4 * _K])
        hashes = least if len(least) >= _K else hashes
    hashes = np.unique(hashes)[:_K]
    return np.concatenate([hashes, np.full(_K - len(hashes), _NONE)])
