"""The origin of token sequences: a note that travels from the text to the store and to the autoencoder.

It decides no row, so stores with different notes are the same store. Evaluation finds the text again by it.
"""

import dataclasses

from sae.fields import check_fields

SHIPPED = "shipped"  # the text that comes with gemma2-tiny, as `Origin.corpus`


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a text was cut, which `cut` fills in, and its source, which the reader of the documents may add. Unknown
    fields are None.

    Attributes:
        length: tokens of a sequence, BOS included.
        packed: whether documents lie one after another in a sequence.
        only_model_turns: whether all but the model's turns of chats is left out.
        corpus: the file or folder of the documents, as the user named it, or `SHIPPED`.
        held_out: the file or folder of the held-out documents; None also where they are a part of the corpus.
        documents_sha256: `splitting.Survey.digest` of the corpus.
        held_out_sha256: the same digest of the held-out documents, where they have a file of their own.
        model: the argument of `gemma.load`.
    """

    length: int
    packed: bool = False
    only_model_turns: bool = False
    corpus: str | None = None
    held_out: str | None = None
    documents_sha256: str | None = None
    held_out_sha256: str | None = None
    model: str | None = None

    def __post_init__(self):
        check_fields(self)
