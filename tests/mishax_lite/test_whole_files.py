"""A file is replaced whole or not at all, whatever happens in between."""

import os

import pytest

from mishax_lite.whole_files import replacing


def replace(path, text, **options):
    with replacing(path, **options) as new:
        new.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_at_any_point_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    replace(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        replace(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_an_error_or_an_interrupt_of_the_writer_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    replace(path, "old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), replacing(path) as new:
            new.write_text("half")
            raise error
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_the_old_file_stands_until_the_new_one_is_whole_and_synced(tmp_path, monkeypatch):
    path, synced = tmp_path / "a", []
    replace(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((path.read_text(), (tmp_path / "a.new").read_text())))
    replace(path, "new")
    assert synced == [("old", "new")] and path.read_text() == "new"
    (tmp_path / "a.new").write_text("of one that was killed")
    replace(path, "next")
    assert path.read_text() == "next" and os.listdir(tmp_path) == ["a"]


def test_of_two_exclusive_writers_the_first_one_wins(tmp_path):
    path = tmp_path / "a"
    replace(path, "first", exclusive=True)
    with pytest.raises(FileExistsError):
        replace(path, "second", ending=".other", exclusive=True)
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a"]
