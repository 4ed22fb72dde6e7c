"""Compiler options by platform, with which programs compile or run faster."""

import functools
import os
from collections.abc import Callable, Iterable

import jax

Options = dict[str, str | bool]

# Measured with jaxlib 0.10 on two cores (`experiments/benchmarks/against_transformers.py`). Eigen's matrix products
# reach 1.2 times the speed of YNNPACK's, the default, from some hundred tokens on; for the few tokens of decoding they
# are many times slower. The disabled pass makes two loops of each sum over an axis, so that norms and softmax take
# twice as long.
_CPU: Options = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "tree_reduction_rewriter"}

# Measured on one H100 with JAX 0.11.2: `gemma2-tiny` with one site captured compiles in 1.3 s instead of 19.5 s, of
# which 18 s are Triton's autotuning of matrix products. With this option cuBLAS computes the products. Without any
# autotuning (xla_gpu_autotune_level=0) compiling takes 1.8 s, and Triton's products run untuned.
_GPU: Options = {"xla_gpu_enable_triton_gemm": False}

# By the kind of program. "forward": a pass over hundreds of tokens. "other": decoding, and training steps.
OPTIONS: dict[str, dict[str, Options]] = {"forward": {"cpu": _CPU, "gpu": _GPU}, "other": {"gpu": _GPU}}
_GPUS = ("cuda", "rocm")  # JAX's `default_backend` says "gpu" for both


def options(program: str, platform: str) -> Options:
    """Returns the options that this package sets for a program on a platform, whatever this machine has.

    An option that the user has set in XLA_FLAGS is left out.

    Args:
        program: "forward" or "other".
        platform: the name that `jax.default_backend()` or `jax.Device.platform` gives: "cpu", "gpu", "cuda", "rocm",
            "tpu".

    Raises:
        ValueError: for another program.

    Example:
        >>> mishax_lite.compiling.options("other", "tpu")
        {}
    """
    if program not in OPTIONS:
        raise ValueError(f"program is one of {', '.join(OPTIONS)}, got {program!r}")
    table = OPTIONS[program].get("gpu" if platform in _GPUS else platform, {})
    set_by_user = {flag.split("=")[0].lstrip("-") for flag in os.environ.get("XLA_FLAGS", "").split()}
    return {name: value for name, value in table.items() if name not in set_by_user}


def compiler_options(program: str, platform: str | None = None) -> Options:
    """Returns the `options` that this version of XLA knows, for `jax.jit(…, compiler_options=…)`.

    Args:
        program: "forward" or "other".
        platform: as for `options`; JAX's default backend by default. A platform that this machine lacks gets no
            options, since nobody can ask its compiler here.

    Raises:
        ValueError: for another program.

    Example:
        >>> double = jax.jit(lambda x: 2 * x, compiler_options=mishax_lite.compiling.compiler_options("forward"))
    """
    platform = platform or jax.default_backend()
    table = options(program, platform)
    return {name: value for name, value in table.items() if name in _accepted(platform, tuple(table.items()))}


@functools.cache
def _accepted(platform: str, items: tuple[tuple[str, str | bool], ...]) -> frozenset[str]:
    """Returns the names of the options that the compiler of a platform takes."""
    if not items:
        return frozenset()
    try:
        device = jax.local_devices(backend=platform)[0]
    except RuntimeError:
        return frozenset()
    # Usually the compiler takes all of them; where it does not, it may still take some.
    if _compiles(device, items):
        return frozenset(name for name, _ in items)
    return frozenset(item[0] for item in items if _compiles(device, [item]))


def _compiles(device: jax.Device, items: Iterable[tuple[str, str | bool]]) -> bool:
    with jax.default_device(device):
        try:
            jax.jit(lambda x: x, compiler_options=dict(items)).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            return False
    return True


def jit_program(function: Callable | None = None, *, program: str, **arguments) -> Callable:
    """Returns `jax.jit` of a function with `compiler_options`, chosen at the first call: importing starts no backend.

    Like every jit with options, it cannot be called within another jit; the function itself, at `__wrapped__`, can.

    Args:
        function: the function to compile; without it, a decorator is returned.
        program: as for `options`.
        **arguments: as for `jax.jit`.

    Example:
        >>> double = mishax_lite.compiling.jit_program(lambda x: 2 * x, program="other")
        >>> float(double(3.0))
        6.0
    """
    if function is None:
        return functools.partial(jit_program, program=program, **arguments)

    @functools.cache
    def compiled() -> Callable:
        return jax.jit(function, compiler_options=compiler_options(program), **arguments)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return compiled()(*args, **kwargs)

    vars(call)["program"] = program
    return call


jit_forward = functools.partial(jit_program, program="forward")
