"""`sae.load` of the hub: from a hub on this machine, which answers as the hub does, and from its cache."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

import sae
from sae.formats.hub import HubError

NAME = "google/gemma-scope-2b-pt-res"
PLACE = "layer_20/width_16k/average_l0_71"
COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"


def at(monkeypatch, endpoint):
    """Has `huggingface_hub` take this for the hub, which it otherwise does when it is imported (`HF_ENDPOINT`)."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The hub's folder, among settings that `huggingface_hub` takes from the environment when imported; no network."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    at(monkeypatch, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the hub library's attempts
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers `/api/models/{name}/tree/{revision}/{path}` and `/{name}/resolve/{revision}/{path}`."""

    revisions, refusal, asked, root = {"main": COMMIT}, None, [], Path()

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path, query = unquote(urlsplit(self.path).path), urlsplit(self.path).query
        self.asked.append(path)
        kind = "tree" if path.startswith("/api/models/") else "resolve"
        name, _, rest = path.removeprefix("/api/models").removeprefix("/").partition(f"/{kind}/")
        revision, _, inside = rest.partition("/")
        place = self.root / inside
        if self.refusal is not None and kind in self.refusal[2]:
            return self._send(self.refusal[0], b"{}", self.refusal[1], body)
        if name != NAME:
            return self._send(404, b"{}", "RepoNotFound", body)
        if revision not in (*self.revisions, *self.revisions.values()):
            return self._send(404, b"{}", "RevisionNotFound", body)
        if not (place.is_dir() if kind == "tree" else place.is_file()):
            return self._send(404, b"{}", "EntryNotFound", body)
        commit = self.revisions.get(revision, revision)
        if kind == "resolve":
            return self._send(200, place.read_bytes(), "", body, commit)
        below = place.rglob("*") if "recursive=true" in query.lower() else place.iterdir()
        entries = [
            {"type": "file", "path": str(one.relative_to(self.root)), "size": one.stat().st_size, "oid": COMMIT}
            if one.is_file()
            else {"type": "directory", "path": str(one.relative_to(self.root)), "oid": COMMIT}
            for one in sorted(below)
        ]
        return self._send(200, json.dumps(entries).encode(), "", body, commit)

    def _send(self, status, data, code, body, commit=COMMIT):
        self.send_response(status)
        headers = {"Content-Length": len(data), "ETag": f'"{len(data)}-{hash(data)}"', "X-Repo-Commit": commit}
        for header, value in (headers | ({"X-Error-Code": code} if code else {})).items():
            self.send_header(header, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The class of a running hub's answers: `root` is what it serves, `asked` the paths that were asked of it."""
    answers = type("Answers", (Hub,), {"root": tmp_path / "served", "asked": [], "revisions": dict(Hub.revisions)})
    answers.root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield answers
    server.shutdown()
    server.server_close()


def autoencoder(seed=0, **fields):
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    arrays = {name: jnp.asarray(np.abs(rng.normal(size=shape)), jnp.float32) for name, shape in shapes.items()}
    return sae.JumpReLU(**arrays, **fields)


def publish(hub, place=PLACE, seed=0, **options):
    sae.save(autoencoder(seed), hub.root / place, **options)
    return autoencoder(seed)


def fetched(hub):
    return sorted({path.partition("/resolve/")[2].partition("/")[2] for path in hub.asked if "/resolve/" in path})


def refused(said, *where, **options):
    with pytest.raises(HubError) as error:
        sae.load(*where, **options)
    assert said in str(error.value) and "\n" not in str(error.value), error.value
    return str(error.value)


def test_only_the_files_of_one_autoencoder_are_fetched(hub):
    want = publish(hub)
    publish(hub, "layer_20/width_16k/average_l0_139", seed=1)
    for name in ("optimizer.pt", "notes.md", "sparsity.safetensors"):
        (hub.root / PLACE / name).write_text("{}")
    loaded = sae.load(NAME, PLACE)
    np.testing.assert_array_equal(loaded.W_enc, want.W_enc)
    assert (loaded.info.model, loaded.info.site) == ("gemma2-2b", "layer_20/resid_post")
    assert json.loads(loaded.info.training)["gemma_scope"]["folder"] == PLACE
    assert fetched(hub) == [f"{PLACE}/params.npz"]
    file = sae.load(NAME, f"{PLACE}/params.npz")
    np.testing.assert_array_equal(file.W_enc, want.W_enc)


def test_a_format_of_several_files_comes_whole_with_its_config(hub, tmp_path):
    place, arrays = "clt/width_8_l0_medium", {}
    for name, shape in {"W_enc": (3, 4, 2), "b_enc": (3, 2), "b_dec": (3, 4), "threshold": (3, 2)}.items():
        arrays[name] = jnp.ones(shape)
    want = sae.CrossLayerTranscoder(W_dec=jnp.ones((3, 2, 3, 4)), **arrays)
    sae.save(want, hub.root / place, format="gemma_scope_2_layers")
    (hub.root / place / "extra.safetensors").write_bytes(b"0" * 100)
    np.testing.assert_array_equal(sae.load(NAME, place).W_dec, want.W_dec)
    names = [f"params_layer_{layer}.safetensors" for layer in range(3)]
    assert fetched(hub) == sorted(f"{place}/{name}" for name in ("config.json", *names))


def test_canonical_is_the_one_nearest_to_an_l0_of_100(hub):
    for seed, l0 in enumerate((38, 71, 139, 20)):
        publish(hub, f"layer_20/width_16k/average_l0_{l0}", seed)
    np.testing.assert_array_equal(sae.load(NAME, "layer_20/width_16k/canonical").W_enc, autoencoder(1).W_enc)
    refused("has no folder average_l0_… in layer_20", NAME, "layer_20/canonical")


def test_a_revision_is_pinned_and_a_commit_asks_nothing_twice(hub):
    publish(hub)
    hub.revisions["v1"] = OTHER
    np.testing.assert_array_equal(sae.load(NAME, PLACE, "v1").W_enc, autoencoder(0).W_enc)
    assert all("/v1/" in path or OTHER in path for path in hub.asked)
    hub.asked.clear()
    np.testing.assert_array_equal(sae.load(NAME, PLACE, OTHER).W_enc, autoencoder(0).W_enc)
    assert not hub.asked
    sae.load(NAME, PLACE, COMMIT)
    assert hub.asked


@pytest.mark.parametrize("way", ["offline", "unreachable"])
def test_without_the_hub_the_cache_is_asked(hub, monkeypatch, way):
    publish(hub)
    sae.load(NAME, PLACE)
    at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", way == "offline")
    np.testing.assert_array_equal(sae.load(NAME, PLACE).W_enc, autoencoder(0).W_enc)
    said = refused(
        "layer_3/width_16k/average_l0_1 is not in the hub's cache, and the hub", NAME, "layer_3/width_16k/average_l0_1"
    )
    assert ("HF_HUB_OFFLINE is set" in said) == (way == "offline")
    assert 'run `hf download google/gemma-scope-2b-pt-res --include "layer_3/width_16k/average_l0_1/*"`' in said


def test_what_was_fetched_in_part_is_not_taken_for_whole(hub, monkeypatch):
    """The main file comes last."""
    place = "resid_post/layer_9_width_16k_l0_small"
    publish(hub, place, format="gemma_scope_2")
    hub.refusal = (500, "", ("resolve",))
    with pytest.raises(HubError):
        sae.load(NAME, place)
    hub.refusal = None
    sae.load(NAME, place)
    order = [path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path]
    assert order[-1] == "params.safetensors" and order[0] == "config.json"


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, "GatedRepo", ("resolve",)), f"accept it at https://huggingface.co/{NAME}, then run `hf auth login`"),
        (
            (401, "RepoNotFound", ("tree", "resolve")),
            "or hides it: check the name, or run `hf auth login`",
        ),
    ],
)
def test_a_gated_repository_says_how_to_get_in(hub, refusal, said):
    publish(hub)
    hub.refusal = refusal
    refused(said, NAME, PLACE)


def test_what_the_hub_lacks_is_named(hub):
    publish(hub)
    publish(hub, "layer_20/width_16k/average_l0_139")
    refused("'google/other' is no local folder, and the hub has no such repository", "google/other", PLACE)
    refused("has no revision 'v9': give a branch, a tag or a commit, or leave it out", NAME, PLACE, "v9")
    refused(
        "has no layer_20/width_16k/average_l0_72; in layer_20/width_16k it has the paths "
        "layer_20/width_16k/average_l0_139, layer_20/width_16k/average_l0_71",
        NAME,
        "layer_20/width_16k/average_l0_72",
    )
    refused("has no autoencoder at its root: it has the folder layer_20", NAME, revision="main")
    refused("is no path within a repository", NAME, "../other")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("huggingface_hub, which is missing: pip install huggingface_hub (the extra `hub`)", NAME, PLACE)


def test_a_folder_here_goes_first_and_takes_a_path_too(tmp_path):
    """A copy of a repository, at a path that could be its name on the hub."""
    sae.save(autoencoder(), tmp_path / NAME / PLACE)
    loaded = sae.load(NAME, PLACE)
    np.testing.assert_array_equal(loaded.W_enc, autoencoder().W_enc)
    assert loaded.info.site == "layer_20/resid_post"
    with pytest.raises(ValueError, match="is no path within"):
        sae.load(NAME, "../x")
    with pytest.raises(ValueError, match=r"a revision is of a repository of the hub, and .* is a local path"):
        sae.load(NAME, PLACE, "main")
    with pytest.raises(ValueError, match=r"no autoencoder at google.x: there is no such folder"):
        sae.load("google/x")  # not asked of the hub: there is a folder google


@pytest.mark.slow  # it starts a process that imports everything: over 5 s
def test_the_environment_names_the_hub(hub, home):
    publish(hub)
    code = f"import sae; print(sae.load({NAME!r}, {PLACE!r}).width)"
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings, "PYTHONPATH": str(Path(sae.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert process.stdout.strip() == "8", process.stderr


def test_releases_of_a_repository_are_told_by_its_names_alone(hub):
    places = ["layer_3/width_16k/average_l0_59", "layer_20/width_1m/average_l0_101", "embedding/width_4k/average_l0_6"]
    for place in (PLACE, *places):
        publish(hub, place)
    listed = sae.releases(NAME)
    assert [(one.path, one.site, one.width, one.l0) for one in listed] == [
        (places[2], "embed", 4096, 6),
        (places[0], "layer_3/resid_post", 16384, 59),
        (places[1], "layer_20/resid_post", 2**20, 101),
        (PLACE, "layer_20/resid_post", 16384, 71),
    ]
    assert not fetched(hub)
    with pytest.raises(HubError, match="the hub has no such repository"):
        sae.releases("google/other")


def test_releases_of_a_folder_are_told_by_its_files(tmp_path):
    info = sae.Info("gemma2-tiny", "layer_1/mlp_in", "layer_1/mlp_out")
    sae.save(autoencoder(info=info), tmp_path / "out" / "b", format="gemma_scope_2")
    sae.save(autoencoder(), tmp_path / "out" / "a_10", format="mishax_lite")
    sae.save(autoencoder(), tmp_path / "out" / "a_9")
    (tmp_path / "out" / "a_9" / "params.npz").write_bytes(b"damaged")
    listed = sae.releases(tmp_path / "out")
    assert [(one.path, one.format, one.width) for one in listed] == [
        ("a_9", "gemma_scope", None),
        ("a_10", "mishax_lite", 8),
        ("b", "gemma_scope_2", 8),
    ]
    assert "damaged" in listed[0].problem and listed[1].problem is None
    assert (listed[2].site, listed[2].site_out) == ("layer_1/mlp_in", "layer_1/mlp_out")
    assert str(listed[2]) == "Published(b: gemma_scope_2, layer_1/mlp_in to layer_1/mlp_out, 8 latents)"
    with pytest.raises(ValueError, match="is no folder"):
        sae.releases(tmp_path / "nowhere")


def test_weights_in_a_folder_below_the_config_are_fetched_too(hub):
    folder = hub.root / "Llama3_1-8B-Base-L8R-8x"
    shapes = {"encoder.weight": (8, 4), "encoder.bias": (8,), "decoder.weight": (4, 8), "decoder.bias": (4,)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    (folder / "checkpoints").mkdir(parents=True)
    safetensors.numpy.save_file(tensors, folder / "checkpoints" / "final.safetensors")
    facts = {"jump_relu_threshold": 0.5, "norm_activation": "inference", "hook_point_in": "blocks.8.hook_resid_post"}
    facts["hook_point_out"] = facts["hook_point_in"]
    (folder / "hyperparams.json").write_text(json.dumps(facts))
    loaded = sae.load(NAME, folder.name)
    assert loaded.width == 8 and loaded.info.model == "meta-llama/Llama-3.1-8B"
    assert loaded.info.site == "layer_8/resid_post"
