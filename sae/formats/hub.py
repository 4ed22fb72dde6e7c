"""Autoencoders of the Hugging Face hub: the files of one are fetched to the hub's cache, or read there (extra `hub`).

The hub first lists a folder of the repository, so that the files of one autoencoder alone are fetched. The main file
comes last: a folder of the cache with a main file is whole. Where the hub cannot be reached, and for a revision that is
a commit, which cannot change, the cache is read first.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae import showing
from sae.formats import largest
from sae.formats.format import INFO

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIGS = (".json", ".yaml", ".yml")
_MOST = 2**20  # the most bytes of a config
_NAMED = 12  # the most folders of a repository that an error names
_CANONICAL = "canonical"
_ABOVE = {"sae.safetensors": "config.json"}  # sparsify's config of the run lies above the folders of its sites
_BELOW = {"hyperparams.json": "checkpoints/final.safetensors"}  # Llama Scope's weights


class HubError(ValueError):
    """The hub does not give the files; the message says why, and what to do."""


class _NoEntryError(HubError):
    pass


def is_id(where: str) -> bool:
    """Returns whether a text can be a repository of the hub: `owner/name`.

    Example:
        >>> is_id("google/gemma-scope-2b-pt-res"), is_id("runs/store/x"), is_id("./runs/x")
        (True, False, False)
    """
    return _ID.fullmatch(where) is not None


def fetch(repository: str, path: str | None, revision: str | None, mains: Iterable[str]) -> Path:
    """Returns the folder, or the file, of an autoencoder in the hub's cache (`HF_HOME`, `HF_HUB_CACHE`).

    Args:
        repository: `owner/name`.
        path: the path of a folder in it, or of a file; None for its root. Gemma Scope's `layer_20/width_16k/canonical`
            is the folder there whose average L0 is nearest to 100, as its model cards say.
        revision: a branch, a tag or a commit; None for the main branch.
        mains: the names of files by which autoencoders are recognised.

    Raises:
        HubError: without the package `huggingface_hub`; when the hub has no such repository, revision or path, asks for
            its licence to be accepted, or cannot be reached and the cache has no such autoencoder.
    """
    inside, mains = _inside(path), tuple(mains)
    hub = _Hub(repository, revision)
    if revision is not None and _COMMIT.fullmatch(revision) and (place := hub.cached(inside, mains)):
        return place
    try:
        return _fetched(hub, inside, mains)
    except HubError:
        raise
    except Exception as error:  # of the hub's, of its http library, of the disk
        if hub.unreachable(error) and (place := hub.cached(inside, mains)):
            return place
        raise hub.problem(error, inside) from error


def fetch_file(repository: str, path: str, revision: str | None) -> Path:
    """Returns one file of a repository, in the hub's cache.

    Raises:
        HubError: as `fetch` does.
    """
    hub = _Hub(repository, revision)
    try:
        return hub.download(path)
    except Exception as error:
        raise hub.problem(error, path) from error


def listing(repository: str, revision: str | None) -> dict[str, int]:
    """Returns {path: bytes} of every file of a repository.

    Raises:
        HubError: as `fetch` does.
    """
    hub = _Hub(repository, revision)
    try:
        return {path: size for path, size in hub.entries("", recursive=True).items() if size is not None}
    except HubError:
        raise
    except Exception as error:
        raise hub.problem(error, "") from error


def _inside(path: str | None) -> str:
    """Returns a path in a repository in its plain form. Raises HubError for a path that leads out of it."""
    parts = [part for part in str(path or "").split("/") if part not in ("", ".")]
    if ".." in parts or "\\" in str(path or ""):
        raise HubError(f"{path!r} is no path within a repository: give one like layer_20/width_16k/average_l0_71")
    return "/".join(parts)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _fetched(hub: "_Hub", inside: str, mains: tuple[str, ...]) -> Path:
    if inside.rpartition("/")[2] == _CANONICAL:
        inside = _canonical(hub, inside.rpartition("/")[0])
    entries = _entries(hub, inside)
    if entries.get(inside) is not None:  # a file
        inside, _, file = inside.rpartition("/")
        entries = hub.entries(inside)
    else:
        file = None
    sizes = {path.rpartition("/")[2]: size for path, size in entries.items() if size is not None}
    main = file or _main(hub, inside, sizes, entries, mains)
    if main in _ABOVE and inside:
        folder = inside.rpartition("/")[0]
        config = _joined(folder, _ABOVE[main])
        if hub.entries(folder).get(config) is not None:
            hub.download(config)
    if main in _BELOW:
        hub.download(_joined(inside, _BELOW[main]))
    beside = _beside(main, sizes, whole=main in mains)
    places = [hub.download(_joined(inside, name)) for name in (*beside, main)]
    if len({place.parent for place in places}) > 1:
        raise HubError(f"{hub.label} has changed while {inside or 'it'} was fetched: try again")
    return places[-1] if file else places[-1].parent


def _beside(main: str, sizes: Mapping[str, int], whole: bool) -> list[str]:
    """Returns the names of the other files of an autoencoder: configs, and files of other layers.

    Args:
        main: the name of the main file. The names of other layers' files differ from it in the layer's number, and in
            whether they are of an encoder or a decoder.
        sizes: {name: bytes} of the folder's files.
        whole: False where the user named a file that is an autoencoder by itself, without other layers.
    """
    alike = re.sub(r"\d+", r"\\d+", re.escape(main)).replace("enc", "(?:enc|dec)") if whole else None
    return [
        name
        for name, size in sizes.items()
        if name != main
        and (
            (name.endswith(_CONFIGS) and size <= _MOST)
            or name in (INFO, largest.NAME)
            or (alike is not None and re.fullmatch(alike, name))
        )
    ]


def _main(
    hub: "_Hub", inside: str, sizes: Mapping[str, int], entries: Mapping[str, int | None], mains: tuple[str, ...]
) -> str:
    candidates = [main for main in mains if main in sizes]
    if len(candidates) > 1:
        raise HubError(
            f"{hub.label} has autoencoders of several formats at {inside or 'its root'}: {', '.join(candidates)}"
        )
    if candidates:
        return candidates[0]
    below = sorted(path for path, size in entries.items() if size is None)
    hint = (
        f"it has {_named(below, 'folder')}: give the path of one that has" if below else f"none of {', '.join(mains)}"
    )
    raise HubError(f"{hub.label} has no autoencoder at {inside or 'its root'}: {hint}")


def _named(paths: list[str], noun: str) -> str:
    return f"the {noun}{'s' * (len(paths) > 1)} {showing.some(paths, _NAMED)}"


def _canonical(hub: "_Hub", folder: str) -> str:
    paths = [path for path in _entries(hub, folder) if re.search(r"/average_l0_\d+$", path)]
    if not paths:
        raise _NoEntryError(f"{hub.label} has no folder average_l0_… in {folder}, so none is canonical")
    return min(paths, key=lambda path: abs(int(path.rpartition("_")[2]) - 100))


def _entries(hub: "_Hub", inside: str) -> dict[str, int | None]:
    """Returns the entries of a folder, or the file alone, as {path: bytes; None for folders}.

    Raises:
        HubError: for a path that the repository lacks, with the entries of the nearest folder above it.
    """
    try:
        return hub.entries(inside)
    except hub.errors.EntryNotFoundError as error:
        if isinstance(error, hub.errors.LocalEntryNotFoundError):
            raise
    missing, above = inside, inside
    while above:
        above = above.rpartition("/")[0]
        try:
            entries = hub.entries(above)
        except hub.errors.EntryNotFoundError:
            continue
        if missing == inside and entries.get(inside) is not None:
            return {inside: entries[inside]}
        listed = _named(sorted(entries), "path")
        raise _NoEntryError(f"{hub.label} has no {inside}; in {above or 'its root'} it has {listed}")
    raise _NoEntryError(f"{hub.label} has no {inside}")


class _Hub:
    """A repository of the hub at a revision."""

    def __init__(self, repository: str, revision: str | None):
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError:
            raise HubError(
                f"{repository!r} is no local folder, and the hub is read by huggingface_hub, which is missing: "
                "pip install huggingface_hub (the extra `hub`)"
            ) from None
        self.repository, self.revision = repository, revision
        self.hub, self.errors = huggingface_hub, errors
        self.label = f"{repository}@{revision}" if revision else repository
        self._of: dict[str, Any] = {"repo_id": repository, "revision": revision}

    def entries(self, inside: str, recursive: bool = False) -> dict[str, int | None]:
        """Returns {path: bytes} of the files in a folder; None for folders."""
        tree = self.hub.HfApi().list_repo_tree(path_in_repo=inside or None, recursive=recursive, **self._of)
        return {entry.path: getattr(entry, "size", None) for entry in tree}

    def download(self, path: str) -> Path:
        return Path(self.hub.HfApi().hf_hub_download(filename=path, **self._of))

    def cached(self, inside: str, mains: tuple[str, ...]) -> Path | None:
        """Returns the folder or the file in the cache; None where the cache lacks it."""
        if (file := self._in_cache(inside)) is not None:
            return file
        places = [place for main in mains if (place := self._in_cache(_joined(inside, main)))]
        return places[0].parent if places else None

    def _in_cache(self, file: str) -> Path | None:
        if not file:
            return None
        place = self.hub.try_to_load_from_cache(self.repository, file, revision=self.revision)
        return Path(place) if isinstance(place, str) and Path(place).is_file() else None

    def unreachable(self, error: Exception) -> bool:
        """Returns whether an error means that the hub could not be reached."""
        if isinstance(error, self.errors.HfHubHTTPError):
            return getattr(error.response, "status_code", 0) >= 500
        return not isinstance(error, self.errors.HFValidationError)

    def problem(self, error: Exception, inside: str) -> HubError:
        """Returns the error to raise: the problem in words, and what to do."""
        errors, name = self.errors, self.repository
        if isinstance(error, errors.HFValidationError):
            return HubError(f"{name!r} is no local folder and no repository of the hub: {_line(error)}")
        if isinstance(error, errors.GatedRepoError):
            page = f"https://huggingface.co/{name}"
            return HubError(
                f"{name} is for users of the hub who accepted its licence: accept it at {page}, then run "
                "`hf auth login`"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return HubError(
                f"{name!r} is no local folder, and the hub has no such repository, or hides it: check the name, or run "
                "`hf auth login`"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(
                f"the hub's {name} has no revision {self.revision!r}: give a branch, a tag or a commit, or leave it "
                "out for the main branch"
            )
        if isinstance(error, errors.HfHubHTTPError) and not self.unreachable(error):
            return HubError(f"the hub does not give {_joined(name, inside)}: {_line(error)}")
        why = "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else _line(error)
        pattern = f' --include "{inside}/*"' if inside else ""
        return HubError(
            f"{_joined(name, inside)} is not in the hub's cache, and the hub cannot be reached ({why}): try again, or "
            f"run `hf download {name}{pattern}` where there is a network and copy its cache here"
        )


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
