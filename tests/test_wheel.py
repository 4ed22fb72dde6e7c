"""The wheel: what it has, and that launches run from it in a folder without a checkout, with what it declares alone."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests import clean

ROOT = Path(__file__).parents[1]
# Pages for readers of the repository, which the wheel leaves out.
PAGES = ("README.md", "FROM_TRANSFORMERLENS_AND_SAELENS.md")
COMMANDS = ("convert", "evaluate", "explore", "generate", "harvest", "inspect-store", "release", "scope", "train")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return clean.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def launch(wheel):
    """What `pip install mishax-lite[launch]` would make."""
    return clean.install(wheel, wheel.parent / "launch", ["launch"])


@pytest.fixture(scope="module")
def bare(wheel):
    """What `pip install mishax-lite` would make."""
    return clean.install(wheel, wheel.parent / "bare")


def run(site: Path, cwd: Path, command: str, *flags: str) -> subprocess.CompletedProcess:
    """A console command, as pip's script for it runs it."""
    script = f"import sys; sys.argv[0] = {command!r}; from mishax_experiments.commands import main; main()"
    return clean.python(site, cwd, script, *flags)


def test_the_wheel_has_the_packages_with_their_data_and_no_benchmarks(wheel):
    site = wheel.parent / "alone"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    packages = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert packages == {"mishax_lite", "gemma", "sae", "mishax_experiments"}
    assert not [path for path in (site / "mishax_experiments").iterdir() if path.is_dir()]
    for name in ("gemma", "sae", "mishax_lite"):
        for file in (ROOT / name).rglob("*"):
            # Beside code: the shipped model with its text and licences, templates of pages.
            if file.is_file() and "__pycache__" not in file.parts and file.name not in PAGES:
                assert (site / name / file.relative_to(ROOT / name)).exists(), file
    (info,) = site.glob("*.dist-info")
    entries = (info / "entry_points.txt").read_text()
    assert entries.split("\n")[1:-1] == [f"mishax-{name} = mishax_experiments.commands:main" for name in COMMANDS]


def test_every_module_is_a_command_and_says_which_flags_it_has(launch, tmp_path):
    from experiments import commands

    assert {name.replace("_", "-") for name in commands.LAUNCHES} == set(COMMANDS)
    process = run(launch, tmp_path, "/bin/mishax-inspect-store", "--help")
    assert process.returncode == 0, process.stderr
    assert "mishax-inspect-store --store_dir=runs/store --verify" in process.stdout
    assert "--[no]verify" in process.stdout and "--store_dir" in process.stdout and "python -m" not in process.stdout
    refused = run(launch, tmp_path, "/bin/mishax-harvest", "--store_dir=")
    assert refused.returncode == 2 and refused.stderr.startswith("error: --store_dir is empty")
    unknown = run(launch, tmp_path, "/bin/mishax-harvst")
    assert unknown.returncode == 1 and "no launch is called 'harvst'" in unknown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_launch_shows_its_help_with_what_the_wheel_declares(launch, tmp_path, command):
    process = run(launch, tmp_path, f"/bin/mishax-{command}", "--help")
    assert process.returncode == 0 and f"mishax-{command} " in process.stdout, process.stderr
    assert "Traceback" not in process.stderr and "python -m" not in process.stdout


def test_a_launch_from_the_wheel(launch, tmp_path):
    small = ("--sites=layer_0/resid_pre", "--length=16", "--max_sequences=8", "--store_dir=store")
    process = run(launch, tmp_path, "mishax-harvest", *small)
    assert process.returncode == 0, process.stderr
    assert "store: " in process.stdout and "tokens at layer_0/resid_pre; left out: special tokens" in process.stdout
    assert (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.slow
def test_the_whole_way_from_the_wheel(launch, tmp_path):
    """Text, store, autoencoders, figures and pages; without a checkout anywhere on the path."""
    small = ("--steps=60", "--save_every=10", "--batch_size=256", "--width=256", "--l0_targets=10,30")
    text = ("--max_sequences=96", "--shuffle_rows=2016", "--eval_sequences=16", "--length=64", "--out_dir=out")
    process = run(launch, tmp_path, "mishax-scope", *small, *text)
    assert process.returncode == 0, process.stderr
    assert list((tmp_path / "out").rglob("index.html")) and list((tmp_path / "out").rglob("*.png"))
    held_out = ("--saes_dir=saes", "--eval_sequences=16", "--length=64")
    for command, *flags in (
        ("inspect-store", "--store_dir=out/store", "--verify"),
        ("train", "--store_dir=out/store", "--saes_dir=saes", "--checkpoint_dir=checkpoints", *small),
        ("evaluate", *held_out),
        ("explore", *held_out, "--pages_dir=pages"),
        ("generate", "--prompt=The sea", "--max_new_tokens=4"),
    ):
        process = run(launch, tmp_path, f"mishax-{command}", *flags)
        assert process.returncode == 0, (command, process.stderr)
    assert list((tmp_path / "saes").rglob("metrics.json")) and (tmp_path / "pages" / "index.html").exists()


WITHOUT = """
import importlib.util, sys
for name in ("jinja2", "matplotlib", "tensorboardX"):
    assert importlib.util.find_spec(name) is None, name
sys.modules["fcntl"] = None  # as on Windows
import gemma, sae

model = gemma.load("gemma2-tiny")
text = "In the beginning God created the heaven and the earth. " * 3
documents = [sae.text.Document(str(i), "s", text) for i in range(8)]
sequences, again = (sae.text.cut(documents, model.tokenizer, 16, folder="text", key="genesis") for _ in range(2))
assert again.tokens.tolist() == sequences.tokens.tolist()
store = sae.harvest(model, sequences, ["layer_0/mlp_out"], "store")
(autoencoder,), history = sae.train(sae.short_run("layer_0/mlp_out", 16, 3, batch_size=16, l0_target=4), store)
sae.save(autoencoder, "mine")
print("loss", history[-1]["loss"])
for needs in (
    lambda: sae.TensorBoard("events"),
    lambda: importlib.import_module("sae.explorer.pages"),
    lambda: importlib.import_module("sae.explorer.tradeoff"),
    lambda: model.tokenizer.chat([{"role": "user", "content": "Who?"}], template="{{ messages }}"),
):
    try:
        needs()
    except (ValueError, ModuleNotFoundError) as error:
        print(error)
"""


@pytest.mark.slow
def test_the_library_works_without_extras_and_says_which_one_is_missing(bare, tmp_path):
    """On a system without `fcntl`, too: text, harvest and training need none of them."""
    process = clean.python(bare, tmp_path, WITHOUT)
    assert process.returncode == 0, process.stderr
    loss, *messages = process.stdout.splitlines()[-5:]
    assert loss.startswith("loss ") and (tmp_path / "mine").exists()
    for message, (package, extra) in zip(
        messages,
        (("tensorboardX", "tensorboard"), ("jinja2", "pages"), ("matplotlib", "pages"), ("jinja2", "chat")),
        strict=True,
    ):
        assert message.endswith(f"package {package}: pip install {package} (the extra `{extra}`)"), message
    refused = run(bare, tmp_path, "mishax-explore")
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("absl-py jinja2 matplotlib tensorboardX (the extra `launch`)")
