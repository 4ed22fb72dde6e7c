"""What an evaluation suite is, and the registry of suites. One file in this folder, or anywhere else, adds one.

`sae.evaluate` makes one pass over the text. Each suite that was named sees every batch, for each autoencoder.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from sae.discovery import import_all
from sae.language_model import LanguageModel
from sae.registry import Registry
from sae.released import Released

Sums = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A batch of sequences, for one autoencoder. Axis letters: B sequences, T tokens, A dim of the activation.

    Attributes:
        model: the language model.
        autoencoder: without `info`, where the model's parameters are.
        tokens: int32 [B, T].
        text: bool [B, T], the tokens that count, on the host.
        inputs: [B, T, A] of each site that the autoencoder reads.
        outputs: [B, T, A] of each site that it reconstructs.
        loss: takes values [B, T, A] for each of `outputs`, and returns the sum of the next-token losses in nats, over
            predictions from tokens that count to tokens that count, with the values in the outputs' places.
        finish: returns its argument; call it with what a compiled program returned, before the next one runs.
    """

    model: LanguageModel
    autoencoder: Released
    tokens: jax.Array
    text: np.ndarray
    inputs: tuple[jax.Array, ...]
    outputs: tuple[jax.Array, ...]
    loss: Callable[[tuple[jax.Array, ...]], np.float64]
    finish: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class About:
    """Facts of the evaluation, for the metrics.

    Attributes:
        site: several sites have + between them.
        rows_are_documents: as in `Metrics`.
    """

    site: str
    rows_are_documents: bool = False


class Suite(abc.ABC):
    """Metrics of an autoencoder, from sums over the batches of a text.

    Attributes:
        baseline: whether `metrics` needs the sums of `Baseline`, which cost two forward passes for each batch.

    Example:
        >>> @suites.register("tokens")
        ... class Tokens(Suite):
        ...     def add(self, batch):
        ...         return {"tokens": batch.text.sum()}
        ...     def metrics(self, sums, about):
        ...         return int(sums["tokens"])
        >>> sae.evaluate(autoencoder, model, sequences, suites=["tokens"])
    """

    baseline: ClassVar[bool] = False

    @abc.abstractmethod
    def add(self, batch: Batch) -> Mapping[str, Any]:
        """Returns what a batch adds to the sums, by name."""

    def merge(self, sums: Sums, new: Mapping[str, Any]) -> Sums:
        """Returns the sums with those of a batch, in float64."""
        return sums | {name: sums.get(name, 0) + np.asarray(part, np.float64) for name, part in new.items()}

    @abc.abstractmethod
    def metrics(self, sums: Sums, about: About) -> Any:
        """Returns the metrics: a frozen dataclass, a dict or a number."""


suites: Registry[type[Suite]] = Registry("evaluation suite")


def suites_of(names: str | list[str] | tuple[str, ...]) -> dict[str, Suite]:
    """Returns the suites of some names, by name.

    Raises:
        ValueError: for no name, and for a name that no suite has.
    """
    import_all("sae.evaluation")
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names:
        raise ValueError(f"name at least one evaluation suite, of {', '.join(suites)}; got none")
    return {name: suites[name]() for name in names}
