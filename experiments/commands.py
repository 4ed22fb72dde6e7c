"""Console commands of the installed package: `mishax-scope` does what `python -m experiments.scope` does in a
checkout."""

import importlib
import sys
from pathlib import Path

from .stopping import COMMAND

LAUNCHES = ("convert", "evaluate", "explore", "generate", "harvest", "inspect_store", "release", "scope", "train")
# Packages that launches need and the library does not, by their import names.
PACKAGES = {"absl": "absl-py", "jinja2": "jinja2", "matplotlib": "matplotlib", "tensorboardX": "tensorboardX"}


def main() -> None:
    """Runs the launch whose name the command has."""
    name = Path(sys.argv[0]).stem.removeprefix(COMMAND).replace("-", "_")
    if name not in LAUNCHES:
        sys.exit(f"error: no launch is called {name!r}: the launches are {', '.join(LAUNCHES)}")
    try:
        from . import running

        launch = importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        every = " ".join(PACKAGES.values())
        sys.exit(f"error: launches need the package {PACKAGES[error.name]}: pip install {every} (the extra `launch`)")
    running.run(launch.main, launch.check_flags, getattr(launch, "ARGUMENTS", ()))
