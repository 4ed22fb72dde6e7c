"""`sae.rows`: anyone's activations, in memory or memory-mapped, as a source that `sae.train` reads.

Batches come in the order of a store with one segment (`sae/store/order.py`): blocks of neighbouring rows in a random
order, the rows of each block shuffled anew, so that a memory-mapped file is read in large runs.

The caller's arrays may change while they are read. Every row therefore gets a check when the source is made
(`row_checks.py`); the fingerprint is over the checks, and a row that no longer has its check ends the run.

Axis letters: R rows, A dim of the activation, its axes joined.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mishax_lite.promotion import common_dtype
from sae import showing
from sae.ahead import Ahead
from sae.counted import Counted
from sae.language_model import LanguageModel, check_tokenizer
from sae.parameters import parameters_dtype
from sae.progress import Progress, chosen
from sae.sites import dim, token_site
from sae.store import order, row_checks
from sae.store.manifest import ROW_FIELDS, Manifest
from sae.store.moments import Moments
from sae.store.order import Pass
from sae.store.source import Generated, Source

STATISTICS = 2**18  # the most rows that statistics are over
NOBODY = "unknown"  # the name of an unknown model


def rows(
    arrays: Mapping[str, Float[jax.Array | np.ndarray, "R ..."]],
    *,
    model: LanguageModel | None = None,
    counted: Counted | None = None,
    progress: Progress | bool | None = None,
) -> "Rows":
    """Returns a source for `sae.train` of the caller's own activations: nothing is copied, and memory maps stay files.

    It reads every row once, also of memory maps, at about 2 GB a second where the file is in memory. The source's
    fingerprint is over all bytes, so that a checkpoint refuses any other rows. Rows that change afterwards are an error
    when they are read; a change of rows that no batch takes is not noticed.

    Args:
        arrays: {site: rows [R, A]}, or [R, N, H] of heads, which are joined; raw units, any float dtype, equally many
            rows in one order. Arrays of numpy, memory maps (`numpy.load(..., mmap_mode="r")`), arrays of JAX, and
            tensors on a CPU.
        model: the model of the activations, which the autoencoders record. Without it the names of the sites are free,
            and a later check cannot tell whether a model is the right one.
        counted: the rule of the tokens that have rows, which the autoencoders record. By default all tokens but the
            special ids of the model's tokenizer; without a model all.
        progress: shown while the rows are read; as for `sae.evaluate`.

    Returns:
        A source. Its statistics are over at most 2^18 rows, evenly spread. Autoencoders record the smallest dtype that
        holds the values at every site as that of the activations.

    Raises:
        ValueError: for arrays without rows, with different numbers of rows, of another type than floats, or with values
            that are not finite; with a model, for sites that it lacks or that have another shape.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
        >>> source = sae.rows({"x": x})
        >>> next(source.batches(64))["x"].shape
        (64, 16)
    """
    if not isinstance(arrays, Mapping) or not arrays:
        raise ValueError(f"sae.rows takes a dict {{site: array [rows, A]}}, got {showing.kind(arrays)}")
    if masked := [site for site, array in arrays.items() if isinstance(array, np.ma.MaskedArray)]:
        raise ValueError(f"the rows at {masked[0]} are a masked array: leave the masked rows out")
    values = {site: np.asarray(array) for site, array in arrays.items()}
    for site, array in values.items():
        _check(site, array)
    if len({len(array) for array in values.values()}) > 1:
        lengths = ", ".join(f"{len(array):,} at {site}" for site, array in values.items())
        raise ValueError(f"the sites of a source need the same rows in the same order, got {lengths}")
    if model is not None:
        check_tokenizer(model)
        for site, array in values.items():
            _check_site(site, array.shape[1:], model)
    rule = Counted.or_default(counted, () if model is None else model.tokenizer.special_ids)
    count = len(next(iter(values.values())))
    shapes = {site: array.shape[1:] for site, array in values.items()}
    if model is not None:  # heads may come joined
        shapes = {site: tuple(token_site(model, site).shape) for site in shapes}
    checks = {site: row_checks.of(array, chosen(progress), f"rows at {site}") for site, array in values.items()}
    # One sequence for each row, as the text is unknown.
    manifest = Manifest(
        model=NOBODY if model is None else model.name,
        model_fingerprint=None if model is None else model.fingerprint,
        tokenizer_sha256="" if model is None else model.tokenizer.sha256,
        sites=shapes,
        dtype="float32",
        corpus_sha256=_fingerprint(values, checks),
        sequences=count,
        length=1,
        sequences_per_segment=count,
        seed=0,
        counted=rule,
        activation_dtype=common_dtype(*(array.dtype for array in values.values())).name,
        parameters_dtype=None if model is None else parameters_dtype(model),
    )
    return Rows(values, checks, manifest)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Source):
    """A source of the caller's own rows. `sae.rows` makes one.

    Attributes:
        arrays: {site: [R, *shape]}.
        checks: {site: uint64 [R]}, the check of each row when the source was made (`row_checks.of`).
        manifest: the model and the sites of the rows.
    """

    arrays: Mapping[str, np.ndarray]
    checks: Mapping[str, np.ndarray]
    manifest: Manifest
    kind = "rows"
    batch_order = order.VERSION

    def __repr__(self) -> str:
        widths = ", ".join(str(self.width(site)) for site in self.sites)
        return f"Rows({showing.count(self.rows, 'row')} at {self.manifest.label}, {widths} wide)"

    @property
    def name(self) -> str:
        return "the rows given"

    @property
    def rows(self) -> int:
        """R."""
        return self.manifest.sequences

    def mean_squared_norm(self, site: str) -> float:
        """Returns E||x||^2 over the rows of the statistics, in raw units."""
        return self._statistics(site)["mean_squared_norm"]

    def mean(self, site: str) -> np.ndarray:
        """Returns E[x], float64 [A], in raw units."""
        return np.asarray(self._statistics(site)["mean"])

    def median_norm(self, site: str) -> float:
        """Returns the median of ||x||, in raw units."""
        return self._statistics(site)["median_norm"]

    def sink_limits(self) -> dict[str, float]:
        """Returns {site: norm} of the given rule; no row is left out here."""
        return dict(self.manifest.counted.sink_limits)

    def batches_per_pass(self, batch_size: int) -> int:
        """Returns the number of batches in one epoch, which have every row.

        Raises:
            ValueError: where a batch has more rows than the source.
        """
        if not 1 <= batch_size <= self.rows:
            raise ValueError(f"batch_size must be from 1 to the {self.rows} rows given, got {batch_size}")
        return order.steps_per_pass(self.rows, batch_size)

    def batches(
        self,
        batch_size: int,
        sites: Sequence[str] | None = None,
        seed: int = 0,
        start_step: int = 0,
        *,
        sharding: jax.sharding.NamedSharding | None = None,
        passes: Sequence[Pass] = (),
    ) -> Generated:
        """Returns batches {site: float32 [B, A]} without end, read one ahead. The batch of a step depends on (seed,
        step).

        Raises:
            ValueError: for a site that is missing, a field of rows, or a batch larger than the source; while iterating,
                for a row that has changed, and a row that is not finite in float32.
        """
        names = self.checked_names(batch_size, sites, start_step)
        if fields := [name for name in names if name in ROW_FIELDS]:
            raise ValueError(f"{self.name} have no {fields[0]}: their tokens are unknown")
        return Generated(self._batches(batch_size, names, seed, start_step, sharding))

    def _batches(self, batch_size, names, seed, start_step, sharding) -> Iterator[dict]:
        widest = max(map(self.width, self.sites))
        plan = Pass(0, 0, ((0, self.rows),), order.block_rows(widest))

        def make(wanted: Callable[[], bool]) -> Iterator[dict[str, np.ndarray]]:
            for step in itertools.count(start_step):
                if not wanted():
                    return
                yield self._batch(plan, batch_size, names, seed, step)

        with Ahead(make, name="rows") as coming:
            for batch in coming:
                yield batch if sharding is None else jax.device_put(batch, sharding)

    def _batch(self, plan: Pass, batch_size: int, names: Sequence[str], seed: int, step: int) -> dict[str, np.ndarray]:
        lanes = range(order.lanes_for(batch_size))
        runs = [run for lane in lanes for run in order.runs(plan, batch_size, seed, step, 1, lane)]
        numbers = np.concatenate([run.block.start + run.rows for run in runs])
        batch = {name: self._read(name, numbers) for name in names}
        for name, x in batch.items():
            if not (finite := np.isfinite(x).all(axis=1)).all():
                raise ValueError(f"row {numbers[~finite][0]:,} at {name} is not finite in float32: remove such rows")
        return batch

    def _read(self, site: str, numbers: np.ndarray) -> np.ndarray:
        """Returns the rows with these indices, float32 [rows, A]. Raises ValueError for a row that has changed."""
        x = self.arrays[site][numbers]
        if (changed := row_checks.of_piece(x) != self.checks[site][numbers]).any():
            raise ValueError(
                f"row {numbers[changed][0]:,} at {site} has changed since sae.rows read it: give arrays that are not "
                "written to, and call sae.rows again"
            )
        return x.astype(np.float32).reshape(len(x), -1)

    @functools.cached_property
    def _cache(self) -> dict[str, dict]:
        return {}

    def _statistics(self, site: str) -> dict:
        self.check_sites([site])
        if site not in self._cache:
            x = self._read(site, _spread(self.rows))
            moments = Moments.of(x)
            if not moments.finite():
                raise ValueError(f"some activations at {site} are not finite: remove these rows")
            self._cache[site] = moments.statistics(x, np.arange(len(x)))
        return self._cache[site]


def _spread(count: int) -> np.ndarray:
    """Returns the indices of up to `STATISTICS` of `count` rows, evenly spread, rising."""
    return np.arange(count) if count <= STATISTICS else np.linspace(0, count - 1, STATISTICS).astype(np.int64)


def _fingerprint(values: Mapping[str, np.ndarray], checks: Mapping[str, np.ndarray]) -> str:
    """Returns a sha256 over names, shapes and the checks of all rows: a checkpoint takes other rows for another
    source."""
    digest = hashlib.sha256()
    for site, array in sorted(values.items()):
        digest.update(f"{site} {array.shape} {array.dtype}".encode())
        digest.update(checks[site].astype("<u8", copy=False).tobytes())
    return digest.hexdigest()


def _check(site: str, array: np.ndarray) -> None:
    if array.dtype.kind == "V" and array.dtype.name.startswith("void"):  # np.load gives bfloat16 as this
        raise ValueError(
            f"the rows at {site} have the dtype {array.dtype}, which is none of numbers: for a file of bfloat16 give "
            "array.view(ml_dtypes.bfloat16)"
        )
    if array.ndim not in (2, 3) or not array.size or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"the rows at {site} are floats [rows, A] (or [rows, N, H]), got {showing.kind(array)}: give each token's "
            "activation a row"
        )


def _check_site(site: str, shape: tuple[int, ...], model: LanguageModel) -> None:
    record = token_site(model, site)
    if shape not in (tuple(record.shape), (dim(record),)):
        expected = list(record.shape)
        raise ValueError(f"an activation at {site} of {model.name} is {expected}, the rows given are {list(shape)}")
