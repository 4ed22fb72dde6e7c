"""How fast a run goes: tokens a second, the time that it waits for data, its share of the devices' peak."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax

from sae.runs import Run
from sae.trainer import devices


@dataclasses.dataclass(frozen=True)
class Rates:
    """How fast a run went since the record before.

    Attributes:
      tokens_per_second: each token counts once, however many autoencoders are trained on it.
      input_wait: the share of the time in which the run waited for data.
      share_of_peak: of the devices' floating-point operations a second; None where their peak is not known.
    """

    tokens_per_second: float
    input_wait: float
    share_of_peak: float | None


class Speedometer:
    """Measures how fast a run goes, without waiting for the device more than a step at a time.

    Attributes:
      steps: how many steps were measured, up to the last call of `since_last`.
      waited: the seconds in them in which the run waited for data.
    """

    def __init__(self, run: Run, flops: float, device: jax.Device):
        """Starts the clock.

        Args:
          run: one of the runs, for the tokens of a step and the precision of its products.
          flops: operations of a step of all runs, on one device (`Estimate.flops`).
          device: one of the mesh.
        """
        self.steps, self.waited = 0, 0.0
        self._tokens, self._device = run.batch_size, device
        self._flops = flops * devices.passes(run, device)
        self._last = None
        self._began, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the wait for the next batch. While the device still works on the last step, it is no wait."""
        began = time.perf_counter()
        yield
        if self._last is None or self._last.is_ready():
            self._waited += time.perf_counter() - began

    def count_step(self, result: jax.Array) -> None:
        """Counts a step that was begun, and waits for the one before it, so that no more than two are under way.

        Args:
          result: an array that is ready when the step is made.
        """
        if self._last is not None:
            self._last.block_until_ready()
        self._last = result
        self._steps += 1

    def since_last(self) -> Rates:
        """Returns the rates since the last call of this method, or since the start."""
        now = time.perf_counter()
        seconds, steps = max(now - self._began, 1e-9), self._steps
        peak = devices.peak_flops(self._device)
        rates = Rates(
            steps * self._tokens / seconds,
            self._waited / seconds,
            None if peak is None else steps * self._flops / seconds / peak,
        )
        self.steps, self.waited = self.steps + steps, self.waited + self._waited
        self._began, self._waited, self._steps = now, 0.0, 0
        return rates
