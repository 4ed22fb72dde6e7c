"""Words that the project has given up appear nowhere any more, by exact text: one word for one thing."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mishax_lite", "gemma", "sae", "experiments", "tests")
# By pattern, what stands in its place.
GONE = {
    r"hook points?\b": "site",
    r"\bshare=\(": "worker=(index, count)",
    r"--share\b": "--worker",
    r"\bTrainConfig\b": "sae.Run",
    r"\bsae\.plan\b": "sae.estimate",
    r"\bif it likes\b": "optional",
    r"\bare let be\b": "unchanged",
    r"\bin health\b": "whole",
    r"\bwhat they are of\b": "a noun",
    r"\bwhat was found\b": "a noun",
    r"\bis not there\b": "is missing",
    r"\bare not there\b": "are missing",
    r"\b1 devices\b": "1 device",
    r"(?i)\bplan_only\b": "estimate_only",
    r"\bknown=": "baseline=",
    r"\bif any is there\b": "where one exists",
    r"\bto be had\b": "available",
    r"\bwhat they are called\b": "names",
    r"\bwhat is of\b": "a noun",
    r"\bthat are it\b": "a noun",
    r"\bneed not be there\b": "may be missing",
    r"\bas many as there are\b": "a number",
    r"(?m)^ +(found|there|asked|done|made|renamed) = ": "a noun",
}
# Pages that name other projects' words, and this list; what tests write for themselves may be called as they like.
EXCEPT = {"tests/test_words.py", "sae/FROM_TRANSFORMERLENS_AND_SAELENS.md", "CHANGELOG.md"}


def texts(pattern):
    """By path, the texts that a pattern is looked for in: variables of tests are free."""
    folders = FOLDERS[:-1] if pattern.startswith("(?m)") else FOLDERS
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    paths += ROOT.glob("*.md")
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.parametrize("pattern", GONE)
def test_words_that_are_gone(pattern):
    places = [name for name, text in texts(pattern).items() if name not in EXCEPT and re.search(pattern, text)]
    assert not places, f"{pattern!r} stands in {', '.join(places)}: use {GONE[pattern]!r}"
