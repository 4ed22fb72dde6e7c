"""The reference of `make docs` has a page for every module and every public name, and no link that leads nowhere."""

import doctest

import pytest

import gemma
import mishax_lite
import sae
from tests.reference import build, links


@pytest.mark.slow  # half a minute: pdoc renders the source of every module
def test_every_public_name_has_its_place_and_every_link_its_target(tmp_path):
    folder = tmp_path / "docs"
    assert build.build(folder) == []
    for package in (mishax_lite, gemma, sae):
        page = (folder / f"{package.__name__}.html").read_text(encoding="utf-8")
        missing = [name for name in package.__all__ if f'id="{name}"' not in page]
        assert not missing, (package.__name__, missing)
    assert 'id="how-to-add-a-site"' in (folder / "sae.html").read_text(encoding="utf-8")  # a heading of the README


def test_a_link_is_broken_if_its_file_or_its_anchor_is_missing(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"></p><a href="b.html#y">1</a><a href="b.html#z">2</a><img src="c.png">')
    (tmp_path / "b.html").write_text('<a id="y" href="a.html#x">3</a><a href="https://example.org/none">4</a>')
    assert links.broken_links(tmp_path) == ["a.html: b.html#z", "a.html: c.png"]


def test_the_example_of_broken_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(links).failed == 0


def test_links_of_a_readme_lead_to_pages_and_copies(tmp_path):
    pages = build.module_pages()
    text = (
        "[a](../README.md#units) [b](reading.py) [c](https://x.org/a.md) `[d](e)` ![f](../../experiments/frontier.png)"
    )
    assert build.translate(text, "sae/store/README.md", "sae/store.html", pages, tmp_path) == (
        "[a](../sae.html#units) [b](store/reading.html) [c](https://x.org/a.md) `[d](e)` "
        "![f](../files/experiments/frontier.png)"
    )
    assert (tmp_path / "files/experiments/frontier.png").read_bytes()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="name an empty or a new folder"):
        build.build(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
