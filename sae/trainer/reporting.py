"""Telling others how a run goes: what a report is, all reports of a run, and the text beside a progress bar.

The reports for TensorBoard and Weights & Biases are in `trackers.py`.
"""

import abc
import copy
import warnings
from collections.abc import Sequence

import jax

from sae import showing
from sae.progress import Labelled
from sae.runs import Run
from sae.trainer.complaints import TrainingWarning
from sae.trainer.speed import Rates


class Report(abc.ABC):
    """Base of what `sae.train` tells of its records, as soon as it has them.

    A subclass has the method `record`, and `begin` and `close` where it needs them.

    Example:
      >>> class Losses(sae.Report):
      ...     def record(self, records, rates):
      ...         print([round(record["loss"], 3) for record in records])
      >>> Losses().record([{"loss": 0.25}, {"loss": 0.5}], rates=None)
      [0.25, 0.5]
    """

    def begin(self, runs: Sequence[Run]) -> None:  # noqa: B027, nothing by default
        """Is called before the first record, with the runs in the order of the records' `run`."""

    @abc.abstractmethod
    def record(self, records: Sequence[dict], rates: Rates) -> None:
        """Is called with the records of all runs at one step.

        Args:
          records: one of each run, as in the history that `sae.train` returns.
          rates: how fast the runs went since the records before.
        """

    def close(self) -> None:  # noqa: B027, nothing by default
        """Is called when training ends, however it ends."""


def check_reports(reports: Sequence[Report]) -> None:
    """Raises ValueError for an object that is no `Report`."""
    for report in reports:
        if not isinstance(report, Report):
            raise ValueError(f"reports are objects of subclasses of sae.Report, got {showing.kind(report)}")


class BarText(Report):
    """Shows L0, FVU, dead latents and waiting beside a progress bar, which whoever made it closes.

    Args:
      bar: a bar of tqdm, or another.
    """

    def __init__(self, bar: Labelled):
        self._bar = bar

    def record(self, records: Sequence[dict], rates: Rates) -> None:
        self._bar.set_postfix_str(in_words(records, rates), refresh=False)


def in_words(records: Sequence[dict], rates: Rates) -> str:
    """Returns the metrics of the runs at one step in words, of several runs from the least to the greatest.

    Args:
      records: one of each run.
      rates: as for `Report.record`.

    Example:
      >>> in_words([{"l0": 20.13, "fvu": 0.1239, "dead": 3}], Rates(1e5, 0.02, None))
      'L0 20.1, FVU 0.124, dead 3, waiting 2%'
    """
    parts = []
    for word, name, form in (("L0", "l0", "{:.1f}"), ("FVU", "fvu", "{:.3f}"), ("dead", "dead", "{}")):
        values = [record[name] for record in records]
        ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
        parts.append(f"{word} {'-'.join(ends)}")
    return ", ".join([*parts, f"waiting {rates.input_wait:.0%}"])


class Reports:
    """All reports of a run; a context manager that closes them. Of several processes the first alone has reports.

    A report that fails ends the run, whose checkpoints are kept. Once all steps are made and no checkpoint has them, it
    is a warning, since an error would lose the autoencoders.

    Args:
      reports: the user's.
      saved: whether the run has checkpoints.
    """

    def __init__(self, reports: Sequence[Report], saved: bool):
        self._reports = list(reports) if jax.process_index() == 0 else []
        self._saved, self._ended = saved, False

    def __enter__(self) -> "Reports":
        return self

    def begin(self, runs: Sequence[Run]) -> None:
        """Tells every report the runs."""
        for report in self._reports:
            report.begin(runs)

    def append(self, report: Report) -> None:
        """Adds a report, which is told of the records from now on."""
        self._reports.append(report)

    def record(self, records: Sequence[dict], rates: Rates, ended: bool) -> None:
        """Tells every report the records of a step.

        Args:
          records: one of each run.
          rates: as for `Report.record`.
          ended: whether this is the last step.
        """
        self._ended = ended
        for report in self._reports:
            try:
                report.record(copy.deepcopy(records), rates)  # the run's own go to its history and checkpoints
            except Exception as error:
                self._fail(report, error)

    def __exit__(self, kind, error: BaseException | None, _) -> None:
        """Closes every report, also where one fails. An error that has ended the run before stays the error."""
        failure = None
        for report in self._reports:
            try:
                report.close()
            except Exception as of_report:
                if error is not None:
                    error.add_note(f"Closing {type(report).__name__} failed as well: {of_report!r}")
                elif failure is None:
                    failure = (report, of_report)
        if failure is not None:
            self._fail(*failure)

    def _fail(self, report: Report, error: Exception) -> None:
        if self._saved or not self._ended:
            raise error
        text = f"all steps are made, but {type(report).__name__} failed at the end: {error!r}"
        warnings.warn(text, TrainingWarning, stacklevel=4)
