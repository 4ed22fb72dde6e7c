"""The rows of segments, straight from the model: what harvesting writes and streaming trains on.

While the device computes a batch, the one before it is copied to the host, and a segment before that is written or
used: two segments are in memory, in buffers that are used again.
"""

import dataclasses
import functools
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import gemma
from gemma.sharding import batch_sharding
from sae.capturing import activations_at
from sae.store.manifest import Manifest
from sae.text import Sequences, batch_at, segment

BATCH = 16
BUFFERS = 2
# Of the memory allowed, what is left for batches on their way, shards being written and what malloc keeps of both, as
# measured (experiments/benchmarks/store_cost.py); three quarters of it, where it is little.
WORKING_BYTES = 384 << 20


@dataclasses.dataclass(frozen=True)
class Filled:
    """The rows of a segment, in the order of its sequences.

    Attributes:
      index: its number.
      activations: site -> [rows, A] float32, views of a buffer.
      rows: `token`, `position` and `document` of every row, [rows] int32.
      release: gives the buffer back; the activations are overwritten afterwards.
    """

    index: int
    activations: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    release: Callable[[], None]


def sequences_in(bytes_in_memory: int, rows: int, length: int, sites: dict[str, tuple[int, ...]]) -> int:
    """How many sequences make a segment of so many rows at most, so that harvesting takes no more than the bytes.

    Raises:
      ValueError: when not even one sequence fits.
    """
    row_bytes = 4 * sum(int(np.prod(shape)) for shape in sites.values())
    working = min(WORKING_BYTES, bytes_in_memory // 4 * 3)
    fit = (bytes_in_memory - working) // (BUFFERS * row_bytes * (length - 1))
    if fit < 1:
        needed = 4 * BUFFERS * row_bytes * (length - 1)
        raise ValueError(
            f"shuffling in {bytes_in_memory:,} bytes has no room for one sequence: {length - 1} rows of {row_bytes:,} "
            f"bytes, {BUFFERS} times, and thrice as much to work. Give {needed:,} bytes at least, or fewer sites"
        )
    sequences = max(1, min(fit, -(-rows // (length - 1))))
    # Whole batches, as one that is mostly padding costs as much as a full one.
    return sequences if sequences < BATCH else sequences // BATCH * BATCH


def filled_segments(
    model: gemma.Model,
    sequences: Sequences,
    manifest: Manifest,
    indices: Sequence[int],
    *,
    mesh: Mesh | None = None,
    buffers: "Buffers | None" = None,
    started: Callable[[int], None] = lambda index: None,
    progress: Callable[..., Iterable] = lambda steps, **_: steps,
) -> Iterator[Filled]:
    """Computes segments, one after another. A segment depends on the arguments and its number alone.

    Args:
      started: called with a segment's number before any of it is computed.
      mesh: where given, a batch is spread over its `data` axis.
      buffers: to use again those of a call before.
      progress: called with the batches to come, and `total` and `desc`, as tqdm is.
    """
    batch = BATCH if mesh is None else -(-BATCH // mesh.shape["data"]) * mesh.shape["data"]
    place = jnp.asarray if mesh is None else functools.partial(jax.device_put, device=batch_sharding(mesh))
    sites = tuple(manifest.sites)
    # On CPU, collectives of steps in flight can starve each other of threads.
    in_order = mesh is not None and jax.default_backend() == "cpu"
    buffers = buffers or Buffers(manifest)
    size = manifest.sequences_per_segment
    batches = {index: -(-min(size, len(sequences) - index * size) // batch) for index in indices}
    steps = ((index, number) for index in indices for number in range(batches[index]))
    part = running = None
    for index, number in progress(steps, total=sum(batches.values()), desc="harvest"):
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
        if running is not None and (done := buffers.take(*running)):
            yield done
        running = (index, part, start, min(start + batch, len(part)), captured)
    if running is not None and (done := buffers.take(*running)):
        yield done


class Buffers:
    """Memory for two segments, and the rows of the one that is coming in, batch by batch."""

    def __init__(self, manifest: Manifest):
        self._manifest = manifest
        rows = min(manifest.sequences_per_segment, manifest.sequences) * (manifest.length - 1)
        self._free: queue.Queue[dict[str, np.ndarray]] = queue.Queue()
        for _ in range(min(BUFFERS, manifest.segments)):
            # Empty pages cost nothing until they are written.
            self._free.put(
                {site: np.empty((rows, int(np.prod(shape))), np.float32) for site, shape in manifest.sites.items()}
            )
        self._buffer: dict[str, np.ndarray] | None = None
        self._count = 0
        self._fields: list[dict[str, np.ndarray]] = []

    def take(self, index: int, part: Sequences, start: int, stop: int, captured: dict) -> Filled | None:
        """The text rows of a batch; the segment, once it has all of them."""
        if self._buffer is None:
            self._buffer = self._free.get()  # waits until a segment before is done with
        taken = part.take(slice(start, stop))
        keep = taken.text(self._manifest.dropped_tokens)
        count = int(keep.sum())
        rows = np.flatnonzero(keep)
        for site, values in captured.items():
            out = self._buffer[site][self._count : self._count + count]
            # mode="clip" is far faster than a mask: it moves whole rows.
            np.take(np.asarray(values).reshape(-1, out.shape[1]), rows, axis=0, out=out, mode="clip")
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
