"""An iterator whose items a thread computes one ahead; the thread ends when its consumer does."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Iterator[T], Generic[T]):
    """An iterator: while one item is used, a thread computes the next. `next` raises the errors of the thread.

    It is a context manager. Left by an `Exception` or without one, it waits for the thread. Left by KeyboardInterrupt
    or the like, it only tells the thread to end, so that a run can save its state at once.

    Args:
        make: returns the iterator. It is called with `wanted`, a function that says whether the items are still wanted.
            The iterator calls it often, and ends when it returns False: after `close`, and when the thread that used
            the items has ended, as the main thread has when the program ends.
        stop: called once when the items are wanted no more, to end any wait of the iterator.
        name: the thread's name.

    Example:
        >>> with Ahead(lambda wanted: iter("ab")) as letters:
        ...     list(letters)
        ['a', 'b']
    """

    def __init__(
        self,
        make: Callable[[Callable[[], bool]], Iterator[T]],
        stop: Callable[[], None] = lambda: None,
        name: str = "ahead",
    ):
        self._wanted, self._stop, self._name = _Wanted(), stop, name
        self._items = make(self._wanted)
        self._begin()

    def _begin(self) -> None:
        self._wanted.consumer = threading.current_thread()
        # A thread for each item: a thread that waits for requests would have to be told of the program's end.
        self._coming: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._thread = threading.Thread(target=_compute, args=(self._items, self._coming), name=self._name)
        self._thread.start()

    def __next__(self) -> T:
        item = self._coming.result()
        self._begin()
        return item

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(self, kind, *_) -> None:
        self.close(wait=kind is None or issubclass(kind, (Exception, GeneratorExit)))

    def close(self, wait: bool = True) -> None:
        """Ends the thread, and by default waits until it has ended."""
        if not self._wanted.closed:
            self._wanted.closed = True
            self._stop()
        if wait:
            self._thread.join()


class _Wanted:
    """Says whether the items are wanted. The thread refers to this object and not to `Ahead`, so that an `Ahead` which
    is dropped can be closed."""

    def __init__(self):
        self.closed = False
        self.consumer = threading.current_thread()

    def __call__(self) -> bool:
        return not self.closed and self.consumer.is_alive()


def _compute(items: Iterator[T], coming: concurrent.futures.Future) -> None:
    try:
        item = next(items)
    except BaseException as error:
        coming.set_exception(error)
    else:
        coming.set_result(item)
