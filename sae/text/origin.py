"""Where token sequences come from: a note that travels from the text to the store and to the autoencoder.

It decides no row, so stores whose notes differ are the same store. It lets evaluation find the text again.
"""

import dataclasses

from sae.fields import check_fields

SHIPPED = "shipped"  # the text that comes with gemma2-tiny, as `Origin.corpus`


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a text was cut, which `cut` fills in, and where it is from, which whoever reads the documents may add.

    Attributes:
      length: tokens of a sequence, BOS included.
      packed: whether documents lie one after another in a sequence.
      only_model_turns: whether all but the model's turns of chats is left out.
      corpus: the file or folder of the documents, as it was named; `SHIPPED`; None where nobody has said.
      held_out: the file or folder of the held-out documents; None where they are a share of the corpus, or unknown.
      documents_sha256: of the corpus (`splitting.Survey.digest`); None where nobody has computed it.
      held_out_sha256: the same of the held-out documents; None where they have no file, or nobody has computed it.
      model: what `gemma.load` was given; None where nobody has said.
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
