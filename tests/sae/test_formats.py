import dataclasses
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.autoencoder import Largest
from sae.formats.files import outline


def make(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "W_enc": rng.normal(size=(6, 16)),
        "b_enc": rng.normal(size=16),
        "W_dec": rng.normal(size=(16, 6)),
        "b_dec": rng.normal(size=6),
        "threshold": rng.uniform(size=16),
    }
    return sae.JumpReLU(**{k: jnp.float32(v) for k, v in arrays.items()}, **changes)


def test_round_trip(tmp_path):
    autoencoder = make(info=sae.Info("gemma2-tiny", "layer_3/resid_post", "layer_3/resid_post", training='{"a": 1}'))
    sae.save(autoencoder, tmp_path / "x")
    for path in (tmp_path / "x", tmp_path / "x" / "params.npz"):
        loaded = sae.load(path)
        assert loaded.info == autoencoder.info
        jax.tree.map(np.testing.assert_array_equal, loaded, autoencoder)


def crosscoder(**changes):
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (2, 6, 16), "b_enc": (16,), "W_dec": (16, 2, 6), "b_dec": (2, 6), "threshold": (16,)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays["threshold"] = np.abs(arrays["threshold"])
    return sae.Crosscoder(**{name: jnp.float32(array) for name, array in arrays.items()}, **changes)


def test_skips_and_crosscoders_go_into_a_file_that_nobody_misreads(tmp_path):
    sites = ("layer_1/resid_post", "layer_2/resid_post")
    info = sae.Info("gemma2-tiny", sites, sites)
    for name, autoencoder in (("skip", make(W_skip=jnp.eye(6))), ("crosscoder", crosscoder(info=info))):
        sae.save(autoencoder, tmp_path / name)
        assert (tmp_path / name / "autoencoder.npz").exists() and not (tmp_path / name / "params.npz").exists()
        loaded = sae.load(tmp_path / name)
        assert type(loaded) is type(autoencoder) and loaded.info == autoencoder.info
        jax.tree.map(np.testing.assert_array_equal, loaded, autoencoder)
    sae.save(make(), tmp_path / "skip")  # in the place of another
    assert sae.load(tmp_path / "skip").W_skip is None and not (tmp_path / "skip" / "autoencoder.npz").exists()
    with pytest.raises(ValueError, match=r"no place for a crosscoder"):
        sae.save(crosscoder(), tmp_path / "x", format="gemma_scope")


def test_a_crosscoder_by_hand():
    x = jnp.float32(np.random.default_rng(1).normal(size=(5, 2, 6)))
    c = crosscoder()
    z = np.einsum("bla,laz->bz", x, c.W_enc) + c.b_enc
    f = z * (z > c.threshold)
    np.testing.assert_allclose(c.encode(x), f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(c(x), np.einsum("bz,zla->bla", f, c.W_dec) + c.b_dec, rtol=1e-4, atol=1e-4)
    assert c.width == 16
    with pytest.raises(ValueError, match=r"these arrays make no crosscoder"):
        sae.Crosscoder(c.W_enc, c.b_enc, c.W_dec, c.b_dec[:, :5], c.threshold)


def test_the_file_is_gemma_scopes(tmp_path):
    sae.save(make(), tmp_path / "x")
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["params.npz"]
    with np.load(tmp_path / "x" / "params.npz") as arrays:
        assert sorted(arrays.files) == ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]
        assert {arrays[name].dtype for name in arrays.files} == {np.dtype("float32")}
    assert sae.load(tmp_path / "x").info is None


def test_encoding_by_hand():
    autoencoder = sae.JumpReLU(
        W_enc=jnp.float32([[1, 0, -1], [0, 1, 1]]),
        b_enc=jnp.float32([0, 0.5, 0]),
        W_dec=jnp.float32([[1, 0], [0, 1], [2, 2]]),
        b_dec=jnp.float32([0.1, 0.2]),
        threshold=jnp.float32([1.0, 1.0, 0.0]),
    )
    x = jnp.float32([[1.0, 0.5], [2.0, 3.0]])
    np.testing.assert_allclose(autoencoder.encode(x), [[0, 0, 0], [2, 3.5, 1]])  # 1.0 is not above 1.0
    np.testing.assert_allclose(autoencoder(x), [[0.1, 0.2], [4.1, 5.7]], rtol=1e-6)


def test_what_is_damaged_or_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no autoencoder at .*/none: there is no such folder$"):
        sae.load(tmp_path / "none")
    sae.save(make(), tmp_path / "runs" / "a")
    with pytest.raises(
        ValueError, match=r"/runs: the folder has no params.npz or .*; below it are .*/runs/a: name one"
    ):
        sae.load(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"no format is named 'zip': did you mean .*gemma_scope"):
        sae.save(make(), tmp_path / "x", format="zip")
    with pytest.raises(ValueError, match=r"no place for an affine skip"):
        sae.save(make(W_skip=jnp.eye(6)), tmp_path / "x", format="gemma_scope")
    (tmp_path / "params.npz").write_text("text")
    with pytest.raises(ValueError, match=r"is no npz archive"):
        sae.load(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.zeros(3))
    with pytest.raises(ValueError, match=r"has no W_dec, b_enc, b_dec, threshold; it holds W_enc"):
        sae.load(tmp_path)
    sae.save(make(), tmp_path / "x")
    whole = (tmp_path / "x" / "params.npz").read_bytes()
    (tmp_path / "x" / "params.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"params.npz is damaged: it is no npz archive"):
        sae.load(tmp_path / "x")
    sae.save(make(), tmp_path / "y")
    with np.load(tmp_path / "y" / "params.npz") as arrays:
        changed = {**arrays, "b_enc": np.full(16, np.nan, np.float32)}
    np.savez(tmp_path / "y" / "params.npz", **changed)
    with pytest.raises(ValueError, match=r"b_enc must be finite float32, got float32 with 16 values"):
        sae.load(tmp_path / "y")


def test_shapes_that_do_not_belong_together_are_refused():
    good = make()
    with pytest.raises(ValueError, match=r"these arrays make no autoencoder.*'threshold': \(16,\)"):
        sae.JumpReLU(good.W_enc, good.b_enc, good.W_dec, good.b_dec, good.threshold[:-1])


INFO = sae.Info("gemma2-tiny", "layer_3/resid_post", "layer_3/resid_post", training='{"left_out": {}}')


def test_an_autoencoder_without_info_does_not_inherit_one(tmp_path):
    first = make(info=INFO)
    sae.save(first, tmp_path / "x")
    sae.save(dataclasses.replace(first, W_enc=2 * first.W_enc, info=None), tmp_path / "x")
    assert sae.load(tmp_path / "x").info is None
    # Nor does one of another kind, whose file has another name, or the other way round.
    sae.save(make(info=INFO), tmp_path / "x")
    sae.save(crosscoder(), tmp_path / "x")
    assert isinstance(sae.load(tmp_path / "x"), sae.Crosscoder) and sae.load(tmp_path / "x").info is None
    sae.save(make(W_skip=jnp.eye(6), info=INFO), tmp_path / "x")
    assert sae.load(tmp_path / "x").info == INFO and [p.name for p in (tmp_path / "x").glob("*.npz")] == [
        "autoencoder.npz"
    ]


def changed(**arrays):
    """A good autoencoder with some arrays in place of its own, not checked."""
    a = make(info=INFO)
    for name, value in arrays.items():
        object.__setattr__(a, name, value)
    return a


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: changed(b_enc=jnp.full(16, jnp.nan)), "b_enc must be finite float32, got float32 with 16 values"),
        (lambda: changed(W_dec=np.full((16, 6), 1e300)), "W_dec must be finite float32, got float32 with 96 values"),
        (lambda: changed(threshold=-make().threshold), "threshold must be at least 0, got 16 below it"),
        (
            lambda: jax.tree.map(lambda a: jnp.stack([a, a]), make()),
            "got shape .*: give the 2 stacked ones one at a time",
        ),
        (lambda: jax.tree.map(lambda a: jnp.stack([a] * 3), crosscoder()), "give the 3 stacked ones one at a time"),
        (lambda: changed(threshold=jnp.ones(5)), "these arrays make no autoencoder"),
        (lambda: changed(W_skip=jnp.ones((6, 5))), "these arrays make no autoencoder"),
        (lambda: changed(b_dec=jnp.zeros(6, jnp.int32)), "b_dec must be an array of floating-point numbers"),
        (lambda: changed(b_dec=[0.0] * 6), "b_dec must be an array of floating-point numbers"),
    ],
)
def test_what_nothing_could_load_replaces_nothing(tmp_path, bad, message):
    good = make(info=INFO)
    sae.save(good, tmp_path / "x")
    before = {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()}
    with pytest.raises(ValueError, match=message):
        sae.save(bad(), tmp_path / "x")
    assert {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()} == before
    with pytest.raises(ValueError, match=message):
        sae.save(bad(), tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_negative_thresholds_are_refused_at_loading(tmp_path):
    with np.load(saved(tmp_path)) as arrays:
        values = {**arrays}
    values["threshold"][3] = -0.25
    np.savez(tmp_path / "params.npz", **values)
    with pytest.raises(ValueError, match=r"params.npz: threshold must be at least 0, got 1 below it, the least -0.25"):
        sae.load(tmp_path)
    values["threshold"][3] = -0.0
    np.savez(tmp_path / "params.npz", **values)
    assert sae.load(tmp_path).threshold[3] == 0


def saved(folder):
    sae.save(make(), folder)
    return folder / "params.npz"


def test_every_damage_is_an_error_that_names_the_file(tmp_path):
    with np.load(saved(tmp_path)) as arrays:
        values = {**arrays}
    np.savez_compressed(tmp_path / "params.npz", **values)
    assert sae.load(tmp_path).width == 16
    whole = bytearray((tmp_path / "params.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "params.npz") as archive:
        start = archive.getinfo("W_enc.npy").header_offset
    for place in range(start + 60, start + 400, 17):
        (tmp_path / "params.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"params\.npz"):
            sae.load(tmp_path)
    for wrong in ("[1]", '"text"', '{"model": "m"}', '{"model": 1, "site": "s", "site_out": "s"}', "null"):
        sae.save(make(), tmp_path / "x")
        (tmp_path / "x" / "info.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"info\.json is damaged"):
            sae.load(tmp_path / "x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": {"config": 1}},
        {"training": "[1]"},
        {"training": "not JSON"},
        {"site": 3},
        {"site": ()},
        {"model": None},
        {"units": b"raw"},
        {"counted": "all"},
        {"record": [1]},
        {"shape": (0,)},
        {"shape": (True,)},
    ],
)
def test_an_info_that_no_file_could_hold_is_refused_when_it_is_made(wrong):
    with pytest.raises(ValueError, match=f"Info: {next(iter(wrong))} (is|must be) "):
        dataclasses.replace(INFO, **wrong)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"counted": {"foo": 1}}, "Counted has no field 'foo'; it has special_ids, left_out, sinks"),
        ({"counted": {"left_out": True}}, "Counted: the field 'special_ids' is missing"),
        ({"counted": {"special_ids": [0], "sinks": {"norm": 1}}}, "Sinks has no field 'norm'"),
        ({"record": {"foo": 1}}, "Record has no field 'foo'"),
        ({"record": {"origin": {"length": "8"}}}, "Origin: length must be a whole number, got '8'"),
        ({"rule": {"foo": 1}}, "Info: the rule of which tokens count has no dropped_tokens"),
    ],
)
def test_a_damaged_info_says_what_is_wrong_with_it(tmp_path, facts, message):
    sae.save(make(info=INFO), tmp_path)
    file = tmp_path / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    with pytest.raises(ValueError, match=f"info.json is damaged: {message}"):
        sae.load(tmp_path)


@pytest.mark.parametrize("name", ["params.npz", "autoencoder.npz", "largest.npz"])
@pytest.mark.parametrize("place", [8, 10, 42])  # of a member in the archive's directory: flags, method, where it begins
def test_a_damaged_directory_of_an_archive_is_named(tmp_path, name, place):
    largest = Largest(np.ones(16), 4)
    sae.save(make(largest=largest, **({"W_skip": jnp.eye(6)} if name == "autoencoder.npz" else {})), tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[content.index(b"PK\x01\x02") + place] ^= 0xFF
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged: "):
        sae.load(tmp_path)
    if name != "largest.npz":
        with pytest.raises(ValueError, match=f"{name} is damaged: "):
            outline(tmp_path)


@pytest.mark.parametrize("several", [[make()], {"a": make()}, None])
def test_what_is_no_autoencoder_is_not_saved(tmp_path, several):
    with pytest.raises(ValueError, match=r"save takes one autoencoder, .*: save each of several"):
        sae.save(several, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_killed_in_the_midst_of_saving_the_autoencoder_and_its_info_are_one(tmp_path):
    """Between the two renames: the list of new files is there, the info is not in its place yet."""
    sae.save(make(info=INFO), tmp_path)
    new = dataclasses.replace(make(), W_enc=2 * make().W_enc, info=dataclasses.replace(INFO, model="other"))
    sae.save(new, tmp_path / "new")
    (tmp_path / "params.npz").write_bytes((tmp_path / "new" / "params.npz").read_bytes())
    (tmp_path / "info.json.new").write_bytes((tmp_path / "new" / "info.json").read_bytes())
    (tmp_path / "replacing.json").write_text(
        json.dumps({"params.npz": True, "autoencoder.npz": False, "info.json": True})
    )
    loaded = sae.load(tmp_path)
    assert loaded.info.model == "other"
    np.testing.assert_array_equal(loaded.W_enc, new.W_enc)
    sae.save(make(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "params.npz"] and sae.load(tmp_path).info is None


def test_a_crosscoder_is_told_by_its_file(tmp_path):
    sae.save(crosscoder(), tmp_path / "a")
    sae.save(make(W_skip=jnp.eye(6)), tmp_path / "b")
    sae.save(make(), tmp_path / "c")
    files = [tmp_path / "a" / "autoencoder.npz", tmp_path / "b" / "autoencoder.npz", tmp_path / "c" / "params.npz"]
    assert [outline(file).several_sites() for file in files] == [True, False, False]
    files[0].write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"autoencoder\.npz is damaged"):
        outline(files[0])


def test_heads_are_joined():
    info = sae.Info("gemma2-tiny", "layer_3/attn_z", "layer_3/attn_z", shape=(2, 3))
    x = jnp.float32(np.random.default_rng(1).normal(size=(4, 5, 2, 3)))
    joined = x.reshape(4, 5, 6)
    for a in (make(), make(info=info)):
        np.testing.assert_array_equal(a.encode(x), a.encode(joined))
        np.testing.assert_array_equal(a(x), a(joined).reshape(x.shape))
    np.testing.assert_array_equal(make(info=info).encode(x[0, 0]), make().encode(joined[0, 0]))
    skip = make(W_skip=jnp.eye(6))
    np.testing.assert_array_equal(skip(x), skip(joined).reshape(x.shape))
    both = dataclasses.replace(info, site=("layer_2/attn_z", "layer_3/attn_z"))
    c, pair = crosscoder(info=both), jnp.stack([x, 2 * x], axis=2)  # [4, 5, L, N, H]
    np.testing.assert_array_equal(c.encode(pair), c.encode(pair.reshape(4, 5, 2, 6)))
    np.testing.assert_array_equal(c(pair), c(pair.reshape(4, 5, 2, 6)).reshape(pair.shape))


def test_activations_of_another_length_are_refused_and_tokens_are_no_heads():
    other = make(info=sae.Info("gemma2-tiny", "layer_3/resid_post", "layer_3/resid_post", shape=(6,)))
    for x in (jnp.ones((4, 5)), jnp.ones((2, 3)), jnp.ones((4, 2, 3)), jnp.ones((4, 5, 2, 3))):
        with pytest.raises(ValueError, match=r"takes activations \[..., 6\], got \["):
            other.encode(x)
    old = make(info=dataclasses.replace(other.info, shape=None))
    for unknown in (make(), old):  # of which shape, nobody knows
        for x in (jnp.ones((2, 3)), jnp.ones((4, 2, 3)), jnp.ones((1, 6, 1))):
            with pytest.raises(ValueError, match=r"takes activations \[..., 6\]"):
                unknown(x)
    with pytest.raises(ValueError, match=r"takes activations \[..., 2, 6\], got \[4, 6\]"):
        crosscoder().encode(jnp.ones((4, 6)))


def test_an_array_without_a_meaning_in_gemma_scopes_format_is_no_silent_loss(tmp_path):
    arrays = {"W_enc": (4, 8), "W_dec": (8, 4), "b_enc": (8,), "b_dec": (4,), "threshold": (8,), "W_skip": (4, 4)}
    np.savez(tmp_path / "params.npz", **{name: np.ones(shape, np.float32) for name, shape in arrays.items()})
    with pytest.raises(ValueError, match="it holds W_skip, which Gemma Scope's format has no meaning for"):
        sae.load(tmp_path)


def test_arrays_of_another_length_than_the_info_beside_them_are_refused(tmp_path):
    arrays = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    info = sae.Info("small", "layer_1/attn_z", "layer_1/attn_z", shape=(2, 2))
    one = sae.JumpReLU(**{name: np.ones(shape, np.float32) for name, shape in arrays.items()}, info=info)
    sae.save(one, tmp_path)
    assert sae.load(tmp_path).info == info
    facts = json.loads((tmp_path / "info.json").read_text(encoding="utf-8"))
    (tmp_path / "info.json").write_text(json.dumps(facts | {"shape": [2, 3]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"info\.json: .* has the shape \[2, 3\], and the autoencoder takes 4 numbers"):
        sae.load(tmp_path)
