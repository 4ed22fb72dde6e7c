"""The table of tests/peers/README.md, from what the peers' tests measured.

    python -m tests.peers.table runs/peers-saelens runs/peers-sparsify

keeps the figures of these runs in tests/peers/results/ and rewrites the table from all results there.
"""

import datetime
import json
import os
import platform
import sys
from pathlib import Path

from tests.peers import comparing

FOLDER = Path(__file__).parent
README, RESULTS = FOLDER / "README.md", FOLDER / "results"
HEAD = ("| reader | of whom | files | latents | output |", "| --- | --- | --- | --- | --- |")


def keep(run: Path) -> None:
    """Writes the figures of a run to the results."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    figures = comparing.figures(run)
    (peer,) = {comparing.peer(run), *(figure["reader"] for figure in figures)} - {comparing.OURS, None}
    facts = {"peer": peer, "date": datetime.date.today().isoformat(), "machine": machine, "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    name = run.name.removeprefix("peers-")
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def rows(facts: dict) -> list[str]:
    """The rows of one peer: who reads whose files, which, and the largest differences."""
    lines, peer = [], facts["peer"]
    for reader, of in ((peer, comparing.OURS), (comparing.OURS, peer)):
        figures = [figure for figure in facts["figures"] if figure["reader"] == reader]
        read = [figure for figure in figures if "refused" not in figure]
        if read:
            off = " | ".join(f"{max(figure[name] for figure in read):.1e}" for name in ("latents", "out"))
            lines.append(f"| {reader} | {of} | {', '.join(figure['file'] for figure in read)} | {off} |")
        if refused := [figure["file"] for figure in figures if "refused" in figure]:
            lines.append(f"| {reader} | {of} | {', '.join(refused)} | refused by name | |")
    return lines


def table() -> str:
    """The table and the dates, from all results."""
    facts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    dates = sorted({one["date"] for one in facts})
    machines = sorted({one["machine"] for one in facts})
    lines = [*HEAD, *(row for one in facts for row in rows(one))]
    return "\n".join([*lines, "", f"Largest absolute differences ({', '.join(dates)}; {', '.join(machines)}).", ""])


def readme(text: str) -> str:
    """The text with the table in the place of the one that it has."""
    before, _, rest = text.partition(HEAD[0])
    _, _, after = rest.partition("Largest absolute differences (")
    return before + table() + after.partition("\n")[2]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        keep(Path(argument))
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
