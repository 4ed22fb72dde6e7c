"""Console commands of the installed package: `mishax-scope` is what `python -m experiments.scope` is in a checkout."""

import importlib
import sys
from pathlib import Path

from .stopping import COMMAND

LAUNCHES = ("evaluate", "explore", "generate", "harvest", "inspect_store", "scope", "train")


def main() -> None:
    """Runs the launch whose command the program is called by."""
    name = Path(sys.argv[0]).stem.removeprefix(COMMAND).replace("-", "_")
    if name not in LAUNCHES:
        sys.exit(f"error: no launch {name!r}: there are {', '.join(LAUNCHES)}")
    try:
        from . import running

        launch = importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name != "absl":
            raise
        sys.exit("error: launches need the package absl-py: pip install absl-py tensorboardX (the extra `launch`)")
    running.run(launch.main, launch.check_flags)
