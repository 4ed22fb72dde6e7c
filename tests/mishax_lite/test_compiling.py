"""The compiler options of a whole forward pass."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mishax_lite import compiling


def test_the_compiled_function_computes_the_same():
    x = jax.random.normal(jax.random.key(0), (64, 32))
    compiled = compiling.jit_forward(lambda x, power: jnp.sum((x @ x.T) ** power), static_argnames="power")
    np.testing.assert_allclose(compiled(x, power=2), compiled.__wrapped__(x, power=2), rtol=1e-5)


def test_options_by_platform():
    """As text: whoever has no GPU cannot compile for one."""
    cpu = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "tree_reduction_rewriter"}
    gpu = {"xla_gpu_enable_triton_gemm": False}
    assert compiling.options("forward", "cpu") == cpu and compiling.options("other", "cpu") == {}
    for platform in ("gpu", "cuda", "rocm"):
        assert compiling.options("forward", platform) == compiling.options("other", platform) == gpu
    assert compiling.options("forward", "tpu") == compiling.options("other", "tpu") == {}
    with pytest.raises(ValueError, match="program is one of forward, other, got 'backward'"):
        compiling.options("backward", "gpu")


@pytest.mark.parametrize("program", list(compiling.OPTIONS))
def test_every_option_is_one_that_this_xla_knows(program):
    """All platforms share XLA's table of options, so that a CPU's compiler refuses a name that no platform has."""
    for platform in compiling.OPTIONS[program]:
        table = compiling.options(program, platform)
        assert compiling._accepted(jax.default_backend(), tuple(table.items())) == set(table)


def test_options_that_this_xla_does_not_know_are_left_out_and_the_others_stay(monkeypatch):
    reference = compiling.OPTIONS["other"]["gpu"]
    monkeypatch.setitem(compiling.OPTIONS["forward"], jax.default_backend(), {"xla_no_such_option": "1"} | reference)
    assert compiling.compiler_options("forward") == reference
    assert compiling.jit_forward(lambda x: x + 1)(1) == 2
    monkeypatch.setitem(compiling.OPTIONS["forward"], jax.default_backend(), {"xla_no_such_option": "1"})
    assert compiling.compiler_options("forward") == {}
    assert compiling.jit_forward(lambda x: x + 1)(1) == 2


def test_a_platform_that_this_machine_lacks_gets_no_options(monkeypatch):
    monkeypatch.setitem(compiling.OPTIONS["forward"], "no_such_platform", {"xla_gpu_enable_triton_gemm": False})
    assert compiling.compiler_options("forward", "no_such_platform") == {}


def test_what_the_user_sets_in_xla_flags_is_left_to_the_user(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_gpu_enable_triton_gemm=true")
    assert compiling.options("forward", "gpu") == {}
    assert len(compiling.options("forward", "cpu")) == 2


def test_decorating_starts_no_backend():
    code = (
        "from mishax_lite.compiling import jit_forward; jit_forward(len); "
        "from jax._src import xla_bridge; raise SystemExit(bool(xla_bridge._backends))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
