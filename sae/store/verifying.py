"""Verification of a store: every file against its recorded checksum.

`segment.json` has a checksum of the values of every array and of every zarr.json; every chunk has one in its array, and
documents.json has one in the manifest. `segment.json` ends in a checksum of itself, and carries the manifest's.
"""

import concurrent.futures
import math
from collections.abc import Callable, Iterable, Mapping

from sae.progress import every
from sae.store import arrays, attempts
from sae.store import facts as facts_module
from sae.store import manifest as manifests
from sae.store.codec import codec
from sae.store.manifest import Manifest, array_name, commit_name, segment_name
from sae.store.places import Place
from sae.store.reading import ActivationStore


def damaged(
    store: ActivationStore | Place, progress: Callable[..., Iterable] = lambda segments, **_: segments
) -> dict[int, list[str]]:
    """Reads a whole store and returns {segment: its problems in words}; empty for a store without damage.

    Args:
        store: a store, or the place of a store that may be too damaged to open.
        progress: called as tqdm is, with the segments to come, `total` and `desc`.
    """
    place = store.place if isinstance(store, ActivationStore) else store
    manifest, problems = manifests.read(place), {}
    segments = manifests.committed(place)
    with concurrent.futures.ThreadPoolExecutor(2, "verify") as pool:
        for index in every(progress(segments, total=len(segments), desc="verify"), segments):
            if wrong := _segment(place, index, manifest, pool):
                problems[index] = wrong
    return problems


def documents(store: ActivationStore | Place) -> str | None:
    """Returns the problem of documents.json in words; None where it has none."""
    place = store.place if isinstance(store, ActivationStore) else store
    try:
        manifests.read_documents(place, manifests.read(place))
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _segment(place: Place, index: int, manifest: Manifest, pool: concurrent.futures.Executor) -> list[str]:
    try:
        facts = facts_module.read(place, index, manifest)
    except (OSError, ValueError) as error:
        return [str(error)]
    folder = "/".join(part for part in (segment_name(index), facts.get("folder")) if part)
    stored = codec(manifest.dtype)
    shapes = {
        array_name(site) + suffix: row
        for site, shape in manifest.sites.items()
        for suffix, (_, row) in stored.parts(math.prod(shape)).items()
    }
    checks = []
    for file, recorded in facts["checksums"].items():
        if file.endswith("/zarr.json"):
            checks.append(pool.submit(_check_file, place, f"{folder}/{file}", recorded))
        else:
            shape = [facts["rows"], *shapes.get(file, ())]
            checks.append(pool.submit(_check_array, place, f"{folder}/{file}", shape, recorded))
    problems = [problem for check in checks if (problem := check.result())]
    return problems or _unexpected(place, index, folder, facts)


def _check_array(place: Place, name: str, shape: list[int], recorded: str) -> str | None:
    try:
        now = arrays.digest(place, name, shape)
    except ValueError as error:
        return f"{name}: {str(error).splitlines()[0][:300]}"
    return None if now == recorded else f"{name}: its checksum is {now[:12]}…, {recorded[:12]}… was recorded"


def _check_file(place: Place, name: str, recorded: str) -> str | None:
    contents = place.read(name)
    if contents is None:
        return f"{name} is missing"
    return None if arrays.checksum(contents) == recorded else f"{name}: its checksum differs from the recorded one"


def _unexpected(place: Place, index: int, folder: str, facts: dict) -> list[str]:
    """Returns the problems of files in a segment that belong to none of its arrays."""
    names = [array for array in facts["checksums"] if not array.endswith("/zarr.json")]
    expected = {commit_name(index)}
    expected |= {f"{folder}/{array}/{file}" for array in names for file in arrays.files(place, f"{folder}/{array}")}
    others = [file for file in place.names(f"{segment_name(index)}/") if file not in expected]
    return [f"{file} is no part of the segment" for file in others[:8]]


def discard(store: ActivationStore | Place, segments: Mapping[int, object] | Iterable[int]) -> None:
    """Removes segments from a store, so that a harvest writes them again."""
    place = store.place if isinstance(store, ActivationStore) else store
    for index in segments:
        attempts.discard(place, index)
