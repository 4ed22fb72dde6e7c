"""Compiler options with which a whole forward pass is faster on CPU."""

import functools
from collections.abc import Callable

import jax

# Measured with jaxlib 0.10 on two cores (`experiments/benchmarks/against_transformers.py`). Eigen's matrix products
# reach 1.2 times the speed of YNNPACK's, the default, once there are some hundred tokens; for the few of decoding
# they are many times slower. The pass that is left out makes two loops of each sum over an axis, so that norms and
# softmax take twice as long.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "tree_reduction_rewriter"}


@functools.cache
def forward_options() -> dict[str, str]:
    """Options for `jax.jit(…, compiler_options=…)` of a function that runs the model over hundreds of tokens.

    Empty on other backends than CPU, and where this version of XLA does not know them.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_CPU).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(_CPU)


def jit_forward(function: Callable | None = None, **arguments) -> Callable:
    """`jax.jit` with `forward_options`, which are asked for at the first call: importing starts no backend.

    Like every jit with options, it cannot be called within another jit; the function itself, at `__wrapped__`, can.
    """
    if function is None:
        return functools.partial(jit_forward, **arguments)

    @functools.cache
    def compiled() -> Callable:
        return jax.jit(function, compiler_options=forward_options(), **arguments)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return compiled()(*args, **kwargs)

    return call
