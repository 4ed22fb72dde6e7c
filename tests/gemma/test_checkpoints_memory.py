"""What the host holds while a model is loaded: the model once, and its largest tensor."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
from gemma.model import param_shapes
from tests.gemma import ggufs

ROOT = Path(__file__).parents[2]
CONFIG = gemma.Config(
    "large", 80_000, 8, 512, 2048, 8, 4, 64, 0.125, 64, attn_softcap=None, final_softcap=None, qk_norm=True
)
SLACK = 48  # MiB: blocks on their way, and what the allocator keeps
MEASURE = """
import sys, gemma
def megabytes(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) / 1024
gemma.load(sys.argv[1])  # what JAX and Orbax take for themselves
before = megabytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
model = gemma.load(sys.argv[2])
print(megabytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures through Linux's /proc")
@pytest.mark.parametrize("format", ["orbax", "huggingface", "gguf"])
def test_the_model_once_and_its_largest_tensor(format, tmp_path):
    """On one CPU device, where the host's memory is the device's too. The embedding is more than half of this model."""
    rng = np.random.default_rng(0)
    paths = []
    for name, config in (("small", dataclasses.replace(CONFIG, vocab_size=800, num_layers=1)), ("large", CONFIG)):
        shapes = param_shapes(config, jnp.float32)
        params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
        path, model = tmp_path / name, gemma.Model(params, config)
        if format == "gguf":
            ggufs.write(path, model, words=[])
        else:
            gemma.save(model, path, format)
        paths.append(path)
    sizes = [leaf.nbytes / 2**20 for leaf in jax.tree.leaves(params)]
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    peak, allowed = float(process.stdout), sum(sizes) + max(sizes)
    print(f"{format}: peak {peak:.0f} MiB, model {sum(sizes):.0f}, largest tensor {max(sizes):.0f}")
    assert sum(sizes) - SLACK < peak < allowed + SLACK, f"{peak:.0f} MiB, {allowed:.0f} are allowed"
