"""Metrics as text for a terminal, and records as a table."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from sae.evaluation.fidelity import Metrics


def table(metrics: Sequence[Metrics], targets: Sequence[str] | None = None) -> str:
    """Returns one line per autoencoder under a line of headings, which says over how many tokens latents are dead.

    Args:
        metrics: of each autoencoder.
        targets: the L0 that each aimed at, for a column; None for no such column.

    Raises:
        ValueError: for another number of targets than of metrics.

    Example:
        >>> one = Metrics("embed", 2000, 1900, 3.0, 0.25, 2.0, 2.5, 4.0, 0.5, 0.75, 7, 96, 20)
        >>> print(table([one]))
        site   width   L0    FVU  delta loss (nats)  loss recovered  dead in 2,000 tokens
        embed     96  3.0  0.250              0.500           0.750                     7
    """
    tokens = sorted({m.tokens for m in metrics})
    over = f"dead in {tokens[0]:,} tokens" if len(tokens) == 1 else "dead (in tokens)"
    columns = {
        "site": [m.site for m in metrics],
        "width": [str(m.width) for m in metrics],
        "target": list(targets or []),
        "L0": [f"{m.l0:.1f}" for m in metrics],
        "FVU": [f"{m.fvu:.3f}" for m in metrics],
        "delta loss (nats)": [f"{m.delta_loss:.3f}" for m in metrics],
        "loss recovered": [f"{m.loss_recovered:.3f}" for m in metrics],
        over: [str(m.dead) if len(tokens) == 1 else f"{m.dead} ({m.tokens:,})" for m in metrics],
    }
    if targets is None:
        del columns["target"]
    return in_columns(columns)


def in_columns(columns: Mapping[str, Sequence[str]]) -> str:
    """Returns cells under their headings: the first column to the left, the others to the right.

    Args:
        columns: {heading: cells}, all of the same length.

    Raises:
        ValueError: for columns of unequal length.
    """
    lengths = {heading: len(cells) for heading, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a table are of one length, got {lengths}")
    widths = [max(map(len, [heading, *cells])) for heading, cells in columns.items()]
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def as_table(records: Sequence[Mapping[str, Any]]) -> Any:
    """Returns records, such as `sae.train(...).history`, as columns.

    Args:
        records: mappings. A name that a record lacks is None there.

    Returns:
        A `pandas.DataFrame` where pandas is installed, else {name: list}; both have `["fvu"]` for one column.

    Example:
        >>> table = sae.as_table([{"step": 0, "l0": 9.5}, {"step": 50, "l0": 8.0, "fvu": 0.5}])
        >>> list(table["l0"])
        [9.5, 8.0]
    """
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    if importlib.util.find_spec("pandas") is None:
        return columns
    # By name, since pandas is no requirement of this package, and no dependency that a build must have.
    return importlib.import_module("pandas").DataFrame(columns)
