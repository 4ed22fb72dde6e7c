"""Training steps compiled ahead of time for TPUs: sizes on a chip, and collectives.

What compiles needs libtpu and is skipped where that is absent; `make test-tpu` makes an environment with the versions
that the sizes were recorded with.
"""

import dataclasses

import pytest

from experiments.benchmarks import tpu_training
from experiments.benchmarks.tpu_training import Case
from sae import topologies

pytestmark = pytest.mark.skipif(topologies.missing() is not None, reason=str(topologies.missing()))
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Recorded:
    """GiB of a chip: the state with the batch, and what a step takes beside it."""

    state: float
    temporaries: float


RECORDED = dict(
    zip(
        tpu_training.CASES,
        (Recorded(0.565, 0.307), Recorded(0.317, 0.365), Recorded(0.284, 0.143), Recorded(2.287, 2.662)),
        strict=True,
    )
)


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_sizes_and_collectives(case):
    report, recorded = tpu_training.compile_step(case), RECORDED[case]
    assert not report.gathers_of_latents, "a [B, Z] array is put together on every chip"
    chips = case.mesh().shape["data"]  # gradients are summed over these
    assert set(report.gradient_sums) == ({"f32"} if chips > 1 else set()), "weight gradients are not summed in float32"
    assert report.state + report.temporaries < topologies.HBM[case.topology.split(":")[0]] * GIB
    assert report.state / GIB == pytest.approx(recorded.state, rel=0.05)
    assert report.temporaries / GIB == pytest.approx(recorded.temporaries, rel=0.05)


def test_what_does_not_fit_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"does not fit into a device's memory.*more devices along 'latent' \(now 1\)"):
        tpu_training.estimate(Case(2**20, "v5e:2x2", latent=1)).check()
