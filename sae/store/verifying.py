"""Is a store what it says it is: every array's values against the checksums in `segment.json`."""

import concurrent.futures
from collections.abc import Callable, Iterable, Mapping

from sae.store import arrays
from sae.store.manifest import array_name, commit_name, segment_name
from sae.store.reading import ActivationStore


def damaged(
    store: ActivationStore, progress: Callable[..., Iterable] = lambda segments, **_: segments
) -> dict[int, list[str]]:
    """{segment: what is wrong with its arrays}; empty for a store in health. Reads all of it.

    Args:
      progress: called with the segments to come, and `total` and `desc`, as tqdm is.
    """
    found: dict[int, list[str]] = {}
    with concurrent.futures.ThreadPoolExecutor(2, "verify") as pool:
        for index, rows in progress(store.segments, total=len(store.segments), desc="verify"):
            recorded = store.facts(index)["checksums"]
            checks = [
                pool.submit(_check, store, array_name(index, name), rows, digest) for name, digest in recorded.items()
            ]
            if wrong := [problem for check in checks if (problem := check.result())]:
                found[index] = wrong
    return found


def _check(store: ActivationStore, name: str, rows: int, recorded: str) -> str | None:
    try:
        now = arrays.digest(store.place, name, rows)
    except ValueError as error:
        return f"{name}: {str(error).splitlines()[0][:300]}"
    return None if now == recorded else f"{name}: its checksum is {now[:12]}…, {recorded[:12]}… was recorded"


def discard(store: ActivationStore, segments: Mapping[int, object] | Iterable[int]) -> None:
    """Takes segments out of a store, so that a harvest writes them again."""
    for index in segments:
        # First what makes it be there, so that a crash in between leaves no half of a segment.
        contents = store.place.read(commit_name(index))
        if contents is not None:
            store.place.replace(commit_name(index), contents, None)
        store.place.remove(segment_name(index))
