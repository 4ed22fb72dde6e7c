"""Tries a sample of mutants against the tests that enter their functions: `make mutation`.

The mutants that no test notices are printed and written to `runs/mutation/result.json`. Each becomes a test, or an
entry of `equivalent.jsonl` beside this file: the mutant, and the `reason` why no test could notice it."""

import argparse
import collections
import concurrent.futures
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.mutation.choosing import covering, enclosing_function

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.jsonl")
OPTIONS = ["-o", "addopts=--import-mode=importlib --strict-markers", "-m", "not killed and not slow and not fuzz"]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record_tests(folder: Path, tests: list[str]) -> list[dict]:
    """Returns which functions each test enters; runs the tests unless the folder has the records of an earlier run."""
    records = folder / "entered"
    if not records.exists():
        part = folder / "entered.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutation.entered", "-n", "2", *OPTIONS, *tests]
        process = subprocess.run(command, cwd=ROOT, env=environment(folder) | {"MUTATION_ENTERED": str(part.resolve())})
        if process.returncode:
            sys.exit("the tests fail without a mutant: mend them first")
        part.rename(records)
    return [record for path in sorted(records.glob("*.jsonl")) for record in lines_of(path)]


def environment(folder: Path) -> dict[str, str]:
    """The environment's variables of tests; what one run compiles the next need not."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return os.environ | cache | {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}


def copy_tree(folder: Path) -> Path:
    """Copies what git tracks of the working tree, which mutants are then put into."""
    shutil.rmtree(folder, ignore_errors=True)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def attempt(mutant: dict, tree: Path, records: list[dict], folder: Path, limit: int, seconds: float) -> dict:
    """Returns the mutant with its `outcome`: "noticed", "survived", "no test"; and the number of `tests` that ran."""
    file = tree / mutant["path"]
    text = file.read_text(encoding="utf-8")
    tests = covering(records, mutant["path"], enclosing_function(text, mutant["line"]), limit, seconds)
    if not tests:
        return mutant | {"outcome": "no test", "tests": 0}
    lines = text.splitlines(keepends=True)
    start = mutant["line"] - 1
    end = start + len(mutant["before"].splitlines())
    if "".join(lines[start:end]) != mutant["before"]:
        raise ValueError(f"{mutant['path']}:{mutant['line']} has changed since the mutants were made: run again")
    file.write_text("".join([*lines[:start], mutant["after"], *lines[end:]]), encoding="utf-8")
    try:
        # A mutant may loop for ever: that is noticed too.
        patience = 60 + 4 * sum(record["seconds"] for record in tests)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *OPTIONS]
        command += [record["test"] for record in tests]
        run = subprocess.Popen(
            command,
            cwd=tree,
            env=environment(folder),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = run.communicate(timeout=patience)
            noticed = run.returncode != 0
            if run.returncode not in (0, 1, 2):
                raise RuntimeError(f"pytest ended with {run.returncode}: {output[-2000:].decode(errors='replace')}")
        except subprocess.TimeoutExpired:
            noticed = True
        finally:
            if run.poll() is None:
                os.killpg(run.pid, 9)
                run.wait()
        return mutant | {"outcome": "noticed" if noticed else "survived", "tests": len(tests)}
    finally:
        file.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutmut", required=True, help="the Python of an environment that has mutmut")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/mutation")
    parser.add_argument("--sources", nargs="+", default=["sae/trainer", "sae/store", "mishax_lite"])
    parser.add_argument("--tests", nargs="+", default=["tests/mishax_lite", "tests/sae"])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="no mutant is begun later")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=30, help="the greatest number of tests for a mutant")
    parser.add_argument("--seconds", type=float, default=40, help="these tests' joint time without a mutant")
    arguments = parser.parse_args()
    start = time.monotonic()
    folder = arguments.folder
    records = record_tests(folder, arguments.tests)

    places = [ROOT / name for name in arguments.sources]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.py")))]
    sources = [file.relative_to(ROOT).as_posix() for file in files]
    command = [arguments.mutmut, "-m", "tests.mutation.mutants", str(arguments.count), str(arguments.seed)]
    command += [str(EQUIVALENT), *sources]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout
    chosen = [json.loads(line) for line in printed.splitlines()]
    print(f"{len(chosen)} mutants are tried, with those of {len(records)} tests that enter their functions", flush=True)

    trees: queue.Queue[Path] = queue.Queue()
    for i in range(arguments.workers):
        trees.put(copy_tree(folder / f"tree_{i}"))

    def work(mutant: dict) -> dict:
        if time.monotonic() - start > 60 * arguments.minutes:
            return mutant | {"outcome": "not tried", "tests": 0}
        tree = trees.get()
        try:
            return attempt(mutant, tree, records, folder, arguments.limit, arguments.seconds)
        finally:
            trees.put(tree)

    with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
        results = []
        for result in pool.map(work, chosen):
            results.append(result)
            if result["outcome"] in ("survived", "no test"):
                removed, added = (result[key].rstrip("\n").replace("\n", "\n    ") for key in ("before", "after"))
                print(f"{result['path']}:{result['line']}: {result['outcome']} ({result['tests']} tests)")
                print(f"  - {removed}\n  + {added}", flush=True)
    (folder / "result.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    counts = collections.Counter(result["outcome"] for result in results)
    print(f"seed {arguments.seed}: {dict(counts)} in {(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
