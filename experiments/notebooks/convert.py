"""Makes the notebooks from the Python files beside it, their sources, in Jupytext's percent format.

    python -m experiments.notebooks.convert

They keep no output of cells, so that a notebook is the same file whoever makes it.
"""

from pathlib import Path
from typing import Any

import jupytext

FOLDER = Path(__file__).parent
NAMES = ("a_first_hour", "hooks_on_your_own_model")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(name: str) -> str:
    """Returns the text of a notebook.

    Args:
        name: the name of the Python file, without its suffix.

    Example:
        >>> notebook("a_first_hour").startswith("{")
        True
    """
    result: Any = jupytext.reads((FOLDER / f"{name}.py").read_text(encoding="utf-8"), fmt="py:percent")
    result.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for i, cell in enumerate(result.cells):
        cell["id"] = f"cell-{i}"  # Jupytext's ids are random
        cell["metadata"] = {}
    return jupytext.writes(result, fmt="ipynb")


def main():
    for name in NAMES:
        (FOLDER / f"{name}.ipynb").write_text(notebook(name), encoding="utf-8")


if __name__ == "__main__":
    main()
