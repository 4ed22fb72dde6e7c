"""A plugin of pytest that writes which functions of the library each test enters, and how long it takes.

`pytest -p tests.mutation.entered` appends a line of JSON for each test to a file in the folder that `MUTATION_ENTERED`
names. Python's monitoring (3.12 and later) reports each function once for each test, so that tests stay fast."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2]) + os.sep
PACKAGES = ("mishax_lite", "gemma", "sae")
functions: set[tuple[str, str]] = set()


def enter(code, offset):
    name = code.co_filename
    if name.startswith(ROOT) and name[len(ROOT) :].split(os.sep)[0] in PACKAGES:
        functions.add((Path(name[len(ROOT) :]).as_posix(), code.co_qualname))
    return sys.monitoring.DISABLE


def pytest_configure(config):
    monitoring = sys.monitoring
    monitoring.use_tool_id(monitoring.PROFILER_ID, "tests.mutation")
    monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.PY_START, enter)
    monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.PY_START)


def pytest_unconfigure(config):
    sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
    sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    functions.clear()
    sys.monitoring.restart_events()
    start = time.perf_counter()
    result = yield
    record = {"test": item.nodeid, "seconds": time.perf_counter() - start, "functions": sorted(functions)}
    with open(Path(os.environ["MUTATION_ENTERED"]) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return result
