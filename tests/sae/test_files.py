"""Files of a folder that are replaced together: whatever the moment of a crash, all old ones or all new ones."""

import json
import os

import pytest

from sae import files
from sae.files import current, replace_together

OLD = {"a": b"old a", "b": b"old b", "c": None}
NEW = {"a": b"new a", "b": None, "c": b"new c"}


class Killed(BaseException):
    """A crash, which no `except Exception` sees."""


@pytest.fixture
def killed_at(monkeypatch):
    """A function that has the process killed before its `n`-th call of the system that changes a file."""

    def arm(n):
        left = [n]

        def counted(name):
            original = getattr(os, name)

            def call(*args, **options):
                left[0] -= 1
                if left[0] < 0:  # a process that was killed does nothing any more
                    raise Killed
                return original(*args, **options)

            monkeypatch.setattr(os, name, call)

        for name in ("replace", "unlink", "fsync", "mkdir", "rename"):
            counted(name)

    return arm


def contents(folder):
    paths = {name: current(folder, name) for name in OLD}
    return {name: path.read_bytes() if path is not None and path.exists() else None for name, path in paths.items()}


@pytest.mark.parametrize("n", range(10))
def test_killed_anywhere_the_files_are_all_old_or_all_new(tmp_path, killed_at, monkeypatch, n):
    replace_together(tmp_path, OLD)
    assert contents(tmp_path) == OLD
    killed_at(n)
    try:
        replace_together(tmp_path, NEW)
        finished = True
    except Killed:
        finished = False
    monkeypatch.undo()
    left = contents(tmp_path)
    assert left in (OLD, NEW) and (left == NEW or not finished) and (n > 0 or left == OLD)
    # The next one ends what was begun, or begins anew; nothing else is left.
    replace_together(tmp_path, {**left, "a": b"last"})
    assert contents(tmp_path) == {**left, "a": b"last"}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"a", *(k for k, v in left.items() if v is not None)})


def test_an_error_in_the_midst_of_writing_changes_nothing(tmp_path):
    replace_together(tmp_path, OLD)

    def full(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_together(tmp_path, {"a": b"new", "b": full, "c": b"new"})
    assert contents(tmp_path) == OLD and sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_that_was_never_replaced_is_read_as_it_is(tmp_path):
    (tmp_path / "a").write_bytes(b"by another program")
    (tmp_path / "b.new").write_bytes(b"half of a file, never listed")
    assert current(tmp_path, "a").read_bytes() == b"by another program" and not current(tmp_path, "b").exists()
    (tmp_path / files._JOURNAL).write_text(json.dumps({"b": True}))
    assert current(tmp_path, "b") == tmp_path / "b.new"
