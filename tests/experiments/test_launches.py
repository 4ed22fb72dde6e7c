"""The launches as a user runs them: processes, exit statuses, one-line errors, resuming after a stop."""

import gzip
import html
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import sae

pytestmark = pytest.mark.usefixtures("quick_starts")
ROOT = Path(__file__).parents[2]
SMALL = (
    *("--max_sequences=96", "--shuffle_rows=2016", "--eval_sequences=16", "--length=64"),
    *("--steps=60", "--save_every=10", "--batch_size=256", "--width=256", "--l0_targets=10,30"),
)


def command(*flags: str, module: str = "experiments.scope") -> list[str]:
    return [sys.executable, "-m", module, *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}


def launch(*flags: str, module: str = "experiments.scope") -> subprocess.CompletedProcess:
    return subprocess.run(command(*flags, module=module), cwd=ROOT, capture_output=True, text=True, env=environment())


def stop_at(line: str, how: signal.Signals, *flags: str) -> tuple[int, str]:
    """Starts a launch and sends a signal once a line has been printed. Returns exit status and standard error."""
    process = subprocess.Popen(
        command(*flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    for printed in process.stdout:
        if printed.startswith(line):
            process.send_signal(how)
            break
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob(pattern)) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, and what it printed."""
    out = tmp_path_factory.mktemp("scope") / "out"
    process = launch(f"--out_dir={out}", *SMALL)
    assert process.returncode == 0, process.stderr
    return out, process.stdout


def test_scope_goes_from_text_to_pages(whole):
    out, printed = whole
    figure = r" +(-?[\d.]+)"  # L0, FVU, delta loss, loss recovered
    rows = re.findall(rf"(?m)^(layer_3/\w+) +256 +(\d+){figure}{figure}{figure}{figure} +(\d+)$", printed)
    assert [(row[0], row[1]) for row in rows] == [
        (f"layer_3/{site}", target) for site in ("attn_z", "mlp_out", "resid_post") for target in ("10", "30")
    ]
    assert re.search(
        r"(?m)^site +width +target +L0 +FVU +delta loss \(nats\) +loss recovered +dead in [\d,]+ tokens$", printed
    )
    assert "theta itself is trained" in printed and "seconds: load" in printed
    assert printed.startswith(
        "at most 96 sequences of the text are harvested, taken at random (--max_sequences=0 for all)"
    )
    assert re.search(r"(?m)^  96 of [\d,]+ sequences are taken, at random \(--max_sequences\)$", printed)
    assert "  text.jsonl: no duplicates among 979 documents\n" in printed
    page = out / "pages" / "index.html"
    assert f"open:    {page}" in printed and page.exists()
    assert (out / "pages" / "tradeoff.png").exists()
    folder = out / "pages" / "layer_3" / "resid_post" / "width_256" / "target_l0_10"
    listed = set(re.findall(r'href="(\d+)\.html"', (folder / "index.html").read_text(encoding="utf-8")))
    assert listed == {p.stem for p in folder.glob("*.html")} - {"index"} and len(listed) > 50
    latent = html.unescape((folder / f"{min(listed, key=int)}.html").read_text(encoding="utf-8"))
    assert "Raises the logits of" in latent and "<mark" in latent


@pytest.mark.slow
def test_run_again_it_does_nothing_again(whole):
    out, _ = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and "params.npz" not in p.name}
    again = launch(f"--out_dir={out}", *SMALL)
    assert again.returncode == 0, again.stderr
    rewritten = {
        p.relative_to(out).as_posix() for p, time in before.items() if not p.exists() or p.stat().st_mtime_ns != time
    }
    # Only what is made from the others in no time: the first page with its picture, and the autoencoders' facts.
    assert {name for name in rewritten if not name.endswith(("info.json", "history.json"))} <= {
        *("pages/index.html", "pages/style.css", "pages/tradeoff.png")
    }


@pytest.mark.slow
def test_stopped_at_every_stage_it_goes_on_to_the_same_result(whole, tmp_path):
    expected, _ = whole
    flags = (f"--out_dir={tmp_path / 'out'}", *SMALL)
    for line in ("harvest …", "train …"):
        assert stop_at(line, signal.SIGKILL, *flags)[0] == -signal.SIGKILL
    status, errors = stop_at("evaluate …", signal.SIGINT, *flags)
    assert status == 130
    assert errors.splitlines()[-1].startswith("interrupted: what is finished is kept")
    assert stop_at("pages …", signal.SIGKILL, *flags)[0] == -signal.SIGKILL
    assert launch(*flags).returncode == 0
    for pattern in ("params.npz", "metrics.json", "identity.txt"):
        assert contents(tmp_path / "out", pattern) == contents(expected, pattern)
    assert contents(tmp_path / "out" / "store", "*") == contents(expected / "store", "*")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--sites=layer_3/resid_pots"],
            r"no site 'layer_3/resid_pots' in gemma2-tiny: did you mean layer_3/resid_post",
        ),
        (["--sites=layer_3/resid_p*x"], r"no site 'layer_3/resid_p\*x' in gemma2-tiny: did you mean"),
        (["--model=gemma2-2b"], r"weights of gemma2-2b do not come with this package"),
        (["--corpus={empty}"], r"is empty: it holds no text"),
        (["--corpus={latin}"], r"is not UTF-8: byte 0xe9 at offset 3"),
        (["--corpus={missing}"], r"cannot read the text .*: No such file"),
        (["--corpus={short}"], r"makes a single sequence of 256 tokens"),
        (["--l0_targets="], r"--l0_targets is empty: give a value"),
        (["--l0_targets=20,20.0000001"], r"--l0_targets takes different numbers above 0"),
        (["--corpus={surrogate}"], r"line 1: a lone surrogate, which is no text"),
        (["--steps=0"], r"--steps.*(positive|lower bound|greater|at least)"),
        (["--l0_targets=10,-3"], r"--l0_targets takes different numbers above 0, got '10,-3'"),
        (
            ["--l0_targets=9999", *SMALL[:4]],
            r"--l0_targets=9999 is more than the 1536 latents of an autoencoder: lower it, or raise --width",
        ),
        (["--learning_rat=1"], r"Unknown command line flag 'learning_rat'"),
    ],
)
def test_bad_input_is_one_clear_line(flags, message, tmp_path):
    texts = {"empty": b" \n ", "latin": "caf\u00e9".encode("latin-1"), "short": b"Few words."}
    for name, content in texts.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    names = {name: str(tmp_path / f"{name}.txt") for name in (*texts, "missing")}
    (tmp_path / "surrogate.jsonl").write_text(r'{"text": "\ud800"}')
    names["surrogate"] = str(tmp_path / "surrogate.jsonl")
    process = launch(f"--out_dir={tmp_path / 'out'}", *(flag.format(**names) for flag in flags))
    assert process.returncode in (1, 2)
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and re.search(message, lines[0]), process.stderr


@pytest.mark.slow
def test_what_is_there_already_is_not_lost_to_other_flags(whole):
    """A store of other sites or sequences and a checkpoint of another shape are refused and stay as they are."""
    out, _ = whole
    kept = contents(out, "*")
    for flag, message in (
        ("--sites=layer_2/resid_post", "holds other activations:"),
        ("--length=32", "holds other activations:"),
        ("--steps=70", "has the autoencoder of another run: steps is 60 there, 70 here"),
        ("--width=128", "holds the checkpoint of another run: runs[0].width is 256 there, 128 asked for"),
    ):
        name = flag.split("=")[0]
        process = launch(f"--out_dir={out}", *(f for f in SMALL if not f.startswith(name)), flag)
        assert process.returncode == 1 and message in process.stderr
        assert len(process.stderr.strip().splitlines()) == 1
    assert contents(out, "*") == kept


@pytest.mark.slow
def test_the_steps_work_one_by_one(whole, tmp_path):
    out, printed = whole
    folder = out / "saes" / "layer_3" / "mlp_out"
    # Of the text, autoencoders know the length and the rest.
    process = launch(f"--saes_dir={folder}", "--eval_sequences=16", module="experiments.evaluate")
    # The columns are as wide as the longest entry.
    before, now = (re.findall(r"(?m)^layer_3/mlp_out .*$", text) for text in (printed, process.stdout))
    assert process.returncode == 0 and [row.split() for row in now] == [row.split() for row in before], process.stderr
    process = launch(f"--saes_dir={folder}", "--length=32", module="experiments.explore")
    assert process.returncode == 1 and "--length=32 contradicts" in process.stderr and "--length=64" in process.stderr
    with np.load(folder / "width_256" / "target_l0_10" / "params.npz") as arrays:
        assert arrays["W_enc"].shape == (192, 256)
    process = launch(
        f"--store_dir={out / 'store'}",
        f"--saes_dir={tmp_path / 'saes'}",
        f"--checkpoint_dir={tmp_path / 'checkpoints'}",
        *("--train_sites=layer_3/attn_z", "--coefficients=0.001", "--steps=5", "--width=64", "--batch_size=128"),
        module="experiments.train",
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "saes" / "layer_3" / "attn_z" / "width_64" / "lambda_0.001" / "params.npz").exists()


@pytest.mark.slow
def test_text_and_chats_of_many_kinds_are_harvested_and_trained_on(tmp_path):
    """As a new user would: a folder of files as they were downloaded, one bad line among them."""
    folder = tmp_path / "mine"
    folder.mkdir()
    story = "The ships lay in harbour {}, and the king came down to the sea in the evening and looked at them. "
    texts = [story.format(number) * 4 for number in range(24)]
    chats = [
        {"text": None, "messages": [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "image"}]}]}
        for text in texts[12:16]
    ]
    (folder / "A.JSON").write_text(json.dumps([{"text": text} for text in texts[:4]]), encoding="utf-8-sig")
    (folder / "b.csv.gz").write_bytes(gzip.compress("".join(["text\n", *(f'"{t}"\n' for t in texts[4:8])]).encode()))
    (folder / "c.txt").write_text(texts[8], encoding="utf-16")
    (folder / "d.ndjson").write_text("\n".join(map(json.dumps, [*chats, {"txt": "?"}, {"text": texts[0]}])))
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array(texts[16:]).dictionary_encode()}), folder / "E.PARQUET"
    )
    small = ("--sites=layer_1/resid_post", f"--store_dir={tmp_path / 'store'}", f"--corpus={folder}", "--length=32")
    process = launch(*small, module="experiments.harvest")
    assert process.returncode == 1 and "d.ndjson, line 5: expected an object with" in process.stderr
    assert process.stderr.strip().endswith("(--skip_bad)") and not (tmp_path / "store").exists()
    process = launch(*small, "--skip_bad", module="experiments.harvest")
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert "mine: 22 documents; 1 bad record is left out, the first: " in process.stdout
    assert "4 parts of messages are left out, being no text (4 image)" in process.stdout
    assert "mine: 1 of 22 documents is an exact duplicate, 0 near" in process.stdout
    process = launch(
        f"--store_dir={tmp_path / 'store'}",
        f"--saes_dir={tmp_path / 'saes'}",
        f"--checkpoint_dir={tmp_path / 'checkpoints'}",
        *("--steps=5", "--width=64", "--batch_size=64", "--l0_targets=8"),
        module="experiments.train",
    )
    assert process.returncode == 0 and list((tmp_path / "saes").rglob("params.npz")), process.stderr


@pytest.fixture
def train(whole, tmp_path):
    """A function of flags, and of a name for the folder of autoencoders, that trains on the store for five steps."""
    small = ("--steps=5", "--batch_size=128", "--l0_targets=8", f"--store_dir={whole[0] / 'store'}")

    def run(*flags, name="saes"):
        where = (f"--saes_dir={tmp_path / name}", f"--checkpoint_dir={tmp_path / name / 'c'}")
        return launch(*small, *where, *flags, module="experiments.train")

    return run


@pytest.mark.slow
def test_training_makes_a_sweep(train, tmp_path):
    process = train("--train_sites=layer_3/attn_z", "--width=64,96", "--train_seeds=0,1", "--penalty=quadratic")
    assert process.returncode == 0, process.stderr
    names = [line.rsplit("attn_z/", 1)[1] for line in process.stdout.splitlines() if "attn_z/" in line]
    aim = "target_l0_8_sparsity_quadratic+revival"
    assert names == [f"width_{width}/{aim}_seed_{seed}" for width in (64, 96) for seed in (0, 1)]
    for name in names:
        assert len(list((tmp_path / "saes" / "tensorboard" / "layer_3" / "attn_z" / name).glob("events*"))) == 1
        assert len(json.loads((tmp_path / "saes" / "layer_3" / "attn_z" / name / "history.json").read_text())) == 2


@pytest.mark.slow
def test_training_makes_an_architecture_that_a_flag_names(train, tmp_path):
    process = train("--train_sites=layer_3/attn_z", "--width=64", "--autoencoder=topk", "--aux_k=16")
    assert process.returncode == 0 and "recipe short_run: autoencoder topk; inputs are centred" in process.stdout, (
        process.stderr
    )
    (folder,) = (tmp_path / "saes" / "layer_3" / "attn_z" / "width_64").iterdir()
    assert folder.name == "target_l0_8_autoencoder_topk_aux_k_16" and sae.load(folder).k == 8


@pytest.mark.slow
def test_training_makes_a_crosscoder(train, tmp_path):
    process = train("--crosscoder", "--train_sites=layer_3/mlp_out,layer_3/resid_post", "--width=64")
    assert process.returncode == 0, process.stderr
    (folder,) = (tmp_path / "saes").glob("crosscoder_layer_3.mlp_out+layer_3.resid_post/width_64/target_l0_8")
    with np.load(folder / "autoencoder.npz") as arrays:
        assert arrays["W_enc"].shape == (2, 192, 64)


@pytest.mark.slow
def test_training_makes_a_transcoder_that_evaluates(train, tmp_path):
    process = train("--train_sites=layer_3/mlp_out", "--site_out=layer_3/resid_post", "--skip", "--width=64")
    assert process.returncode == 0, process.stderr
    text = [flag for flag in SMALL if flag.split("=")[0] in ("--eval_sequences", "--length")]
    process = launch(f"--saes_dir={tmp_path / 'saes'}", *text, module="experiments.evaluate")
    assert process.returncode == 0 and "layer_3/resid_post" in process.stdout, process.stderr


@pytest.mark.slow
def test_an_estimate_trains_nothing(train, tmp_path):
    process = train("--estimate_only", "--width=64", "--latent_devices=1")
    assert process.returncode == 0 and re.search(r"memory of a device: 0\.\d\d of", process.stdout), process.stderr
    assert "5 steps, 640 tokens" in process.stdout and not (tmp_path / "saes").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--site_out=layer_9/mlp_out"], "'layer_9/mlp_out' is not among the sites harvested"),
        (["--latent_devices=3"], "this machine has 1 device: 3 of them cannot share"),
        (["--matryoshka=0.3", "--width=64"], "matryoshka takes fractions k/32"),
        (["--train_sites=layer_3/attn_z", "--crosscoder"], "--crosscoder takes two sites at least"),
    ],
)
def test_training_refuses_in_one_line(train, wrong, message):
    process = train(*wrong)
    assert process.returncode == 1 and len(process.stderr.strip().splitlines()) == 1, process.stderr
    assert message in process.stderr


@pytest.mark.slow
def test_sigterm_stops_a_launch_and_it_goes_on(whole, tmp_path):
    out, _ = whole
    flags = (f"--store_dir={out / 'store'}", f"--saes_dir={tmp_path / 's'}", f"--checkpoint_dir={tmp_path / 'c'}")
    flags += ("--train_sites=layer_3/attn_z", "--width=64", "--batch_size=128", "--steps=3000", "--l0_targets=8")
    process = subprocess.Popen(
        command(*flags, module="experiments.train"),
        **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()},
    )
    while not list((tmp_path / "c").glob("[0-9]*")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    last = errors.splitlines()[-1]
    assert re.search(
        r"stopped: asked to stop by SIGTERM after step \d+ of 3000; saved in .*the same command goes", last
    )


@pytest.mark.slow
def test_generate_steers_with_a_latent(whole):
    folder = whole[0] / "saes" / "layer_3" / "resid_post" / "width_256" / "target_l0_10"
    with np.load(folder / "params.npz") as arrays:
        latent = int(np.argmin(arrays["threshold"]))
    flags = ("--prompt=The sea", "--prompt=And the king of", "--max_new_tokens=12")
    steered = (f"--sae={folder}", f"--latent={latent}")
    module = "experiments.generate"
    plain = launch(*flags, module=module)
    assert plain.returncode == 0, plain.stderr
    assert re.match(r"(?s)The sea\|.+\nAnd the king of\|.+", plain.stdout)
    largest = sae.load(folder).largest.values[latent]
    for strength, raw, changes in (
        ("0.0", " in raw units", False),
        ("30.0", " in raw units", True),
        ("3max", f": 3 x {largest:.4g} = {3 * largest:.4g} in raw units", True),
    ):
        process = launch(*flags, *steered, f"--strength={strength}", module=module)
        assert process.returncode == 0, process.stderr
        before, title, after = re.split(rf"\n(with {strength} of latent {latent}.*):\n", process.stdout)
        assert title.startswith(f"with {strength} of latent {latent}{raw}")
        assert before == plain.stdout
        assert (after != before) is changes
    for wrong, message in (
        ([*flags, f"--sae={folder}", "--latent=256", "--strength=1"], "has latents 0 to 255, got --latent=256"),
        ([*flags, f"--sae={folder}", "--latent=3", "--strength=maximal"], "--strength takes a number in raw units or"),
        ([*flags, "--temperature=1", "--top_p=1.5"], "error: --top_p must be above 0 and at most 1, got 1.5"),
    ):
        process = launch(*wrong, module=module)
        assert process.returncode == 1 and len(process.stderr.strip().splitlines()) == 1, process.stderr
        assert message in process.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="a full disk is a small tmpfs here, and mounting asks for root"
)
def test_a_full_disk_is_one_clear_line_and_loses_nothing(whole, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {mounted.stderr.strip()}")
    try:
        # It looks ahead: too little for the store at all.
        process = launch(f"--out_dir={small / 'a'}", *(f for f in SMALL if "max_sequences" not in f))
        assert process.returncode == 1 and re.search(r"error: the store needs up to [\d.]+ GB and", process.stderr)
        # Room for the store but not for a checkpoint; then, with some freed, it goes on.
        (small / "filler").write_bytes(bytes(31_000_000))
        flags = (f"--out_dir={small / 'b'}", *(f for f in SMALL if "max_sequences" not in f), "--max_sequences=32")
        process = launch(*flags)
        assert process.returncode == 1 and "Traceback" not in process.stderr
        assert re.match(r"error: the disk is full: a checkpoint of 7 MB goes to", process.stderr.splitlines()[-1])
        segment = contents(small / "b" / "store" / "segment_00000", "*")
        (small / "filler").unlink()
        launch(*flags)
        assert segment == contents(small / "b" / "store" / "segment_00000", "*")
        assert list((small / "b" / "checkpoints").glob("[0-9]*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
