"""A text on disk, and what of it is held out. It is read one document at a time, and never held in memory."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sae.text.documents import Document
from sae.text.reading import iter_documents
from sae.text.splitting import SHARE, Split, Survey, survey


class Corpus:
    """The documents to harvest, and those that are held out. The corpus is read once to find out which these are, and
    again by each of `harvested` and `held_out`.

    Attributes:
      path: of the corpus; None where that is not at hand.
      survey: of the documents of the corpus.
      held_out_path: of the held-out documents' file; None where they are a share of the corpus.
      split: of the corpus; None where held-out documents have a file of their own.
      held_out_survey: of the documents of that file; None where there is none.

    Raises:
      ValueError: what `iter_documents` and `Survey.split` raise.

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
          path: what `iter_documents` reads. None where the corpus is not at hand: held-out documents are then taken as
            they are.
          held_out: held-out documents; by default a share of the corpus, by a hash of each document's text.
          share: what is held out of the corpus, in expectation.
          read: in place of `iter_documents`.
          say: told, in a line, what is worth knowing, such as a document that is cut in two.
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
        """Reads the held-out documents' file once."""
        return None if self.held_out_path is None else survey(self._read(self.held_out_path))

    @property
    def divided(self) -> bool:
        """Whether a document lies on both sides."""
        return self.split is not None and "divided" in self.split.sides.values()

    def harvested(self) -> Iterator[Document]:
        """The documents to harvest."""
        if self.path is None:
            raise ValueError("the corpus is not at hand, so there is nothing to harvest")
        documents = self._read(self.path)
        return iter(documents) if self.split is None else self.split.harvested(documents)

    def held_out(self) -> Iterator[Document]:
        """The held-out documents: none of them, and no text of them, is to be harvested.

        Raises (while reading):
          ValueError: for held-out documents that the corpus has all of.
        """
        if self.split is not None:
            # pyrefly: ignore[bad-argument-type]  not None here
            return self.split.held_out(self._read(self.path))
        # pyrefly: ignore[bad-argument-type]  not None here
        return self._elsewhere(self._read(self.held_out_path))

    def _elsewhere(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Those that the corpus does not have."""
        count = repeated = 0
        for document in documents:
            count += 1
            if document in self.survey:
                repeated += 1
            else:
                yield document
        if repeated == count:
            raise ValueError(
                f"each of the {count:,} documents of {self.held_out_path} is in {self.path} too, so nothing is held "
                "out: name held-out text that is not harvested, or none, for a tenth of the corpus"
            )
        if repeated:
            self._say(f"{repeated:,} of {count:,} documents of {self.held_out_path} are in {self.path} too: left out")
