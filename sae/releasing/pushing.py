"""`sae.push` uploads a release to a repository of the Hugging Face hub (extra `hub`), in one commit.

Large files are uploaded first, which nobody sees; the commit makes all of them visible at once. An interrupted push can
be repeated, and uploads only the missing files. Files of the old release that the new one lacks are removed; other
files of the repository stay.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae import showing
from sae.files import local_path
from sae.formats.files import main_files
from sae.formats.hub import HubError
from sae.releasing import checksums, manifest

_AGAIN = "Run it again: what is uploaded is not uploaded twice"


def push(folder: str | Path, *, private: bool = False, overwrite: bool = False) -> str:
    """Uploads a release to the repository of the hub that it names.

    The repository is made where it is missing. The token is that of `hf auth login`, or `HF_TOKEN` in the environment.

    Args:
        folder: a release that `release(..., repository="owner/name")` has written.
        private: whether a new repository is private.
        overwrite: whether another release in the repository may be replaced, as for `release`.

    Returns:
        The address of the commit; that of the last commit where the repository has the same release already.

    Raises:
        ValueError: before anything is sent, for a folder that is no release, names no repository, or has changed since
            it was released.
        HubError: a ValueError, for a repository that holds other autoencoders, and for all refusals and failures of the
            hub. The message says what to do; the repository has the old release, or the whole new one.

    Example:
        >>> sae.save(autoencoder, "runs/chosen/mine")
        >>> released = sae.release("runs/chosen", "runs/release", repository="owner/name")
        >>> sae.push("runs/release")  # doctest: +SKIP
        'https://huggingface.co/owner/name/commit/5ee3a1bb57a5d5a9b8d1b0d9d1f9e4cbb8a0b6c1'
    """
    folder = local_path(folder)
    facts, sums = _checked(folder)
    hub = _Hub(facts["repository"])
    try:
        return _pushed(hub, folder, facts, sums, private, overwrite)
    except HubError:
        raise
    except Exception as error:  # of the hub's, of its http library, of the disk
        raise hub.problem(error) from error


def _checked(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the record of a release, and its checksums, which it checks."""
    if (facts := manifest.of_folder(folder)) is None:
        raise ValueError(f"{folder} is missing or empty: make a release there first, with sae.release")
    sums = checksums.read(folder / checksums.NAME)
    if (what := checksums.problem(folder, sums)) is not None:
        raise ValueError(f"{folder} is not as it was released: {what}. Release it again, and push then")
    if not isinstance(facts.get("repository"), str):
        raise ValueError(
            f"{folder} names no repository, which its card has to: release it again with repository='owner/name' "
            "(--push=owner/name)"
        )
    return facts, sums


def _pushed(
    hub: "_Hub", folder: Path, facts: Mapping[str, Any], sums: Mapping[str, str], private: bool, overwrite: bool
) -> str:
    hub.api.create_repo(hub.repository, exist_ok=True, private=private)
    head, held = hub.head()
    before = hub.record(head, held)
    if before is not None and not overwrite:
        try:
            manifest.check_continues(before, facts, hub.repository)
        except ValueError as error:
            raise HubError(str(error)) from None
    listed = hub.listed(head, held)
    mains = set(main_files())
    if others := [path for path in held if path.rpartition("/")[2] in mains and path not in listed]:
        raise HubError(
            f"{hub.repository} has autoencoders that no release lists, {', '.join(others[:3])}: push to a repository "
            "of its own. Nothing was changed"
        )
    files = {name: folder / name for name in (*sums, checksums.NAME)}
    new = {name: file for name, file in files.items() if not _same(held.get(name), file, sums.get(name))}
    gone = [name for name in listed if name in held and name not in files]
    if not new and not gone:
        return f"{hub.api.endpoint}/{hub.repository}/commit/{head}"
    count = showing.count(len(facts["autoencoders"]), "autoencoder")
    return hub.commit(new, gone, f"Release of {count} of {facts['model']}", head)


def _same(entry: Any, file: Path, sha256: str | None) -> bool:
    """Returns whether a file of the repository is this one: by sha256 where the hub has one, else by git's hash."""
    if entry is None or entry.size != file.stat().st_size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == (sha256 or checksums.digest(file))
    content = file.read_bytes()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Hub:
    """A repository of the hub that is written to."""

    def __init__(self, repository: str):
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError:
            raise HubError(
                f"pushing to {repository} needs huggingface_hub: pip install huggingface_hub (the extra `hub`)"
            ) from None
        self.repository, self.hub, self.errors = repository, huggingface_hub, errors
        self.api = huggingface_hub.HfApi()

    def head(self) -> tuple[str, dict[str, Any]]:
        """Returns the commit of the main branch, and its files by path."""
        head = str(self.api.model_info(self.repository).sha)
        tree = self.api.list_repo_tree(self.repository, recursive=True, revision=head)
        return head, {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}

    def record(self, head: str, held: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the record of the release in the repository; None where it is missing."""
        return manifest.read(self._file(head, manifest.NAME)) if manifest.NAME in held else None

    def listed(self, head: str, held: Mapping[str, Any]) -> set[str]:
        """Returns the files of the release in the repository."""
        if manifest.NAME not in held or checksums.NAME not in held:
            return set()
        return {*checksums.read(self._file(head, checksums.NAME)), checksums.NAME}

    def _file(self, head: str, name: str) -> Path:
        return Path(self.api.hf_hub_download(self.repository, name, revision=head))

    def commit(self, new: Mapping[str, Path], gone: list[str], message: str, head: str) -> str:
        """Uploads files, takes out others, and returns the address of the commit, which only follows `head`."""
        operations = [
            *(self.hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file)) for name, file in new.items()),
            *(self.hub.CommitOperationDelete(path_in_repo=name) for name in gone),
        ]
        commit = self.api.create_commit(self.repository, operations, commit_message=message, parent_commit=head)
        return commit.commit_url

    def problem(self, error: Exception) -> HubError:
        """Returns an error that says what went wrong and what to do. The repository is unchanged."""
        errors, name = self.errors, self.repository
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return HubError(f"{name} cannot be pushed to, as HF_HUB_OFFLINE is set: unset it where there is a network")
        if isinstance(error, errors.HFValidationError):
            return HubError(f"{name!r} can be no repository of the hub: {_line(error)}. Release it for another name")
        if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
            return HubError(
                f"the hub does not let you write to {name} ({_line(error)}): run `hf auth login` with a token that may "
                "write there, or release for a repository of yours. Nothing was changed"
            )
        if status in (409, 412):
            return HubError(f"{name} has changed during the push ({_line(error)}), which changed nothing. {_AGAIN}")
        if status is not None and 400 <= status < 500:
            return HubError(f"the hub does not take this release for {name}: {_line(error)}. Nothing was changed")
        if isinstance(error, ValueError):  # of its library, which checks the card and the answers
            return HubError(f"the release was not pushed to {name}: {_line(error)}. Nothing was changed")
        return HubError(f"{name} has the release of before, or all of the new one: {_line(error)}. {_AGAIN}")


def _line(error: Exception) -> str:
    """Returns an error in one line; the cause of an error in which the library wraps another."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    return " ".join((str(cause) or type(cause).__name__).split())[:200].rstrip(".")
