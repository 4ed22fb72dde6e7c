"""Autoencoders are loaded onto a mesh part by part: the same arrays, with no more memory than one part beside them."""

import json
import os
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

import sae
from sae.formats import mapped

MEBI = 1 << 20


def made(width, dim=8):
    generator = np.random.default_rng(3)
    shapes = {"W_enc": (dim, width), "W_dec": (width, dim), "b_enc": (width,), "b_dec": (dim,), "threshold": (width,)}
    return {name: generator.random(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("format", ["gemma_scope", "gemma_scope_2", "saelens", "mishax_lite", "sparsify"])
@pytest.mark.parametrize("width", [40_960, 40_961])  # W_enc and W_dec are read while they are used, the others at once
def test_a_mesh_gets_the_same_arrays_with_latents_spread_where_they_divide(format, width, tmp_path, meshes):
    values = made(width)
    if format == "sparsify":
        del values["threshold"]
        values["b_dec"] = np.zeros_like(values["b_dec"])  # folded into b_enc and back, it costs a bit
        sae.save(sae.TopK(**values, k=4), tmp_path, format)
    else:
        sae.save(sae.JumpReLU(**values), tmp_path, format)
    assert values["W_enc"].nbytes > mapped.LARGE > values["b_enc"].nbytes
    loaded = sae.load(tmp_path, mesh=meshes(2, 4))
    for name, array in loaded.arrays().items():
        np.testing.assert_array_equal(array, values[name])
        sizes = {shard.data.shape for shard in array.addressable_shards}
        divided = width % 4 == 0 and name != "b_dec"
        assert sizes == {tuple(n // 4 if divided and n == width else n for n in array.shape)}, name


def test_what_is_no_mesh_and_explicit_axes_are_refused(tmp_path):
    sae.save(sae.JumpReLU(**made(64)), tmp_path)
    with pytest.raises(ValueError, match=r"a mesh is a jax\.sharding\.Mesh.* got 8"):
        sae.load(tmp_path, mesh=8)
    with pytest.raises(ValueError, match="the mesh's axes must be automatic"):
        sae.load(tmp_path, mesh=jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,)))


def test_a_value_that_is_not_finite_is_named_in_a_large_array(tmp_path):
    values = made(300_000)
    values["W_dec"][299_999, 7] = np.inf
    np.savez(tmp_path / "params.npz", **values)
    with pytest.raises(ValueError, match="W_dec must be finite float32, got float32 with 1 value"):
        sae.load(tmp_path)


def test_a_changed_byte_of_a_large_array_is_found(tmp_path):
    file = tmp_path / "params.npz"
    np.savez(file, **made(300_000))
    with zipfile.ZipFile(file) as archive:
        place = archive.getinfo("W_dec.npy").header_offset + 5 * MEBI
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ValueError, match=r"damaged.*CRC"):
        sae.load(tmp_path)


def test_arrays_that_run_along_their_columns_are_read_as_they_are(tmp_path):
    values = made(300_000)
    np.savez(tmp_path / "params.npz", **(values | {"W_dec": np.asfortranarray(values["W_dec"])}))
    np.testing.assert_array_equal(sae.load(tmp_path).W_dec, values["W_dec"])


def test_what_is_loaded_is_a_copy_of_the_file(tmp_path):
    values = made(300_000)
    np.savez(tmp_path / "params.npz", **values)
    autoencoder = sae.load(tmp_path)
    with (tmp_path / "params.npz").open("r+b") as stream:
        stream.write(bytes(40 * MEBI))
    np.testing.assert_array_equal(autoencoder.W_enc, values["W_enc"])
    np.testing.assert_array_equal(autoencoder.W_dec, values["W_dec"])


@pytest.mark.slow  # half a gigabyte is written, and read twice
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the process's memory is read from Linux's /proc")
@pytest.mark.parametrize("format", ["gemma_scope", "gemma_scope_2"])
def test_a_million_latents_need_one_part_more_than_their_bytes(format, tmp_path):
    sae.save(sae.JumpReLU(**made(1 << 20, 64)), tmp_path, format)
    run = subprocess.run(
        [sys.executable, "-m", "tests.sae.wide_worker", str(tmp_path)], capture_output=True, text=True, env=os.environ
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["arrays"] > 512 * MEBI and figures["part"] == 32 * MEBI
    # Python, JAX and the library themselves are in `before`.
    assert figures["peak"] - figures["before"] - figures["arrays"] < figures["part"] + 256 * MEBI, figures
