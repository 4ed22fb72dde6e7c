"""The record of the model and the text of a training. `sae.evaluation.matching` compares it with a model and a text."""

import dataclasses

from sae.fields import check_fields, of_json
from sae.text.origin import Origin


@dataclasses.dataclass(frozen=True)
class Record:
    """A part of an autoencoder's `Info`: the model and the text of its training. Unknown fields are None.

    Attributes:
        model_fingerprint: `model.fingerprint`, of parameters and config. None in records of earlier versions and of
            autoencoders trained on a store of format 2 or 3.
        corpus_sha256: `Sequences.fingerprint` of the harvested token sequences.
        tokenizer_sha256: `Tokenizer.sha256`.
        parameters_dtype: the dtype of the parameters that were hashed.
        origin: how the text was cut, and its source.
        model_sha256: where the fingerprint is missing: a hash of the model's parameters alone, as earlier versions have
            it.
    """

    model_fingerprint: str | None = None
    corpus_sha256: str | None = None
    tokenizer_sha256: str | None = None
    parameters_dtype: str | None = None
    origin: Origin | None = None
    model_sha256: str | None = None

    def __post_init__(self):
        if isinstance(self.origin, dict):  # as JSON has it
            object.__setattr__(self, "origin", of_json(Origin, self.origin))
        if not isinstance(self.origin, Origin | None):
            raise ValueError(f"Record: origin is a sae.text.Origin, or None; got {self.origin!r:.60}")
        check_fields(self, [field.name for field in dataclasses.fields(self) if field.name != "origin"])
