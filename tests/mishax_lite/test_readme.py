"""The README's examples run, in one go, as they stand."""

import re
from pathlib import Path

import pytest

import mishax_lite


def test_every_example_runs():
    pytest.importorskip("flax", reason="the README patches Flax")
    pytest.importorskip("equinox", reason="the README names an Equinox model's modules")
    text = (Path(mishax_lite.__file__).parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?s)```python\n(.*?)```", text)
    assert len(blocks) == 12
    exec(compile("\n".join(blocks), "mishax_lite/README.md", "exec"), {})
