import html.parser
import re

import numpy as np
import pytest

import sae
from sae.evaluation.latents import LatentStatistics, TopTokens
from sae.explorer import pages, tradeoff
from sae.text import Document, cut
from tests.sae.examples import autoencoder_for

NASTY = "<script>alert('x')</script> & <b>bold</b>\nnext line\n"


class Parsed(html.parser.HTMLParser):
    """Tags, links, text, and whether every tag that was opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in ("meta", "link", "img", "input", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    sequences = cut([Document("<i>id</i>", "s", NASTY), Document("d", "s", "the king " * 20)], tiny.tokenizer, 64)
    autoencoder = autoencoder_for(tiny, 192)
    Z, T = autoencoder.width, 64
    activation = np.zeros((Z, 2, T), np.float32)
    activation[5, 0, [13, 14, 19]] = [2.0, 8.0, 4.0]
    activation[7, 0, 2] = 1.0
    sequence = np.full((Z, 2), -1, np.int32)
    sequence[[5, 7], 0] = 0
    fired, histogram = np.zeros(Z, np.int64), np.zeros((Z, 32), np.int64)
    fired[[5, 7]], histogram[5, [7, 15, 31]], histogram[7, 31] = [3, 1], 1, 1
    statistics = LatentStatistics(
        100, fired, activation[:, 0].max(1), histogram, np.full(Z, 8.0), sequence, activation.argmax(-1), activation
    )
    ids, falling = np.tile([3, 400], (Z, 1)), np.tile([0.75, 0.5], (Z, 1))
    effects = TopTokens(ids, falling, ids + 1, -falling)
    pages.write_latents(
        folder / "a" / "b", "../../", "A & B", autoencoder, statistics, effects, sequences, tiny.tokenizer
    )
    metrics = sae.Metrics("layer_2/resid_post", 100, 90, 3.0, 0.2, 3.0, 3.1, 6.0, 0.1, 0.97, 4, Z)
    row = {"href": "a/b/index.html", "site": metrics.site, "width": Z, "target": "3", "metrics": metrics}
    pages.write_index(folder, "gemma2-<tiny>", [row], 100)
    tradeoff.draw([metrics], folder / "tradeoff.png", "title")
    return folder


def test_pages_are_well_formed_and_their_links_lead_somewhere(built):
    found = sorted(built.rglob("*.html"))
    assert [str(p.relative_to(built)) for p in found] == ["a/b/5.html", "a/b/7.html", "a/b/index.html", "index.html"]
    for page in found:
        parsed = Parsed(page.read_text(encoding="utf-8"))
        assert parsed.open == []
        for link in parsed.links:
            assert not re.match(r"[a-z]+:|//", link), "pages open without a network"
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_text_is_escaped(built):
    for page in built.rglob("*.html"):
        parsed = Parsed(page.read_text(encoding="utf-8"))
        assert parsed.tags.count("script") == (1 if page.parent != built and page.name == "index.html" else 0)
        assert "b" not in parsed.tags and "i" not in parsed.tags
    words = "".join(Parsed((built / "a" / "b" / "5.html").read_text(encoding="utf-8")).words)
    assert "<script>alert('x')</script> & <b>bold</b>↵\n" in words
    assert "<i>id</i>" in words


def test_shading_is_by_activation(built, tiny):
    page = (built / "a" / "b" / "5.html").read_text(encoding="utf-8")
    marks = re.findall(r'<mark( class="peak")? style="--a:([0-9.]+)" title="([0-9.]+)">', page)
    assert marks == [("", "0.25", "2"), (' class="peak"', "1.00", "8"), ("", "0.50", "4")]
    assert "fires on 3.000% of 100 tokens" in page
    assert "+0.75" in page and "-0.75" in page


def test_the_list_is_by_frequency_and_names_the_dead(built):
    page = (built / "a" / "b" / "index.html").read_text(encoding="utf-8")
    assert page.index('href="5.html"') < page.index('href="7.html"')
    assert "0, 1, 2, 3, 4, 6, 8" in page
    assert (built / "tradeoff.png").read_bytes()[:4] == b"\x89PNG"
