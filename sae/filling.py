"""The rows of segments, straight from the model. Harvesting writes them, streaming trains on them.

While the device computes a batch, the batch before it is copied to the host, and the segment before it is written or
used: two segments are in memory, in buffers that are used again.
"""

import dataclasses
import functools
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sae.capturing import activations_at
from sae.language_model import LanguageModel
from sae.sharding import batch_sharding, rounded_up
from sae.store.manifest import Manifest
from sae.text import Sequences, batch_at, segment

BATCH = 16
BUFFERS = 2
# The part of the allowed memory for batches on their way, shards being written and what malloc keeps of both, as
# measured (experiments/benchmarks/store_cost.py); at most three quarters of the allowed memory.
WORKING_BYTES = 384 << 20


@dataclasses.dataclass(frozen=True)
class Filled:
    """The rows of a segment, in the order of its sequences.

    Attributes:
        index: the segment's index.
        activations: {site: [rows, A]} in the model's dtype, views of a buffer.
        rows: `token`, `position` and `document` of every row, int32 [rows] each.
        release: gives the buffer back, after which the activations are overwritten.
    """

    index: int
    activations: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    release: Callable[[], None]


def sequences_in(bytes_in_memory: int, rows: int, length: int, sites: dict[str, tuple[int, ...]]) -> int:
    """Returns the number of sequences of a segment, so that harvesting takes no more memory than allowed.

    Numbers count as float32 in every dtype of the model: with bfloat16 half of the bytes are enough, and segments of
    both dtypes have the same sequences.

    Args:
        bytes_in_memory: the allowed memory.
        rows: the most rows of a segment.
        length: T, tokens of a sequence.
        sites: {site: shape of one token's activation}.

    Raises:
        ValueError: where not even one sequence fits.
    """
    row_bytes = 4 * sum(int(np.prod(shape)) for shape in sites.values())
    working = min(WORKING_BYTES, bytes_in_memory // 4 * 3)
    fit = (bytes_in_memory - working) // (BUFFERS * row_bytes * (length - 1))
    if fit < 1:
        needed = 4 * BUFFERS * row_bytes * (length - 1)
        raise ValueError(
            f"shuffling in {bytes_in_memory:,} bytes has no room for one sequence: {length - 1} rows of {row_bytes:,} "
            f"bytes, {BUFFERS} times, and three times as much to work. Give at least {needed:,} bytes, or fewer sites"
        )
    sequences = max(1, min(fit, -(-rows // (length - 1))))
    # Whole batches, as a batch of mostly padding costs as much as a full one.
    return sequences if sequences < BATCH else sequences // BATCH * BATCH


def filled_segments(
    model: LanguageModel,
    sequences: Sequences,
    manifest: Manifest,
    indices: Sequence[int],
    *,
    mesh: Mesh | None = None,
    buffers: "Buffers | None" = None,
    started: Callable[[int], Any] = lambda index: None,
    progress: Callable[..., Iterable] = lambda steps, **_: steps,
) -> Iterator[Filled]:
    """Computes segments, one after another. A segment depends on the arguments and its index alone.

    Args:
        model: with its tokenizer.
        sequences: the token sequences.
        manifest: the sites, the seed, and which tokens count.
        indices: the indices of the segments.
        mesh: where given, a batch is spread over its `data` axis.
        buffers: buffers of an earlier call, to use again.
        started: called with a segment's index before its first batch is computed.
        progress: called as tqdm is, with the batches to come, `total` and `desc`.
    """
    batch = rounded_up(BATCH, mesh)
    place = jnp.asarray if mesh is None else functools.partial(jax.device_put, device=batch_sharding(mesh))
    sites = tuple(manifest.sites)
    # On CPU, collectives of steps in flight can starve each other of threads.
    in_order = mesh is not None and jax.default_backend() == "cpu"
    buffers = buffers or Buffers(manifest)
    size = manifest.sequences_per_segment
    batches = {index: -(-min(size, len(sequences) - index * size) // batch) for index in indices}
    steps = ((index, number) for index in indices for number in range(batches[index]))
    part: Any = None
    running = last = None
    for index, number in progress(steps, total=sum(batches.values()), desc="harvest"):
        _check_follows(last, (index, number), batches)
        last = (index, number)
        if number == 0:
            started(index)
            part = segment(sequences, manifest.seed, index, size)
        start = number * batch
        tokens = batch_at(part.tokens, start, batch, model.tokenizer.pad)
        captured = activations_at(model, place(tokens), sites)
        for values in captured.values():
            values.copy_to_host_async()
        if in_order:
            jax.block_until_ready(captured)
        if running is not None and (filled := buffers.take(*running)):
            yield filled
        running = (index, part, start, min(start + batch, len(part)), captured)
    if running is not None and (filled := buffers.take(*running)):
        yield filled
    _check_follows(last, None, batches)


def _check_follows(last: tuple[int, int] | None, step: tuple[int, int] | None, batches: Mapping[int, int]) -> None:
    """Raises ValueError where a progress has left out a batch of a segment, whose rows would be missing.

    Args:
        last: (segment, batch) of the step before; None before the first.
        step: (segment, batch) that the progress gave; None at its end.
        batches: the number of batches of each segment.
    """
    segment_ended = last is None or last[1] + 1 == batches[last[0]]
    right = step is None or step[1] == 0 if segment_ended else step == (last[0], last[1] + 1)
    if not right:
        raise ValueError(
            f"progress gave {step or 'no more'} after {last or 'nothing'} (segment, batch): it has to give every batch "
            "that it was called with, in their order"
        )


class Closed(Exception):
    """The segment that was to be filled is wanted no more."""


class Buffers:
    """Memory for two segments, and the rows of the segment that is being filled, batch by batch.

    Args:
        manifest: the sizes of segments.
        count: the number of segments in memory at once; by default two, or one for a text of a single segment.
    """

    def __init__(self, manifest: Manifest, count: int | None = None):
        self._manifest = manifest
        # With room for BOS, in case it counts: pages that are never written cost nothing.
        self._rows = min(manifest.sequences_per_segment, manifest.sequences) * manifest.length
        self._free: queue.Queue[dict[str, np.ndarray] | None] = queue.Queue()
        for _ in range(count or min(BUFFERS, manifest.segments)):
            self._free.put({})
        self._buffer: dict[str, np.ndarray] | None = None
        self._count = 0
        self._fields: list[dict[str, np.ndarray]] = []

    def close(self) -> None:
        """Ends the wait for a free buffer, now or later, with `Closed`."""
        self._free.put(None)

    def take(self, index: int, part: Sequences, start: int, stop: int, captured: dict) -> Filled | None:
        """Takes the rows of a batch in, and returns the segment once it has all of its rows.

        Raises:
            Closed: where no buffer is free, and `close` was called.
        """
        if self._buffer is None:
            self._buffer = self._free.get()  # waits until an earlier segment is released
            if self._buffer is None:
                self._free.put(None)
                raise Closed
        taken = part.take(slice(start, stop))
        keep = self._manifest.counted.text(taken.tokens, taken.left_out)
        count = int(keep.sum())
        rows = np.flatnonzero(keep)
        for site, values in captured.items():
            values = np.asarray(values)
            values = values.reshape(-1, values.shape[-1])
            if site not in self._buffer:
                # In the model's dtype, so that float32 and bfloat16 are moved once and never converted. Empty pages
                # cost nothing until they are written.
                self._buffer[site] = np.empty((self._rows, values.shape[-1]), values.dtype)
            out = self._buffer[site][self._count : self._count + count]
            # mode="clip" is far faster than a mask: it moves whole rows.
            np.take(values, rows, axis=0, out=out, mode="clip")
        position = np.nonzero(keep)[1].astype(np.int32)
        self._fields.append(
            {"token": taken.tokens[keep], "position": position, "document": taken.document_at()[keep].astype(np.int32)}
        )
        self._count += count
        if stop < len(part):
            return None
        buffer, rows = self._buffer, self._count
        fields = {name: np.concatenate([some[name] for some in self._fields]) for name in self._fields[0]}
        self._buffer, self._count, self._fields = None, 0, []
        views = {site: values[:rows] for site, values in buffer.items()}
        return Filled(index, views, fields, functools.partial(self._free.put, buffer))
