"""The table of tests/peers/README.md is what its results say."""

import json

from tests.peers import comparing, table


def test_the_readme_has_the_table_of_the_results():
    text = table.README.read_text(encoding="utf-8")
    assert table.readme(text) == text, "run: python -m tests.peers.table"


def test_no_difference_is_above_the_tolerance():
    for file in table.RESULTS.glob("*.json"):
        for figure in json.loads(file.read_text(encoding="utf-8"))["figures"]:
            assert "refused" in figure or max(figure["latents"], figure["out"]) <= comparing.TOLERANCE, figure
