"""Tables and cells of Markdown, whose texts come from records that anybody may have written."""

from collections.abc import Sequence


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table.

    Args:
        headings: of the columns.
        rows: the cells of each row.

    Example:
        >>> print(markdown(["of", "licence"], [["text", "a|b"]]))
        | of | licence |
        | --- | --- |
        | text | a\\|b |
    """
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def code(text: str) -> str:
    """Returns a text as code, in which nothing is markup.

    Example:
        >>> code("layer_3")
        '`layer_3`'
    """
    return f"`{text.replace('`', ' ')}`"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
