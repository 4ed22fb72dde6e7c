"""Builds the reference: `make docs`, or `python -m tests.reference.build FOLDER`.

pdoc renders the docstrings of all modules. The README of a package stands below the docstring of its module; other
Markdown files become pages of their own, and `index.html` leads to the README at the top."""

import importlib
import os
import re
import shutil
import sys
import types
from pathlib import Path

import pdoc

from tests.reference.links import broken_links

ROOT = Path(__file__).parents[2]
PACKAGES = ("mishax_lite", "gemma", "sae")
# Markdown files that belong to no package's module, by the page that each becomes.
GUIDES = {
    "overview": "README.md",
    "launches": "experiments/README.md",
    "from_transformerlens_and_saelens": "sae/FROM_TRANSFORMERLENS_AND_SAELENS.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}
INDEX = """<!doctype html><meta charset="utf-8"><title>mishax-lite</title>
<meta http-equiv="refresh" content="0; url=overview.html">
"""
CODE = re.compile(r"(?s)(```.*?```|`[^`\n]*`)")


def module_pages() -> dict[str, str]:
    """Returns by path in the repository, a Python file's or a package's README's, the page that shows it.

    Files whose names begin with an underscore have no page.
    """
    pages = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT)
            if path.name == "__init__.py":
                page = f"{name.parent.as_posix()}.html"
                pages[name.as_posix()] = pages[(name.parent / "README.md").as_posix()] = page
            elif not path.name.startswith("_"):
                pages[name.as_posix()] = name.with_suffix(".html").as_posix()
    return pages


def module_list(modules: dict[str, pdoc.doc.Module]) -> str:
    """Returns a table of all modules with the first sentences of their docstrings, as Markdown."""
    rows = []
    for name, module in modules.items():
        summary = " ".join(module.docstring.split("\n\n")[0].split()).replace("|", "\\|")
        rows.append(f"| [{name}]({name.replace('.', '/')}.html) | {summary} |")
    return "\n".join(["# All modules", "", "| module | what it is for |", "| --- | --- |", *rows])


def translate(markdown: str, source: str, page: str, pages: dict[str, str], folder: Path) -> str:
    """Returns a README's text with its relative links leading from its page to other pages, or to copies of files.

    Args:
        markdown: The text of the file.
        source: The file's path in the repository.
        page: The path, in the reference, of the page that will show the text.
        pages: By path in the repository, the page that shows a file. Other files are copied.
        folder: The reference's folder, which the copies go into.
    """

    def lead(match: re.Match) -> str:
        address, _, anchor = match[1].partition("#")
        if not address or "://" in address:
            return match[0]
        path = Path(os.path.normpath(ROOT / source / ".." / address)).relative_to(ROOT).as_posix()
        target = pages.get(path)
        if target is None:
            target = f"files/{path}"
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / target)
        relative = os.path.relpath(target, os.path.dirname(page) or ".")
        return f"]({Path(relative).as_posix()}{'#' * bool(anchor)}{anchor})"

    parts = CODE.split(markdown)
    return "".join(part if i % 2 else re.sub(r"\]\(([^)\s]+)\)", lead, part) for i, part in enumerate(parts))


def build(folder: Path) -> list[str]:
    """Writes the reference into a folder, which it replaces, and returns its broken links, as `page: link`.

    Raises:
        FileExistsError: The folder holds something else than a reference.
    """
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "overview.html").exists():
            raise FileExistsError(f"{folder} holds other files than a reference: name an empty or a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    pages = module_pages() | {source: f"{name}.html" for name, source in GUIDES.items()}
    # The docstrings stay as they are: a test may build the reference beside other tests.
    pdoc.render.configure(docformat="google", footer_text="mishax-lite")
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            getattr(module, name)  # what is imported when it is asked for
    sources = {source: page for source, page in pages.items() if source.endswith(".py")}
    names = sorted(page.removesuffix(".html").replace("/", ".") for page in sources.values())
    modules = {name: pdoc.doc.Module.from_name(name) for name in names}
    modules["modules"] = pdoc.doc.Module(types.ModuleType("modules", module_list(modules)))
    for source, page in pages.items():
        if not source.endswith(".md") or not (ROOT / source).exists():
            continue
        text = translate((ROOT / source).read_text(encoding="utf-8"), source, page, pages, folder)
        name = page.removesuffix(".html").replace("/", ".")
        if name in modules:
            modules[name].docstring = f"{modules[name].docstring}\n\n{text}"
        else:
            modules[name] = pdoc.doc.Module(types.ModuleType(name, text))
    for name, module in modules.items():
        path = folder / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pdoc.render.html_module(module, modules), encoding="utf-8")
    (folder / "index.html").write_text(INDEX, encoding="utf-8")
    (folder / "search.js").write_text(pdoc.render.search_index(modules), encoding="utf-8")
    return broken_links(folder)


def main() -> None:
    folder = Path(sys.argv[1])
    broken = build(folder)
    print("\n".join([*broken, f"{folder / 'index.html'}: {len(list(folder.rglob('*.html')))} pages"]))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
