"""Several readers of one pass: every batch is read once, and all get it."""

import collections
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def share(batches: Iterable[T], readers: int, ahead: int = 4) -> list[Iterator[T]]:
    """As many iterators over the same batches, one for each reader, usually a thread with a trainer.

    The fastest waits for the slowest once it is `ahead` batches before it, so memory is bounded. A reader that stops
    must `close()` its iterator, or the others wait for it.

    Raises:
      ValueError: for less than one reader or batch ahead. What the source raises, every reader gets.
    """
    if readers < 1 or ahead < 1:
        raise ValueError(f"share needs at least one reader and one batch ahead, got {readers} and {ahead}")
    shared = _Shared(iter(batches), readers, ahead)
    return [shared.reader(i) for i in range(readers)]


class _Shared:
    def __init__(self, source: Iterator, readers: int, ahead: int):
        self._source, self._ahead = source, ahead
        self._waiting: dict[int, collections.deque] = {i: collections.deque() for i in range(readers)}
        self._changed = threading.Condition()
        self._reading = False
        self._end: BaseException | None = None

    def reader(self, number: int) -> Iterator:
        try:
            while True:
                yield self._next(number)
        except StopIteration:
            return
        finally:
            with self._changed:
                del self._waiting[number]
                self._changed.notify_all()

    def _next(self, number: int):
        own = self._waiting[number]
        with self._changed:
            while True:
                if own:
                    self._changed.notify_all()
                    return own.popleft()
                if self._end is not None:
                    raise self._end
                room = all(len(queue) < self._ahead for queue in self._waiting.values())
                if room and not self._reading:
                    self._reading = True
                    break
                self._changed.wait()
        try:
            item, end = next(self._source), None
        except BaseException as error:
            item, end = None, error
        with self._changed:
            self._reading, self._end = False, end
            if end is None:
                for queue in self._waiting.values():
                    queue.append(item)
            self._changed.notify_all()
        return self._next(number)
