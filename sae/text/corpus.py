"""A text on disk, divided into documents to harvest and held-out documents. It is read one document at a time, and
never whole in memory."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sae.text.documents import Document
from sae.text.reading import iter_documents
from sae.text.splitting import SHARE, Split, Survey, survey


class Corpus:
    """The documents to harvest, and the held-out documents. The corpus is read once for its survey, and again by each
    of `harvested` and `held_out`.

    Attributes:
        path: the path of the corpus; None where it is unknown.
        survey: the survey of the corpus.
        held_out_path: the path of held-out documents; None where they are a part of the corpus.
        split: the two sides of the corpus; None where held-out documents have a file of their own.
        held_out_survey: the survey of the held-out documents' file; None without such a file.

    Raises:
        ValueError: as `iter_documents` and `Survey.split` do.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "c.jsonl")
        >>> _ = file.write_text("".join('{"text": "document %d"}\\n' % i for i in range(50)))
        >>> corpus = Corpus(file)
        >>> len(list(corpus.harvested())) + len(list(corpus.held_out()))
        50
    """

    def __init__(
        self,
        path: str | Path | None,
        held_out: str | Path | None = None,
        *,
        share: float = SHARE,
        read: Callable[[str | Path], Iterable[Document]] = iter_documents,
        say: Callable[[str], object] = lambda line: None,
    ):
        """Reads the corpus once.

        Args:
            path: the path of the corpus, for `iter_documents`. None where it is unknown: held-out documents are then
                not compared with it.
            held_out: the path of held-out documents; by default a part of the corpus is held out, by a hash of each
                document's text.
            share: the part of the corpus that is held out, in expectation.
            read: reads documents in place of `iter_documents`.
            say: called with a line of text on special cases, such as a document that is cut in two.
        """
        if path is None and held_out is None:
            raise ValueError("a corpus or held-out documents have to be named, got neither")
        self.path, self.held_out_path, self._read, self._say = path, held_out, read, say
        self.survey: Survey = survey(() if path is None else read(path))
        self.split: Split | None = None if held_out is not None else self.survey.split(share)
        if self.split is not None and self.split.note:
            say(self.split.note)

    @functools.cached_property
    def held_out_survey(self) -> Survey | None:
        """The survey of the held-out documents' file, which is read once."""
        return None if self.held_out_path is None else survey(self._read(self.held_out_path))

    @property
    def divided(self) -> bool:
        """Whether a document is cut in two, with a part on either side."""
        return self.split is not None and "divided" in self.split.sides.values()

    def harvested(self) -> Iterator[Document]:
        """Returns the documents to harvest."""
        if self.path is None:
            raise ValueError("the path of the corpus is unknown, so nothing can be harvested: give it")
        documents = self._read(self.path)
        return iter(documents) if self.split is None else self.split.harvested(documents)

    def held_out(self) -> Iterator[Document]:
        """Returns the held-out documents. No text of theirs is harvested.

        Raises (while reading):
            ValueError: for held-out documents that the corpus has all of.
        """
        if self.split is not None:
            # pyrefly: ignore[bad-argument-type]  not None here
            return self.split.held_out(self._read(self.path))
        # pyrefly: ignore[bad-argument-type]  not None here
        return self._elsewhere(self._read(self.held_out_path))

    def _elsewhere(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents that the corpus lacks."""
        count = repeated = 0
        for document in documents:
            count += 1
            if document in self.survey:
                repeated += 1
            else:
                yield document
        if repeated == count:
            raise ValueError(
                f"all documents of {self.held_out_path} ({count:,}) are in {self.path} too, so nothing is held out: "
                "name held-out text that is not harvested, or none, for a tenth of the corpus"
            )
        if repeated:
            self._say(f"{repeated:,} of {count:,} documents of {self.held_out_path} are in {self.path} too: left out")
