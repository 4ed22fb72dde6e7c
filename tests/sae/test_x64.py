"""Where JAX has 64 bits by default, all is as elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.sae import x64_worker

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("quick_starts")


class Stop(Exception):
    pass


def stopped(steps, **_):
    for step in steps:
        if step == 5:
            raise Stop
        yield step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # eight steps are no run
def test_the_road_under_x64_is_that_without(tmp_path):
    """From a checkpoint in float32, of a run that was stopped."""
    with pytest.raises(Stop):
        x64_worker.road(tmp_path / "stopped", stopped)
    shutil.copytree(tmp_path / "stopped", tmp_path / "whole")
    want = x64_worker.road(tmp_path / "whole")
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.sae.x64_worker", str(tmp_path / "stopped")]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    got = json.loads(process.stdout.splitlines()[-1])
    assert got.pop("x64") is True
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
