"""The links of a folder of HTML pages, and which of them lead nowhere."""

import html.parser
import urllib.parse
from pathlib import Path


class _Page(html.parser.HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(folder: Path) -> list[str]:
    """Returns each relative link whose file or anchor is missing in a folder of pages, as `page: link`, sorted.

    Example:
        >>> _ = Path("page.html").write_text('<a id="here" href="#here"></a><a href="other.html"></a>')
        >>> broken_links(Path("."))
        ['page.html: other.html']
    """
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    broken = set()
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            anchor = urllib.parse.unquote(parts.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.add(f"{path.relative_to(folder.resolve()).as_posix()}: {link}")
    return sorted(broken)
