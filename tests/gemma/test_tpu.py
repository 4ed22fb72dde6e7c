"""The forward pass compiled ahead of time for TPUs: its sizes on a chip, and its collectives.

What compiles needs libtpu and is skipped where that is absent; `make test-tpu` makes an environment with the versions
that the sizes were recorded with.
"""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import tpu_hlo, tpu_programs
from experiments.benchmarks.tpu_hlo import Moved
from experiments.benchmarks.tpu_programs import Case
from sae import topologies

needs_libtpu = pytest.mark.skipif(topologies.missing() is not None, reason=str(topologies.missing()))
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Of a chip: GiB, and how often it gives and takes the sum of [8, 1024, D] in bfloat16."""

    arguments: float
    temporaries: float
    outputs: float
    sums: int


RECORDED = {
    # Two a layer, and one for the embedding. The logits are 8 x 1024 x 64,000 float32.
    Case("gemma2-2b", "v5e:2x2", program="logits"): Recorded(1.218, 0.1035, 2.031, 1 + 2 * 26),
    # Only the layers up to the middle one are run, but all parameters are there.
    Case("gemma2-9b", "v5e:4x4"): Recorded(2.153, 0.083, 0.117, 1 + 2 * 21),
    Case("gemma2-27b", "v5e:4x4"): Recorded(3.171, 0.0896, 0.145, 1 + 2 * 23),
}


@needs_libtpu
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{case.model}-{case.topology}-{case.program}")
def test_sizes_and_collectives(case):
    report, recorded = tpu_programs.compile_forward(case), RECORDED[case]
    assert report.collectives == {
        Moved("all-reduce", "bf16", (case.batch, case.tokens, case.config.d_model)): recorded.sums
    }
    assert not report.unexpected and not report.below_float32
    for name in ("arguments", "temporaries", "outputs"):
        want = getattr(recorded, name)
        assert getattr(report, name) / GIB == pytest.approx(want, rel=0.05), name
    assert report.peak < topologies.HBM[case.topology.split(":")[0]] * GIB


@needs_libtpu
def test_too_much_for_a_chip_is_said():
    with pytest.raises(tpu_programs.DoesNotFitError, match="exceeds available HBM"):
        tpu_programs.compile_forward(Case("gemma2-9b", "v5e:2x2", "float32", model_axis=2))


@needs_libtpu
def test_what_cannot_be_compiled_is_said():
    with pytest.raises(ValueError, match="no topology 'v9:2x2'"):
        topologies.chips("v9:2x2")
    with pytest.raises(ValueError, match="v5e:3x5"):
        topologies.chips("v5e:3x5")
    with pytest.raises(ValueError, match="3 of them"):
        tpu_programs.compile_forward(Case("gemma2-2b", "v5e:2x2", model_axis=3))


HLO = """
  %all-reduce.1 = bf16[8,1024,2304]{2,1,0:T(8,128)(2,1)S(1)} all-reduce(%fusion.3), channel_id=3, to_apply=%add.2
  %all-reduce.2 = bf16[1,8192,2304]{2,1,0} all-reduce(%fusion.4), channel_id=4, to_apply=%add.2
  %ar = (f32[8,1023]{1,0}, f32[8,1023]{1,0}) all-reduce(%a, %b), channel_id=5, to_apply=%add.2
  %start = (bf16[2304,2304]{1,0}, bf16[9216,2304]{1,0:T(8,128)}) all-gather-start(%param), dimensions={0}
  %done = bf16[9216,2304]{1,0} all-gather-done(%start)
  %fusion.9 = f32[1024]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-gather.clone
"""


def test_collectives_are_read_from_the_text():
    embedded, joined = Moved("all-reduce", "bf16", (8, 1024, 2304)), Moved("all-reduce", "bf16", (8192, 2304))
    losses, table = Moved("all-reduce", "f32", (8, 1023)), Moved("all-gather", "bf16", (9216, 2304))
    found = tpu_hlo.collectives(HLO)
    assert found == Counter({embedded: 1, joined: 1, losses: 2, table: 1})
    assert table.bytes == 9216 * 2304 * 2 and losses.bytes == 8 * 1023 * 4
    assert tpu_hlo.not_activations(found, 8192, 2304) == [table]
    weights = Moved("all-reduce", "bf16", (9216, 2304))
    assert tpu_hlo.not_activations(Counter({weights: 1}), 8192, 2304) == [weights]


def test_what_is_in_less_than_float32_is_found():
    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x)))

    def found(f, dtype, d_ff):
        return tpu_hlo.below_float32(jax.jit(f).lower(jax.ShapeDtypeStruct((4, 8), dtype)).as_text(), d_ff)

    assert found(norm, jnp.bfloat16, 8) == {"rsqrt bf16": 1}  # jnp.mean sums in float32 by itself
    assert found(jax.nn.softmax, jnp.bfloat16, 8).keys() >= {"exponential 4x8xbf16"}
    assert found(jnp.tanh, jnp.bfloat16, 16) == {"tanh 4x8xbf16": 1}
    assert not found(jnp.tanh, jnp.bfloat16, 8)  # the gelu's
    for f in (norm, jax.nn.softmax, jnp.tanh):
        assert not found(f, jnp.float32, 16)
