"""Prints all mutants of files, a line of JSON each; runs in the environment of mutmut, which makes them.

Usage: `python mutants.py ROOT PATH...`, with paths relative to ROOT. Mutants of texts are left out: most are words of
messages. A mutant is `{"path", "line", "before", "after"}`: the lines that it replaces, from the 1-based `line` on, and
the lines that take their place."""

import difflib
import json
import sys
from pathlib import Path

import libcst
from mutmut.mutation.file_mutation import create_mutations

TEXTS = libcst.SimpleString | libcst.FormattedString | libcst.ConcatenatedString


def mutants(path: str, text: str):
    """Yields the mutants of a file that change more than texts, in the order of mutmut."""
    module, mutations, *_ = create_mutations(path, text)
    lines = text.splitlines(keepends=True)
    for mutation in mutations:
        if isinstance(mutation.original_node, TEXTS):
            continue
        mutated = module.deep_replace(mutation.original_node, mutation.mutated_node).code.splitlines(keepends=True)
        matcher = difflib.SequenceMatcher(None, lines, mutated, autojunk=False)
        changes = [opcode for opcode in matcher.get_opcodes() if opcode[0] != "equal"]
        if changes:
            (_, start, _, mutated_start, _), (_, _, end, _, mutated_end) = changes[0], changes[-1]
            before, after = "".join(lines[start:end]), "".join(mutated[mutated_start:mutated_end])
            yield {"path": path, "line": start + 1, "before": before, "after": after}


if __name__ == "__main__":
    root, *paths = sys.argv[1:]
    for path in paths:
        for mutant in mutants(path, (Path(root) / path).read_text(encoding="utf-8")):
            print(json.dumps(mutant))
