"""Which model and text an autoencoder was trained on. `sae.evaluation.matching` compares it with what is given."""

import dataclasses

from sae.fields import check_fields, of_json
from sae.text.origin import Origin


@dataclasses.dataclass(frozen=True)
class Record:
    """A part of an autoencoder's `Info`.

    Attributes:
      model_fingerprint: of the model's parameters and config (`model.fingerprint`); None where unknown, as in records
        of earlier versions and of autoencoders trained on a store of format 2 or 3.
      corpus_sha256: over the token sequences that were harvested (`Sequences.fingerprint`); None where unknown.
      tokenizer_sha256: of the tokenizer; None where unknown.
      parameters_dtype: of the parameters that were hashed; None where unknown.
      origin: how the text was cut and where it is from; None where nobody has said.
      model_sha256: where there is no fingerprint: over the model's parameters alone, as earlier versions have it; None
        where unknown.
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
