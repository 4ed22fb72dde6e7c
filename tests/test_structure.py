"""The house keeps to its plan: imports in one direction, and a BUILD file that says what is there."""

import ast
import re
import statistics
import sys
from pathlib import Path

import pytest

from experiments.commands import LAUNCHES
from tests.bazel import FLOORS, ROOT, build, expected_targets, imports, module_file


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
    assert (ROOT / "BUILD").read_text(encoding="utf-8") == build(), "run: make build-files"


def rules():
    """By name, the targets of BUILD as Bazel reads them: {attribute: value}, a glob as the files that it matches."""
    text = (ROOT / "BUILD").read_text(encoding="utf-8")
    found, loaded = {}, []

    def rule(kind):
        def define(name, **attributes):
            assert name not in found, f"{name} twice"
            found[name] = {"kind": kind, **attributes}

        return define

    def glob(patterns):
        # `**` at the end: files to Bazel, folders to pathlib.
        paths = [path for one in patterns for path in ROOT.glob(re.sub(r"\*\*$", "**/*", one)) if path.is_file()]
        files = {path.relative_to(ROOT).as_posix() for path in paths}
        assert files, patterns
        return sorted(files)

    names = {"load": lambda *what: loaded.append(what), "package": lambda **_: None, "glob": glob}
    exec(compile(text, "BUILD", "exec"), names | {kind: rule(kind) for kind in ("py_library", "py_test")})
    assert loaded == [("@rules_python//python:defs.bzl", "py_library", "py_test")]
    return found


def locked():
    """The packages of requirements.lock, as Bazel's labels have them."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {re.match(r"[a-z0-9._-]+", line)[0].replace("-", "_").replace(".", "_") for line in lines if "==" in line}


def test_every_label_of_build_is_a_target_or_a_locked_package():
    targets, packages = rules(), locked()
    for name, rule in targets.items():
        for label in rule.get("deps", []):
            package = label.removeprefix("@pip//")
            assert package in packages if label != package else label.removeprefix(":") in targets, f"{name}: {label}"
        for file in (*rule["srcs"], *rule.get("data", [])):
            assert (ROOT / file).is_file(), f"{name}: {file}"
        if rule["kind"] == "py_test":
            assert rule["main_module"] == "pytest" and rule["args"] == rule["srcs"] and len(rule["srcs"]) == 1
            assert {":tests", "@pip//pytest", "@pip//pytest_xdist"} <= set(rule["deps"])


def test_every_python_file_is_in_one_target():
    sources = sorted(file for rule in rules().values() for file in rule["srcs"])
    tree = sorted(file.relative_to(ROOT).as_posix() for floor in FLOORS for file in (ROOT / floor).rglob("*.py"))
    assert sources == tree


def test_module_bazel_has_what_build_loads():
    """Read as Python, which Starlark's syntax is a part of; only the names that BUILD uses are checked."""
    calls, deps = {}, []

    class Extension:
        def __init__(self, label, name):
            assert label.startswith("@rules_python//python/extensions:")
            self.name = name

        def __getattr__(self, tag):
            return lambda **attributes: calls.setdefault(f"{self.name}.{tag}", attributes)

    names = {
        "module": lambda **_: None,
        "bazel_dep": lambda name, version: deps.append(name),
        "use_extension": Extension,
        "use_repo": lambda extension, *repos: calls.setdefault("repos", repos),
    }
    exec(compile((ROOT / "MODULE.bazel").read_text(encoding="utf-8"), "MODULE.bazel", "exec"), names)
    assert deps == ["rules_python"] and calls["repos"] == ("pip",) == (calls["pip.parse"]["hub_name"],)
    assert calls["pip.parse"]["requirements_lock"] == "//:requirements.lock"
    assert calls["pip.parse"]["python_version"] == calls["python.toolchain"]["python_version"] == "3.11"


def test_targets_make_no_circle():
    graph = {name: {d for d in needed if d.startswith(":")} for name, (_, needed) in expected_targets().items()}
    while graph:
        free = {name for name, needed in graph.items() if not needed & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in free}


@pytest.mark.parametrize("floor", FLOORS)
def test_modules_make_no_circle(floor):
    graph = {}
    for file in (ROOT / floor).rglob("*.py"):
        names = [name for name in imports(file, at_once=True) if name.split(".")[0] == floor]
        graph[file] = {module_file(name) for name in names} - {file, None}
    while graph:
        free = {file for file, needed in graph.items() if not needed & set(graph)}
        assert free, f"a circle among {sorted(str(file.relative_to(ROOT)) for file in graph)}"
        graph = {file: needed for file, needed in graph.items() if file not in free}


def test_half_of_the_files_are_short():
    lengths = [
        len(file.read_text(encoding="utf-8").splitlines()) for floor in FLOORS for file in (ROOT / floor).rglob("*.py")
    ]
    assert statistics.median(lengths) <= 150


def test_files_are_replaced_by_one_helper():
    """What else renames is a store's claim, a journal of several files, and a folder: no replacement of one file."""
    allowed = {"mishax_lite/whole_files.py": 2, "sae/files.py": 1, "sae/folders.py": 4, "sae/store/places.py": 3}
    calls = {}
    for file in (file for floor in FLOORS[:3] for file in (ROOT / floor).rglob("*.py")):
        attributes = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Attribute)]
        names = [f"{node.value.id}.{node.attr}" for node in attributes if isinstance(node.value, ast.Name)]
        if count := sum(name in ("os.replace", "os.rename", "os.link", "shutil.move") for name in names):
            calls[file.relative_to(ROOT).as_posix()] = count
    assert calls == allowed


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
