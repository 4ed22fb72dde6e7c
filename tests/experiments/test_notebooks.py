"""The notebooks: what their sources make, and that they run from the wheel alone and print what they say."""

import glob
import importlib.util
import json
import re
import subprocess
import sys

import pytest

for package in ("jupytext", "nbclient"):
    pytest.importorskip(package, reason="jupytext makes the notebooks and nbclient runs them (the extra `notebooks`)")

import nbclient  # noqa: E402
import nbformat  # noqa: E402

from experiments.notebooks import convert  # noqa: E402
from tests import clean  # noqa: E402


@pytest.mark.parametrize("name", convert.NAMES)
def test_a_notebook_is_what_its_source_makes(name):
    kept = (convert.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert kept == convert.notebook(name), "run: python -m experiments.notebooks.convert"
    nbformat.validate(nbformat.reads(kept, as_version=4))
    cells = json.loads(kept)["cells"]
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_every_source_is_a_notebook():
    sources = {file.stem for file in convert.FOLDER.glob("*.py")} - {"__init__", "convert"}
    assert sources == set(convert.NAMES) == {file.stem for file in convert.FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize(
    ("source", "devices", "argument"),
    [
        (None, [], str(clean.ROOT)),
        (None, ["/dev/accel0"], f"{clean.ROOT}[tpu]"),
        ("mine.whl", [], "mine.whl"),
        ("git+https://host/me/fork", ["/dev/vfio/0"], "mishax-lite[tpu] @ git+https://host/me/fork"),
        ("", [], None),
    ],
)
@pytest.mark.parametrize("name", convert.NAMES)
def test_the_first_cell_installs_what_is_missing(name, source, devices, argument, tmp_path, monkeypatch):
    """From the checkout around it, or where SOURCE says; with libtpu where there is a TPU."""
    cell = next(cell for cell in json.loads(convert.notebook(name))["cells"] if cell["cell_type"] == "code")
    code, calls = "".join(cell["source"]).replace('SOURCE = ""', f"SOURCE = {source or ''!r}"), []
    monkeypatch.chdir(convert.FOLDER if source is None else tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command))
    monkeypatch.setattr(glob, "glob", lambda pattern: [one for one in devices if one.startswith(pattern[:9])])
    exec(code, {})
    assert not calls
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if argument is None:
        with pytest.raises(RuntimeError, match="let SOURCE say where it is"):
            exec(code, {})
        return
    exec(code, {})
    assert calls == [[sys.executable, "-m", "pip", "install", "--quiet", argument]]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """A folder for JUPYTER_PATH whose kernel has what `pip install mishax-lite[notebooks]` would bring, and no more."""
    folder = tmp_path_factory.mktemp("notebooks")
    site = clean.install(clean.build_wheel(folder), folder / "site", ["notebooks"])
    kernel = {
        "argv": [sys.executable, "-S", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "language": "python",
    }
    kernel |= {"display_name": "wheel", "env": {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}}
    (folder / "kernels" / "wheel").mkdir(parents=True)
    (folder / "kernels" / "wheel" / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
    return folder


def run(name, kernels, folder, monkeypatch) -> str:
    """Runs a notebook in an empty folder, and returns all that its cells print."""
    monkeypatch.setenv("JUPYTER_PATH", str(kernels))
    notebook = nbformat.read(convert.FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, kernel_name="wheel", timeout=900, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.slow
def test_a_first_hour_trains_looks_and_steers(kernels, tmp_path, monkeypatch):
    printed = run("a_first_hour", kernels, tmp_path, monkeypatch)
    l0, fvu, recovered = map(float, re.search(r"L0 (\S+)   FVU (\S+)   loss recovered (\S+)", printed).groups())
    assert 10 < l0 < 26 and fvu < 0.3 and 0.85 < recovered < 1
    plain, steered = map(float, re.search(r"promotes most: (\S+), steered (\S+)", printed).groups())
    assert steered > 2 * plain > 0
    assert len(re.findall(r"(?m)^latent +\d+   fires on", printed)) == 8
    assert "1 x cpu, mesh 1 data x 1 latent" in printed and "300 steps, 307,200 tokens" in printed
    assert (tmp_path / "runs/first_hour/autoencoder/params.npz").exists()


@pytest.mark.slow
def test_hooks_on_your_own_model_capture_edit_and_differentiate(kernels, tmp_path, monkeypatch):
    printed = run("hooks_on_your_own_model", kernels, tmp_path, monkeypatch)
    assert re.search(r"layer_1/pattern +\(1, 4, 32, 32\)", printed) and "layer_0/pattern head 1" in printed
    rows = re.findall(r"(layer_\d)/z head \d: estimated (\S+), measured (\S+)", printed)
    assert len(rows) == 8
    for layer, estimated, measured in rows:
        assert float(measured) < -0.5, "a head that the model does not need"
        if layer == "layer_1":  # all that follows is linear
            assert float(estimated) == pytest.approx(float(measured), abs=0.02)
    assert "(2, 2, 2) largest change by uniform attention" in printed
    assert not list(tmp_path.iterdir())
