"""The house keeps to its plan: imports in one direction, and a BUILD file that says what is there."""

import ast
import re
import sys
from pathlib import Path

import pytest

from experiments.commands import LAUNCHES
from tests.bazel import FLOORS, ROOT, build, expected_targets, imports


@pytest.mark.parametrize("floor", FLOORS[:-1])
def test_imports_point_one_way(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    for file in (ROOT / floor).rglob("*.py"):
        wrong = {name for name in imports(file) if name.split(".")[0] in above}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)} from a floor above its own"


def test_mishax_lite_imports_jax_and_the_standard_library_alone():
    allowed = {"jax", "jaxlib", "numpy", "mishax_lite", *sys.stdlib_module_names}
    for file in (ROOT / "mishax_lite").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(file)} <= allowed, file


def test_sae_knows_no_model():
    """Any language model that speaks `sae.LanguageModel` is as good as another; only docstrings' examples name one."""
    for file in (ROOT / "sae").rglob("*.py"):
        assert "gemma" not in {name.split(".")[0] for name in imports(file)}, file


def test_build_is_what_the_tree_makes_it():
    assert (ROOT / "BUILD").read_text(encoding="utf-8") == build(), "run: python -m tests.bazel"


def test_targets_make_no_circle():
    graph = {name: {d for d in needed if d.startswith(":")} for name, (_, needed) in expected_targets().items()}
    while graph:
        free = {name for name, needed in graph.items() if not needed & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in free}


def test_packages_are_those_that_setup_names():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert 'PACKAGES = ["mishax_lite", "gemma", "sae"]' in text
    for floor in FLOORS[:3]:
        for folder in {file.parent for file in (ROOT / floor).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder} has modules and no __init__.py"


def test_launches_import_each_other_relatively():
    """A wheel has them under another name than a checkout."""
    for file in (ROOT / "experiments").glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if hasattr(node, "names")]
        names = {getattr(node, "module", None) or node.names[0].name for node in nodes if not getattr(node, "level", 0)}
        assert not [name for name in names if name.split(".")[0] in ("experiments", "mishax_experiments")], file


def test_every_launch_is_a_command():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    commands = re.search(r"COMMANDS = (\[.*\])", text)[1]
    launches = [
        file.stem for file in (ROOT / "experiments").glob("*.py") if "running.run(main" in file.read_text("utf-8")
    ]
    assert sorted(launches) == list(LAUNCHES) == [name.replace("-", "_") for name in ast.literal_eval(commands)]


def test_no_module_bears_a_public_functions_name():
    import gemma
    import mishax_lite
    import sae

    for package in (gemma, mishax_lite, sae):
        names = {name for name in dir(package) if callable(getattr(package, name)) and not name.startswith("_")}
        modules = {file.stem for file in Path(package.__file__).parent.glob("*.py")}
        modules |= {folder.name for folder in Path(package.__file__).parent.iterdir() if folder.is_dir()}
        assert not names & modules
