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
    return [_Reader(shared, i) for i in range(readers)]


class _Reader(Iterator[T]):
    """No generator: one that is closed before its first batch runs no `finally`, and the others would wait for it."""

    def __init__(self, shared: "_Shared", number: int):
        self._shared, self._number = shared, number

    def __next__(self) -> T:
        try:
            return self._shared.next(self._number)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops reading; the others go on."""
        self._shared.leave(self._number)

    def __del__(self):
        self.close()


class _Shared:
    def __init__(self, source: Iterator, readers: int, ahead: int):
        self._source, self._ahead = source, ahead
        self._waiting: dict[int, collections.deque] = {i: collections.deque() for i in range(readers)}
        self._changed = threading.Condition()
        self._reading = False
        self._end: BaseException | None = None

    def leave(self, number: int) -> None:
        """Nobody waits for this reader any more."""
        with self._changed:
            self._waiting.pop(number, None)
            self._changed.notify_all()

    def next(self, number: int):
        """The reader's next batch; raises what the source raised."""
        own = self._waiting.get(number)
        if own is None:
            raise StopIteration
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
        return self.next(number)
