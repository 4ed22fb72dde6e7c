"""The text that comes with this package, for tries without a text of one's own: sixteen chapters of the King James
Version (1611, public domain). They are held out of the training text of the shipped model."""

from pathlib import Path

from sae.language_model import LanguageModel, check_tokenizer
from sae.text.cutting import cut
from sae.text.reading import read_documents
from sae.text.sequences import Sequences

SAMPLE = "the text that comes with sae, 16 chapters of the King James Version"


def sample(model: LanguageModel, length: int = 128) -> Sequences:
    """Returns the text that comes with this package, cut for a model.

    Args:
        model: with its tokenizer.
        length: T, tokens of a sequence, BOS included.

    Raises:
        ValueError: for a model without a tokenizer.

    Example:
        >>> import gemma
        >>> len(sample(gemma.load("gemma2-tiny")).documents)
        16
    """
    check_tokenizer(model)
    return cut(read_documents(Path(__file__).with_name("sample.jsonl")), model.tokenizer, length)
