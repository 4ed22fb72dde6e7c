import html.parser
import os
import re
import types
import urllib.parse
from pathlib import Path, PurePath

import numpy as np
import pytest

import sae
from sae.evaluation.latents import LatentStatistics, TopTokens
from sae.explorer import characters, pages, tradeoff
from sae.explorer.characters import Characters
from sae.text import Document, cut
from tests.sae.examples import autoencoder_for

ABOUT = pages.About("held-out text", "all but <b>vowels</b>")
NASTY = "<script>alert('x')</script> & <b>bold</b>\nnext line\n"


class Parsed(html.parser.HTMLParser):
    """Tags, links, text, and whether every tag that was opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words, self.open = [], [], [], []
        self.bare = []  # text beside what is isolated from it
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
        if "bdi" not in self.open and "title" not in self.open:
            self.bare.append(data)


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
        folder / "a" / "b", "../../", "A & B", autoencoder, statistics, effects, sequences, tiny.tokenizer, ABOUT
    )
    metrics = sae.Metrics("layer_2/resid_post", 100, 90, 3.0, 0.2, 3.0, 3.1, 6.0, 0.1, 0.97, 4, Z, 9)
    row = {"href": "a/b/index.html", "site": metrics.site, "width": Z, "target": "3", "metrics": metrics}
    pages.write_index(folder, "gemma2-<tiny>", [row], 100, ABOUT)
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
            assert (page.parent / urllib.parse.unquote(link)).exists(), f"{page}: {link}"


def test_text_is_escaped(built):
    for page in built.rglob("*.html"):
        parsed = Parsed(page.read_text(encoding="utf-8"))
        assert parsed.tags.count("script") == (1 if page.parent != built and page.name == "index.html" else 0)
        assert "b" not in parsed.tags and "i" not in parsed.tags
    words = "".join(Parsed((built / "a" / "b" / "5.html").read_text(encoding="utf-8")).words)
    assert "<script>alert('x')</script> & <b>bold</b>↵\n" in words
    assert "<i>id</i>" in words


def test_pages_say_over_which_text_figures_are_and_what_of_it_is_left_out(built):
    for page in (built / "index.html", built / "a" / "b" / "index.html"):
        words = " ".join("".join(Parsed(page.read_text(encoding="utf-8")).words).split())
        assert "100 tokens of held-out text" in words and "all but <b>vowels</b>." in words
        assert "Left out" in words and "BOS" not in words


def test_shading_is_by_activation(built, tiny):
    page = (built / "a" / "b" / "5.html").read_text(encoding="utf-8")
    marks = re.findall(r'<mark( class="peak")? style="--a:([0-9.]+)" title="([0-9.]+)">', page)
    assert marks == [("", "0.25", "2"), (' class="peak"', "1.00", "8"), ("", "0.50", "4")]
    assert "fires on 3.000% of 100 tokens; threshold" in page and "largest 8, in raw units" in page
    assert "+0.75" in page and "-0.75" in page


def test_a_histogram_ends_with_the_largest_activation():
    """Its range grows by doubling, and may end far above."""
    histogram = np.zeros((1, 32), np.int64)
    histogram[0, [3, 9]] = [5, 1]
    bars = pages._bars(types.SimpleNamespace(histogram=histogram, histogram_range=np.array([64.0])), 0)
    assert [bar["tokens"] for bar in bars] == ["0 tokens"] * 3 + ["5 tokens"] + ["0 tokens"] * 5 + ["1 token"]
    assert (bars[-1]["low"], bars[-1]["high"]) == ("18", "20")


def test_the_list_is_by_frequency_and_names_the_dead(built):
    page = (built / "a" / "b" / "index.html").read_text(encoding="utf-8")
    assert page.index('href="5.html"') < page.index('href="7.html"')
    assert "0, 1, 2, 3, 4, 6, 8" in page
    assert (built / "tradeoff.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "name",
    ["lr=1e-3 #2", "50%20", "a?b", "a:b", "C:", "+&;", "'\"<b>", "é²", "..a", os.fsdecode(b"caf\xe9"), "a\\b", "\n"],
)
def test_links_lead_to_folders_of_any_name(tmp_path, name):
    metrics = sae.Metrics("layer_2/resid_post", 100, 90, 3.0, 0.2, 3.0, 3.1, 6.0, 0.1, 0.97, 4, 8, 9)
    row = {"href": pages.link(PurePath(name, "index.html")), "site": "s", "width": 8, "target": "3", "metrics": metrics}
    (tmp_path / name).mkdir()
    (tmp_path / name / "index.html").write_text("here")
    page = pages.write_index(tmp_path, "m", [row], 100, ABOUT)
    (link,) = [link for link in Parsed(page.read_text(encoding="utf-8")).links if link.endswith("index.html")]
    # As a browser resolves it.
    there = urllib.parse.urlsplit(urllib.parse.urljoin(page.as_uri(), link))
    assert there.scheme == "file" and not there.query and not there.fragment
    assert Path(os.fsdecode(urllib.parse.unquote_to_bytes(there.path))).read_text() == "here"


EMOJI, ACCENT = "\U0001f469", "e\u0301"


def spans(tiny, text):
    tokens = tiny.tokenizer.encode(text, add_bos=False)
    return tokens, Characters(tiny.tokenizer).spans(tokens, 0, len(tokens))


def test_bytes_of_a_character_are_shown_as_the_character(tiny):
    text = f"The king {EMOJI}\u200d{EMOJI} went\n home, קום"
    tokens, parts = spans(tiny, text)
    assert "".join(part for _, _, part in parts) == text.replace("\n", "↵\n")
    assert [part for begin, end, part in parts if end - begin > 1].count(EMOJI) == 2
    assert [begin for begin, _, _ in parts] + [len(tokens)] == [0, *(end for _, end, _ in parts)]


def test_bytes_that_are_no_character_are_shown_one_by_one(tiny):
    byte = {tiny.tokenizer.byte(i): i for i in range(len(tiny.tokenizer)) if tiny.tokenizer.byte(i) is not None}
    tokens = [byte[b] for b in (0xF0, 0x9F, 0x91, 0x41, 0x80, 0xC3, 0xA9, 0xE2, 0x82)]
    labels = [text for _, _, text in Characters(tiny.tokenizer).spans(tokens, 0, len(tokens))]
    assert labels == ["<0xF0>", "<0x9F>", "<0x91>", "A", "<0x80>", "é", "<0xE2>", "<0x82>"]


def test_a_character_across_the_end_of_a_window_is_there_whole(tiny):
    tokens, _ = spans(tiny, f"a{EMOJI}b")
    first = next(i for i, token in enumerate(tokens) if tiny.tokenizer.byte(token) is not None)
    for place in range(first, first + 4):
        assert (first, first + 4, EMOJI) in Characters(tiny.tokenizer).spans(tokens, place, place + 1)
    assert Characters(tiny.tokenizer).spans(tokens, first + 4, len(tokens))[0][0] == first + 4


@pytest.mark.parametrize("text", [f"ab{ACCENT}cd", f"ab{EMOJI}\u200d{EMOJI}cd", "ab\U0001f44d\U0001f3ffcd", "abcd"])
def test_ends_of_texts_do_not_part_characters(text):
    for n in range(len(text) + 2):
        for part, rest in ((characters.first(text, n), text), (characters.last(text, n)[::-1], text[::-1])):
            assert rest.startswith(part) and len(part) <= n
        assert characters.first(text, n)[-1:] != "\u200d"
        assert characters.last(text, n)[:1] not in ("\u0301", "\u200d", "\U0001f3ff") or n >= len(text)


@pytest.fixture(scope="module")
def turning(tiny, tmp_path_factory):
    """Pages of a text with an override that nothing ends, an emoji, and names with half of a surrogate pair."""
    folder = tmp_path_factory.mktemp("turning")
    text = f"The king \u202ewent home. {EMOJI} said"
    sequences = cut([Document("\u202eid\ud800", "s", text)], tiny.tokenizer, 64)
    autoencoder, T = autoencoder_for(tiny, 192), 64
    Z = autoencoder.width
    tokens = sequences.tokens[0].tolist()
    bytes_ = [i for i, token in enumerate(tokens) if tiny.tokenizer.byte(token) is not None]
    activation = np.zeros((Z, 1, T), np.float32)
    activation[5, 0, bytes_[-4:]] = [1.0, 0.0, 8.0, 0.5]  # the emoji's
    fired, histogram = np.zeros(Z, np.int64), np.zeros((Z, 32), np.int64)
    fired[5], histogram[5, 31] = 3, 1
    sequence = np.full((Z, 1), -1, np.int32)
    sequence[5, 0] = 0
    statistics = LatentStatistics(
        100, fired, activation[:, 0].max(1), histogram, np.full(Z, 8.0), sequence, activation.argmax(-1), activation
    )
    pages.write_latents(folder, "", "\u202eA", autoencoder, statistics, None, sequences, tiny.tokenizer, ABOUT)
    return folder


def test_a_text_that_turns_direction_turns_nothing_after_it(turning):
    for name, least in (("5.html", 4), ("index.html", 2)):  # names, the document's, the text
        parsed = Parsed((turning / name).read_text(encoding="utf-8"))
        assert sum("\u202e" in words for words in parsed.words) >= least + 1  # and the title
        assert not any("\u202e" in words for words in parsed.bare)
        assert name == "index.html" or "\\ud800" in "".join(parsed.words)


def test_a_character_has_the_strongest_shade_of_its_bytes(turning):
    page = (turning / "5.html").read_text(encoding="utf-8")
    assert f'<mark class="peak" style="--a:1.00" title="1, 0, 8, 0.5">{EMOJI}</mark>' in page
    assert "&lt;0x" not in page
    listed = (turning / "index.html").read_text(encoding="utf-8")
    assert f'<mark style="--a:1">{EMOJI}</mark>' in listed


def test_headings_sort_by_keyboard_figures_downwards_first(built):
    page = (built / "a" / "b" / "index.html").read_text(encoding="utf-8")
    heads = re.findall(r'<th([^>]*)><button type="button" data-first="(\w+)">([^<]*)</button></th>', page)
    assert [(kind, name) for _, kind, name in heads] == [
        *(("ascending", "latent"), ("descending", "fires on"), ("descending", "largest")),
        *(("text", "raises the logits of"), ("text", "strongest on")),
    ]
    assert [' aria-sort="descending"' in about for about, _, _ in heads] == [False, True, False, False, False]


def test_tables_scroll_on_a_phone(built):
    for page in (built / "index.html", built / "a" / "b" / "index.html"):
        assert re.search(r'<div class="scroll">\s*<table', page.read_text(encoding="utf-8"))
    style = (built / "style.css").read_text(encoding="utf-8")
    assert ".scroll { overflow-x: auto; }" in style and "max-width: 100%" in style


def test_dollars_in_names_are_no_formulas(tmp_path):
    metrics = sae.Metrics("$x^$", 100, 90, 3.0, 0.2, 3.0, 3.1, 6.0, 0.1, 0.97, 4, 8, 9)
    tradeoff.draw([metrics], tmp_path / "t.png", r"$\nothing{$ of $")
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"


def test_the_peak_may_be_bos_or_padding(tiny, tmp_path):
    """By a rule that counts them."""
    sequences = cut([Document("d", "s", "the king")], tiny.tokenizer, 8)
    activation = np.zeros((2, 1, 8), np.float32)
    activation[0, 0, 0], activation[1, 0, 7] = 3.0, 2.0
    one, histogram = np.ones(2, np.int64), np.ones((2, 32), np.int64)
    first, peak = np.zeros((2, 1), np.int32), activation.argmax(-1)
    statistics = LatentStatistics(8, one, activation.max((1, 2)), histogram, np.full(2, 4.0), first, peak, activation)
    autoencoder = autoencoder_for(tiny, 192)
    pages.write_latents(tmp_path, "", "x", autoencoder, statistics, None, sequences, tiny.tokenizer, ABOUT)
    for name, piece in (("0.html", tiny.tokenizer.bos), ("1.html", tiny.tokenizer.pad)):
        assert tiny.tokenizer.piece(piece) in Parsed((tmp_path / name).read_text(encoding="utf-8")).words


def test_control_characters_are_shown_as_labels(tmp_path):
    metrics = sae.Metrics("layer_2/resid_post", 100, 90, 3.0, 0.2, 3.0, 3.1, 6.0, 0.1, 0.97, 4, 8, 9)
    row = {"href": "a/index.html", "site": "a\tb", "width": 8, "target": "\x00\x1b[31m\x85\ufffe", "metrics": metrics}
    page = pages.write_index(tmp_path, "m\x7f\r", [row], 100, ABOUT).read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe]", page)
    words = "".join(Parsed(page).words)
    assert "<0x00><0x1B>[31m<0x85><0xFFFE>" in words and "m<0x7F><0x0D>" in words and "a\tb" in words
