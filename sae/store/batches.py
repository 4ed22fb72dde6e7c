"""The batches of a store: rows are read far ahead of their use, in large runs; a thread joins and places them."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from sae.store import order
from sae.store.codec import Codec, take
from sae.store.manifest import ROW_FIELDS, segment_name
from sae.store.order import Block, Pass, Run
from sae.store.places import Place
from sae.store.source import Batches

READ_BYTES = 5 << 20  # about the bytes of a site that one lane gives to the steps of one read
READS_AHEAD = 2  # reads of all lanes that are under way or waiting to be used


@dataclasses.dataclass(frozen=True)
class Read:
    """Steps of an epoch whose rows are read together."""

    plan: Pass
    step: int
    steps: int


class Segments(Protocol):
    """The source of the batches: an `ActivationStore`.

    Attributes:
        place: the folder or the bucket.
        sites: the names of the sites.
        codec: the codec that keeps the rows.
        growing: whether segments are still being added.
        segments: (index, rows) of each segment.
    """

    place: Place
    codec: Codec
    growing: bool
    segments: tuple[tuple[int, int], ...]

    @property
    def sites(self) -> tuple[str, ...]: ...

    def width(self, site: str) -> int:
        """Returns A, the length of a row of a site."""

    def read(self, name: str, segment: int, start: int, stop: int) -> dict:
        """Begins to read rows of a segment, and returns futures of their stored arrays by suffix."""

    def reopened(self) -> "Segments":
        """Returns the same store with the segments that exist now."""


class StoreBatches(Batches):
    """Iterates over {name: float32 [B, A], or int32 [B] for a row field}. `ActivationStore.batches` makes one.

    Attributes:
        step: the step of the next batch.
        passes: the segments that the epochs have gone over so far; a checkpoint of a run on a growing store keeps it.
    """

    def __init__(
        self,
        store: Segments,
        batch_size: int,
        names: tuple[str, ...],
        seed: int,
        start_step: int,
        sharding: jax.sharding.NamedSharding | None,
        passes: Sequence[Pass],
    ):
        block = order.block_rows(max(map(store.width, store.sites)))
        self.passes = list(passes) or [Pass(0, 0, store.segments, block)]
        self.step = start_step
        loader = _Loader(store, batch_size, names, seed, sharding)
        self._iterator = _ahead(loader, self.passes, start_step)

    def __next__(self) -> dict[str, np.ndarray | jax.Array]:
        batch = next(self._iterator)
        self.step += 1
        return batch

    def close(self) -> None:
        """Stops reading ahead."""
        # pyrefly: ignore[missing-attribute]  a generator
        self._iterator.close()


def _ahead(loader: "_Loader", passes: list[Pass], step: int) -> Iterator[dict]:
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(1, "batches") as pool:
        try:
            while True:
                while len(pending) < READS_AHEAD:
                    read = loader.next_read(passes, step)
                    pending.append(pool.submit(loader.finish, read, loader.begin(read)))
                    step += read.steps
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Loader:
    """The settings that all reads of one iteration have in common."""

    def __init__(self, store, batch_size, names, seed, sharding):
        self._store, self._batch_size, self._names, self._seed = store, batch_size, names, seed
        self._sharding = sharding
        field = lambda stored, out, rows: take(stored[""], out, rows)  # noqa: E731
        self._decoders = {name: field if name in ROW_FIELDS else store.codec.decode for name in names}
        lanes = order.lanes_for(batch_size)
        self._share = batch_size // lanes
        self._lanes = range(lanes) if sharding is None else _own_lanes(sharding, batch_size, self._share)
        self._whole = len(self._lanes) == lanes
        widest = max([1, *(store.width(name) for name in names if name not in ROW_FIELDS)])
        self._last: dict[int, tuple] = {}
        self._steps = max(1, READ_BYTES // (4 * widest * self._share))

    def next_read(self, passes: list[Pass], step: int) -> Read:
        """Returns the read with `step`; new segments of a growing store join where an epoch begins."""
        plan = [p for p in passes if p.first_step <= step][-1]
        per_pass = order.steps_per_pass(plan.rows, self._batch_size)
        number, index = divmod(step - plan.first_step, per_pass)
        if index == 0 and number and plan is passes[-1]:
            # A store whose harvest has ended since the passes began is opened as a store that does not grow.
            segments = (self._store.reopened() if self._store.growing else self._store).segments
            if segments != plan.segments:
                plan = Pass(step, plan.number + number, segments, plan.block)
                passes.append(plan)
                per_pass = order.steps_per_pass(plan.rows, self._batch_size)
        # Reads begin at multiples of their size, so that a reader that starts late makes the same ones.
        return Read(plan, step, min(self._steps - index % self._steps, per_pass - index))

    def begin(self, read: Read) -> dict[int, list[tuple[Run, dict]]]:
        """Begins a read, and returns {lane: its runs, each with the futures of its block}."""
        return {
            lane: [
                (run, self._begin(lane, run.block))
                for run in order.runs(read.plan, self._batch_size, self._seed, read.step, read.steps, lane)
            ]
            for lane in self._lanes
        }

    def _begin(self, lane: int, block: Block) -> dict:
        """Begins to read a block whole, and only once: its lane keeps it until its runs have used it up."""
        if self._last.get(lane, (None,))[0] != block:
            try:
                futures = {name: self._store.read(name, *block) for name in self._names}
            except ValueError as error:
                raise self._damaged(block, error) from error
            self._last[lane] = (block, futures)
        return self._last[lane][1]

    def finish(self, read: Read, begun: dict[int, list[tuple[Run, dict]]]) -> list[dict]:
        """Returns the batches of a read."""
        whole = {}
        for name in self._names:
            row = () if name in ROW_FIELDS else (self._store.width(name),)
            dtype = np.int32 if name in ROW_FIELDS else np.float32
            whole[name] = np.empty((read.steps, len(self._lanes), self._share, *row), dtype)
        for place, lane in enumerate(self._lanes):
            filled = 0
            for run, futures in begun[lane]:
                for name, parts in futures.items():
                    try:
                        stored = {suffix: part.result() for suffix, part in parts.items()}
                    except ValueError as error:
                        raise self._damaged(run.block, error) from error
                    _put(whole[name][:, place], filled, self._decoders[name], stored, run.rows)
                filled += len(run.rows)
        return [self._placed({name: values[step] for name, values in whole.items()}) for step in range(read.steps)]

    def _placed(self, batch: dict[str, np.ndarray]) -> dict:
        """Returns this process's rows [lanes, share, …] as placed batches [B, …]."""
        joined = {name: values.reshape(-1, *values.shape[2:]) for name, values in batch.items()}
        if self._sharding is None:
            return joined
        if self._whole:
            return {name: jax.device_put(values, self._sharding) for name, values in joined.items()}
        first = self._lanes[0] * self._share
        return {name: self._from_own_rows(values, first) for name, values in joined.items()}

    def _from_own_rows(self, values: np.ndarray, first: int) -> jax.Array:
        def part(index):
            start, stop, _ = index[0].indices(self._batch_size)
            return values[start - first : stop - first]

        return jax.make_array_from_callback((self._batch_size, *values.shape[1:]), self._sharding, part)

    def _damaged(self, block: Block, error: Exception) -> ValueError:
        return ValueError(
            f"{self._store.place}/{segment_name(block.segment)} is damaged, in rows {block.start} to {block.stop}: "
            f"{error}\n"
            "experiments.inspect_store --verify names all that is damaged, --repair harvests those segments again"
        )


def _put(out: np.ndarray, start: int, decode: Callable, stored: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
    """Decodes rows of a block, by their indices, into a lane's [steps, share, …], from the lane's row `start` on."""
    share = out.shape[1]
    count = 0
    while count < len(rows):
        step, offset = divmod(start + count, share)
        some = rows[count : count + share - offset]
        decode(stored, out[step, offset : offset + len(some)], some)
        count += len(some)


def _own_lanes(sharding: jax.sharding.NamedSharding, batch_size: int, share: int) -> range:
    """Returns the lanes with rows of this process's devices."""
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    # pyrefly: ignore[unsupported-operation]  not None here
    spans = [part[0].indices(batch_size)[:2] for part in parts]
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    return range(first // share, -(-last // share))
