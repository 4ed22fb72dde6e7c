"""A site that no file of the library knows goes the whole way, in Gemma."""

import pytest

import gemma
from gemma import layers
from gemma.site_records import Edit, Kind
from mishax_lite import Rewrite
from tests.sae.models import whole_way

ACTIVATION = Kind(
    "mlp_act",
    "B T F",
    "the gate after its nonlinearity",
    (
        Edit(
            layers,
            "FeedForward.__call__",
            Rewrite(
                "nn.gelu(gate, approximate=True) * up", "tap(at(self, 'mlp_act'), nn.gelu(gate, approximate=True)) * up"
            ),
        ),
    ),
)


@pytest.fixture
def added():
    gemma.sites.add(ACTIVATION, before="mlp_hidden")
    yield
    gemma.sites.remove("mlp_act")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # runs of a few steps
def test_a_site_that_a_test_adds_goes_the_whole_way(added, tiny, tmp_path):
    [autoencoder] = whole_way.go(tiny, ["layer_2/mlp_act"], tmp_path)
    assert autoencoder.info.shape == (tiny.config.d_ff,)


def test_it_is_gone_afterwards(tiny):
    assert "layer_2/mlp_act" not in tiny.sites
