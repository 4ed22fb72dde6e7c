"""Folders that are replaced whole."""

import pytest

from sae import folders


def write(folder, text):
    (folder / "inside").mkdir()
    (folder / "inside" / "a.txt").write_text(text)


def read(folder):
    return {path.name: path.read_text() for path in folder.rglob("*.txt")}


def test_a_folder_takes_the_place_of_none_and_of_another(tmp_path):
    folder = tmp_path / "not" / "yet" / "here"
    for text in ("one", "two"):
        with folders.beside(folder) as new:
            write(new, text)
            assert new.parent == folder.parent
            folders.swap(new, folder)
        assert read(folder) == {"a.txt": text}
        assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_what_is_not_swapped_is_gone_and_the_old_one_stays(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    write(folder, "old")
    with pytest.raises(KeyError), folders.beside(folder) as new:
        write(new, "half")
        raise KeyError
    with folders.beside(folder) as new:
        write(new, "not wanted")
    assert read(folder) == {"a.txt": "old"} and list(tmp_path.iterdir()) == [folder]


def test_linux_exchanges_two_folders_in_one_step(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        write(folder, folder.name)
    if not folders._exchange(one, other):
        pytest.skip("this system, or the file system of the temporary folder, exchanges no names")
    assert read(one) == {"a.txt": "other"} and read(other) == {"a.txt": "one"}
    with pytest.raises(FileNotFoundError):
        folders._exchange(one, tmp_path / "missing")
