"""Items computed ahead in a thread, which ends when its consumer does."""

import gc
import itertools
import queue
import subprocess
import sys
import threading

import pytest

from sae import ahead
from sae.ahead import Ahead


def threads(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def counting(wanted):
    return itertools.takewhile(lambda _: wanted(), itertools.count())


def test_items_come_in_order_and_one_ahead():
    begun = []

    def make(wanted):
        for number in counting(wanted):
            begun.append(number)
            yield number

    with Ahead(make) as items:
        assert list(itertools.islice(items, 4)) == [0, 1, 2, 3]
    assert begun in ([0, 1, 2, 3], [0, 1, 2, 3, 4])


def test_an_error_of_the_thread_is_raised_where_the_item_was_wanted():
    def make(wanted):
        yield 1
        raise ArithmeticError("in the thread")

    items = Ahead(make, name="broken")
    assert next(items) == 1
    with pytest.raises(ArithmeticError, match="in the thread"):
        next(items)
    items.close()
    assert not threads("broken")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_a_thread_that_waits_for_a_buffer_ends_with_its_consumer(error):
    """One buffer, which the consumer holds: what made training from a short stream hang."""
    free = queue.Queue()
    free.put(0)

    def make(wanted):
        while wanted() and (buffer := free.get()) is not None:
            yield buffer

    with pytest.raises(error), Ahead(make, stop=lambda: free.put(None), name="buffers") as items:
        next(items)
        raise error
    for thread in threads("buffers"):
        thread.join(5)
    assert not threads("buffers")


def test_one_that_is_dropped_ends():
    def consumer():
        with Ahead(counting, name="dropped") as items:
            yield from items

    numbers = consumer()
    assert next(numbers) == 0
    del numbers
    gc.collect()
    assert not threads("dropped")


def test_a_program_ends_although_nobody_closed_it():
    """The thread has work for ever. The file by itself, as the package takes seconds to import."""
    program = (
        "import importlib.util, time\n"
        f"spec = importlib.util.spec_from_file_location('ahead', {ahead.__file__!r})\n"
        "ahead = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(ahead)\n"
        "def make(wanted):\n"
        "    yield 1\n"
        "    while wanted():\n"
        "        time.sleep(0.01)\n"
        "items = ahead.Ahead(make)\n"
        "print(next(items))\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (process.returncode, process.stdout, process.stderr) == (0, "1\n", "")


def test_a_consumer_in_a_thread_goes_on_and_its_end_is_the_end():
    got = []

    def consume():
        items = Ahead(counting, name="of a thread")
        got.extend(itertools.islice(items, 3))

    thread = threading.Thread(target=consume)
    thread.start()
    thread.join()
    for left in threads("of a thread"):
        left.join(5)
    assert got == [0, 1, 2] and not threads("of a thread")
