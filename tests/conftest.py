"""Eight CPU devices for all tests, set before JAX is imported, unless JAX_PLATFORMS names another platform, as `make
test-gpu` does; and what several tests use."""

import logging
import os
import signal
from pathlib import Path

# `nohup make test` has SIGHUP ignored here and in every process that tests start, some of which are to be ended by it.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

TESTS = Path(__file__).parent
# Where arrays of different dtypes and ranks meet only by what the code says: files, or folders, that have been gone
# through. A test elsewhere may still leave it to JAX.
EXPLICIT = (
    "gemma/test_readout.py",
    "mishax_lite/test_casting.py",
    "sae/test_cross_layer.py",
    "sae/test_interventions.py",
    "sae/test_released.py",
    "sae/test_transcoder_sets.py",
    "test_shapes.py",
)


def pytest_pycollect_makemodule(module_path):
    """Has every call of a public function checked against its annotations of arrays, before tests import it."""
    if module_path.relative_to(TESTS).parts[0] in ("experiments", "gemma", "sae"):
        import gemma
        import sae
        from tests import shapes

        shapes.check_packages(gemma, sae)


@pytest.fixture(autouse=True)
def explicit_promotion(request):
    """Makes it an error that JAX promotes a dtype or a rank, in the tests of `EXPLICIT`."""
    if not request.path.relative_to(TESTS).as_posix().startswith(EXPLICIT):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def golden():
    """The reference model of tests/data/gemma2_golden, as (gemma.Model, expected values by name)."""
    from tests.gemma import golden

    return golden.load(golden.GEMMA_2)


@pytest.fixture(scope="session")
def golden_3():
    """The same of tests/data/gemma3_golden: QK-norm, one key/value head, two RoPE bases, stretched global positions."""
    from tests.gemma import golden

    return golden.load(golden.GEMMA_3)


@pytest.fixture(scope="session")
def tiny():
    """The shipped model."""
    import gemma

    return gemma.load("gemma2-tiny")


@pytest.fixture
def meshes():
    """A function of (data, latent) to a mesh of so many devices."""

    def make(data: int, latent: int) -> Mesh:
        return Mesh(np.asarray(jax.devices()[: data * latent]).reshape(data, latent), ("data", "latent"))

    return make


@pytest.fixture(scope="session")
def bucket():
    """The address of a bucket of an S3 server on loopback, which the environment's variables lead tensorstore to."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_CONFIG_FILE=os.devnull,  # each request writes four lines about a file that is missing
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
        TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS="3",  # for a connection that hangs in tests/sae/test_store_writers.py
    )
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="activations")
    yield "s3://activations"
    server.stop()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def where(request, tmp_path):
    """A function of a name to a new place for a store, on disk and in a bucket."""
    from sae.store.places import place

    if request.param == "folder":
        return lambda name: place(tmp_path / name)
    bucket = request.getfixturevalue("bucket")
    return lambda name: place(f"{bucket}/{tmp_path.name}-{tmp_path.parent.name}/{name}")


@pytest.fixture(scope="session")
def one_device() -> Mesh:
    """A mesh of the first device alone."""
    return Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "latent"))


@pytest.fixture(scope="module")
def quick_starts(tmp_path_factory):
    """Processes that tests start need not compile again what one before them has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture
def launch():
    """Sets flags, as a command line would."""
    from absl import flags
    from absl.testing import flagsaver

    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver():

        def set_flags(**values):
            for name, value in values.items():
                setattr(flags.FLAGS, name, value)

        yield set_flags
