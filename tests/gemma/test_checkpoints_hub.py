"""Ids of the hub: out of a cache laid out as the hub's, and fetched to it from a hub on this machine."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

import gemma
from gemma.checkpoints import hub
from tests.gemma import golden as reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The hub's folder, among settings that `huggingface_hub` takes from the environment when imported; no network."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "home"


def layers(source):
    return gemma.load(source).config.num_layers


def in_a_process(source, **env):
    """What a new process prints that loads `source`, and its last line of errors. Some versions of `huggingface_hub`
    keep what the environment said at the first import."""
    process = subprocess.run(
        [sys.executable, "-c", f"import gemma; print(gemma.load({source!r}).config.num_layers)"],
        cwd=Path(gemma.__file__).parents[1],
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **env},
        capture_output=True,
        text=True,
    )
    return process.stdout.strip(), process.stderr.strip().splitlines()[-1:]


def refused(source, said):
    with pytest.raises(ValueError) as error:
        gemma.load(source)
    text = str(error.value)
    assert said in text and "\n" not in text, text
    return text


def cached(home, name, folder, revision="main"):
    """The cache after a download: blobs by hash, a snapshot of links to them, a reference from the revision."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    for part in (repo / "blobs", repo / "refs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        data = file.read_bytes()
        blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (repo / "refs" / revision).write_text(COMMIT)
    return snapshot


@pytest.fixture
def serve(monkeypatch):
    """A function that starts a hub, which has a folder as google/golden, and gives the paths that are asked of it."""
    servers = []

    def start(folder, status=200, code=""):
        asked = []

        class Hub(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                asked.append(self.path)
                name = self.path.split("?")[0].split("/")[-1]
                if status != 200:
                    data = b"{}"
                elif "/api/models/google/golden" in self.path:
                    data = json.dumps(self.listing(tree="/tree/" in self.path)).encode()
                else:
                    data = (folder / name).read_bytes()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                if code:
                    self.send_header("X-Error-Code", code)
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def listing(self, tree):
                files = sorted(folder.iterdir())
                if not tree:
                    siblings = [{"rfilename": file.name} for file in files]
                    return {"id": "google/golden", "sha": COMMIT, "siblings": siblings}
                kind = {"type": "file", "oid": COMMIT}
                return [{"path": file.name, "size": file.stat().st_size, **kind} for file in files]

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_out_of_the_cache(home):
    cached(home, "google/golden", reference.GEMMA_2)
    assert layers("google/golden") == 4


def test_a_revision_out_of_the_cache(home):
    cached(home, "google/golden", reference.GEMMA_3, revision="v1.0")
    for revision in ("v1.0", COMMIT):
        assert layers(f"google/golden@{revision}") == 7
    refused("google/golden", "is not in the hub's cache")


def test_fetched_once_without_what_is_not_read(serve, home, tmp_path):
    shutil.copytree(reference.GEMMA_2, tmp_path / "served")
    for name in ("pytorch_model.bin", "model-Q4.gguf"):
        (tmp_path / "served" / name).write_text("{}")
    asked = serve(tmp_path / "served")
    out, errors = in_a_process("google/golden", HF_HOME=str(home), HF_ENDPOINT=constants.ENDPOINT)
    assert out == "4", errors
    names = {path.rsplit("/", 1)[-1] for path in asked if "resolve" in path}
    assert "model-00008-of-00008.safetensors" in names and "config.json" in names
    assert not names & {"pytorch_model.bin", "model-Q4.gguf"}
    asked.clear()
    assert layers("google/golden") == 4
    assert not asked


def test_a_download_that_was_cut_short_is_completed(serve, home):
    snapshot = cached(home, "google/golden", reference.GEMMA_2)
    (snapshot / "model-00005-of-00008.safetensors").unlink()
    asked = serve(reference.GEMMA_2)
    out, errors = in_a_process("google/golden", HF_HOME=str(home), HF_ENDPOINT=constants.ENDPOINT)
    assert out == "4", errors
    assert any("model-00005-of-00008" in path for path in asked)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "GatedRepo", "accept it at https://huggingface.co/google/golden, then run `hf auth login`"),
        (404, "RepoNotFound", "the hub has no such model, or shows it only to some"),
        (404, "RevisionNotFound", "the hub's google/golden has no such revision"),
        (400, "", "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses(serve, status, code, said):
    serve(reference.GEMMA_2, status, code)
    assert refused("google/golden", said).startswith("'google/golden' is not in the hub's cache, and ")


def test_no_network():
    assert refused("google/golden", "try again").startswith("'google/golden' is not in the hub's cache, and ")


@pytest.mark.parametrize("there", [False, True])
def test_offline_is_honoured(there, tmp_path):
    """HF_HUB_OFFLINE and HF_HOME as a user sets them, for a process of its own."""
    if there:
        cached(tmp_path / "elsewhere", "google/golden", reference.GEMMA_2)
    out, errors = in_a_process("google/golden", HF_HOME=str(tmp_path / "elsewhere"), HF_HUB_OFFLINE="1")
    if there:
        assert out == "4", errors
    else:
        said = "ValueError: 'google/golden' is not in the hub's cache, and the hub cannot be reached, or HF_HUB_OFFLINE"
        assert errors[0].startswith(said) and "run `hf download google/golden`" in errors[0]


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("google/golden", "needs huggingface_hub: pip install huggingface_hub")
    assert layers("gemma2-tiny") == 6


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    (tmp_path / "google").mkdir()
    shutil.copytree(reference.GEMMA_2, tmp_path / "google" / "golden")
    monkeypatch.chdir(tmp_path)
    assert gemma.load("google/golden").config.name == "golden"


def test_what_is_an_id():
    assert all(map(hub.is_id, ("google/gemma-2-2b", "a/b@main", "a/b@refs/pr/1", "A.b_c/D-e.f")))
    assert not any(map(hub.is_id, ("gemma2-2b", "/a/b", "a/b/c", "./a/b", "a/b c", "a/", "~/a/b")))
