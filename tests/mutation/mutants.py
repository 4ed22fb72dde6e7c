"""Prints a sample of mutants, a line of JSON each; runs in the environment of mutmut, which makes them.

Usage: `python -m tests.mutation.mutants COUNT SEED EQUIVALENT PATH...` in the root of the repository; EQUIVALENT is a
file of mutants that are left out. Mutants of texts are left out too: most are words of messages. A mutant is
`{"path", "line", "before", "after"}`: the lines that it replaces, from the 1-based `line` on, and those in their place.
"""

import json
import sys
from pathlib import Path

import libcst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import create_mutations

from tests.mutation.choosing import sample

TEXTS = libcst.SimpleString | libcst.FormattedString | libcst.ConcatenatedString


class Mutants:
    """The mutants of a file."""

    def __init__(self, path: str):
        self.path, self.text = path, Path(path).read_text(encoding="utf-8")
        self.module, self.mutations, *_ = create_mutations(path, self.text)
        positions = MetadataWrapper(self.module, unsafe_skip_copy=True).resolve(PositionProvider)
        self.places = [
            (path, positions[mutation.original_node].start.line, number)
            for number, mutation in enumerate(self.mutations)
            if not isinstance(mutation.original_node, TEXTS) and mutation.original_node in positions
        ]

    def render(self, number: int) -> dict:
        """Returns the mutant of a number."""
        mutation, lines = self.mutations[number], self.text.splitlines(keepends=True)
        mutated = self.module.deep_replace(mutation.original_node, mutation.mutated_node).code.splitlines(keepends=True)
        start = next(i for i, (a, b) in enumerate(zip(lines, mutated, strict=False)) if a != b)
        same = 0  # at the end
        while same < min(len(lines), len(mutated)) - start and lines[-1 - same] == mutated[-1 - same]:
            same += 1
        before, after = ("".join(text[start : len(text) - same]) for text in (lines, mutated))
        return {"path": self.path, "line": start + 1, "before": before, "after": after}


def main() -> None:
    count, seed, equivalent_file, *paths = sys.argv[1:]
    files = {path: Mutants(path) for path in paths}
    places = [place for file in files.values() for place in file.places]
    file = Path(equivalent_file)
    equivalent = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    print(f"{len(places)} mutants of {len(paths)} files", file=sys.stderr)
    render = lambda path, line, number: files[path].render(number)  # noqa: E731
    for mutant in sample(places, int(count), int(seed), render, equivalent):
        print(json.dumps(mutant))


if __name__ == "__main__":
    main()
