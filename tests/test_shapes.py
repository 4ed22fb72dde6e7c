"""What `tests/shapes.py` checks: dtypes and axes of arrays, by the annotations of public functions."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, Integer

import gemma
import sae
from tests import shapes

shapes.check_packages(gemma, sae)


@dataclasses.dataclass
class Pair:
    tokens: Integer[jax.Array, "B T"]
    values: dict[str, Float[jax.Array, "B A"]]


@shapes.checked
def first(x: Float[jax.Array, "B A"], y: Float[np.ndarray, "B A"] | None = None) -> Float[jax.Array, "B A"]:
    if x.ndim != 2:
        raise ValueError("x is [B, A]")
    return x


@shapes.checked
def made(pair: Pair) -> Pair:
    return pair


def test_arrays_as_annotated_pass():
    first(jnp.ones((2, 3)), np.ones((2, 3)))
    first(jnp.ones((2, 3)))
    made(Pair(jnp.ones((2, 5), jnp.int32), {"x": jnp.ones((2, 3))}))


def test_a_letter_is_one_size_within_a_call_and_free_in_the_next():
    with pytest.raises(TypeError, match="first: y is annotated"):
        first(jnp.ones((2, 3)), np.ones((2, 4)))
    first(jnp.ones((2, 4)), np.ones((2, 4)))


def test_a_dtype_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"first: x is annotated .*int32"):
        first(jnp.ones((2, 3), jnp.int32))


def test_a_result_is_checked_and_tracers_are():
    wrong = shapes.checked(annotated(Float[jax.Array, "B A"]))
    with pytest.raises(TypeError, match="return is annotated"):
        jax.jit(wrong)(jnp.ones((2, 3)))


def annotated(result):
    """A function that returns a vector and is annotated with something else."""

    def row(x):
        return x[0]

    row.__annotations__ = {"return": result}
    return row


def test_fields_of_a_dataclass_share_the_letters():
    with pytest.raises(TypeError, match="made: pair is annotated"):
        made(Pair(jnp.ones((2, 5), jnp.int32), {"x": jnp.ones((3, 3))}))


def test_a_functions_own_error_comes_first():
    with pytest.raises(ValueError, match="x is"):
        first(jnp.ones(3))


def test_calls_of_the_packages_are_checked(tiny):
    with pytest.raises(TypeError, match=r"Counted\.text: tokens is annotated"):
        sae.Counted((0,)).text(np.zeros((2, 3)))
    with pytest.raises(TypeError, match=r"Model\.unembed: residual is annotated"):
        tiny.unembed(jnp.ones(tiny.config.d_model, jnp.int32))


def public_functions():
    """By name, the functions in `__all__` of the packages, and the public methods of their classes."""
    for package in (gemma, sae):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value):
                yield f"{package.__name__}.{name}", inspect.unwrap(value)
            elif inspect.isclass(value):
                for member, method in inspect.getmembers(value, inspect.isfunction):
                    if not member.startswith("_") and method.__module__.split(".")[0] == package.__name__:
                        yield f"{package.__name__}.{name}.{member}", inspect.unwrap(method)


def test_no_public_function_takes_or_returns_arrays_without_axes():
    """Bare arrays, or unions with them; containers and functions of arrays say what is in them in words."""
    bare = [
        f"{name}: {argument}"
        for name, function in public_functions()
        for argument, hint in shapes.hints_of(function).items()
        if any(each in (jax.Array, np.ndarray) for each in shapes.alternatives(hint))
    ]
    assert not bare
