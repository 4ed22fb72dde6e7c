"""From tensors in files to parameters on devices, one parameter after the other.

A file's tensor is `Stored`: its rows can be read. A `Layout` says how it lies in a parameter. A parameter is filled on
the host block by block, spread over its devices, checked for NaN, and freed: the host never holds more than the model
once (where its own memory is the device) and the largest parameter, besides a few blocks of `BLOCK_BYTES`. Each of
several processes reads every tensor of these files, and keeps the parts of its own devices.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

BLOCK_BYTES = 8 << 20
_SHOWN = 12  # problems in one message
_WORKERS = min(4, os.cpu_count() or 1)

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        name: its name in the file.
        shape: its shape.
        rows: (start, stop) -> the rows [start:stop] of its first axis, as floating-point numbers of any width.
        problem: why it cannot be read, such as a file that ends before it; None if it can.
    """

    name: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The place of a stored tensor in a parameter, or in a part of one: `stored.reshape(view).transpose(axes)`.

    Attributes:
        name: the name of the stored tensor.
        shape: its shape.
        view: its shape with some axes taken apart; the first axis comes from its first axis.
        axes: as for `np.transpose`.
    """

    name: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    axes: tuple[int, ...]

    def in_view(self, part: np.ndarray) -> np.ndarray:
        """Returns the parameter's part as the stored tensor's view: transposed back, without a copy."""
        return part.transpose(np.argsort(self.axes))


def fill(
    struct: jax.ShapeDtypeStruct, parts: Sequence[tuple[Stored, Layout]], pool: ThreadPoolExecutor | None = None
) -> np.ndarray:
    """Returns a parameter on the host: its one part, or its parts stacked on a new first axis.

    Args:
        struct: the parameter's shape and dtype.
        parts: its stored tensors with their layouts.
        pool: the threads that read blocks; None to read them one by one.
    """
    whole = np.empty(struct.shape, struct.dtype)
    jobs = []
    for (stored, layout), part in zip(parts, whole if len(parts) > 1 else whole[None], strict=True):
        target = layout.in_view(part)
        unit = layout.shape[0] // layout.view[0]  # rows of the file for each row of the view
        step = max(1, BLOCK_BYTES * layout.view[0] // max(1, part.nbytes))
        jobs += [(stored, target, unit, i, min(i + step, layout.view[0])) for i in range(0, layout.view[0], step)]

    def copy(job: tuple[Stored, np.ndarray, int, int, int]) -> None:
        stored, target, unit, start, stop = job
        with np.errstate(all="ignore"):  # the check of all parameters finds numbers that overflow
            target[start:stop] = stored.rows(start * unit, stop * unit).reshape(stop - start, *target.shape[1:])

    if pool is None or len(jobs) < 2:
        for job in jobs:
            copy(job)
    else:
        list(pool.map(copy, jobs))
    return whole


def read(
    where: str,
    parameters: Mapping[Path, Sequence[tuple[Stored, Layout]]],
    structs: Mapping,
    shardings: Mapping,
) -> dict:
    """Reads the tree of parameters from a file's tensors; see `stream` for the arguments and the errors."""
    with ThreadPoolExecutor(_WORKERS) as pool:

        def fetch(path: Path, struct: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
            whole = fill(struct, parameters[path], pool)
            return jax.make_array_from_callback(struct.shape, sharding, lambda index: whole[index])

        names = {path: " and ".join(stored.name for stored, _ in parts) for path, parts in parameters.items()}
        return stream(where, structs, shardings, fetch, names)


def stream(
    where: str,
    structs: Mapping,
    shardings: Mapping,
    fetch: Callable[[Path, jax.ShapeDtypeStruct, jax.sharding.Sharding], jax.Array],
    names: Mapping[Path, str],
) -> dict:
    """Fetches one parameter after the other, the largest first.

    So the host's memory never holds the largest parameter on top of a whole model.

    Args:
        where: the file or folder, for messages.
        structs: the shapes and dtypes of the parameters, a tree of `jax.ShapeDtypeStruct`.
        shardings: the sharding of each parameter, the same tree.
        fetch: (path, struct, sharding) -> the array with this sharding. Its ValueError is that parameter's problem.
        names: the name of each parameter in the file.

    Raises:
        ValueError: with the name of every tensor that cannot be read or that has values which are NaN or infinite.
    """
    structs, shardings = (dict[Any, Any](traverse_util.flatten_dict(tree)) for tree in (structs, shardings))
    problems, arrays = [], {}
    for path in sorted(structs, key=lambda p: -math.prod(structs[p].shape)):
        try:
            array = jax.block_until_ready(fetch(path, structs[path], shardings[path]))
        except ValueError as error:
            problems.append(f"{names[path]}: {error}")
        else:
            if bool(all_finite(array)):
                arrays[path] = array
            else:
                problems.append(f"{names[path]}: has values that are NaN or infinite (as {array.dtype})")
        if len(problems) > _SHOWN:
            break
    refuse(where, problems)
    return traverse_util.unflatten_dict({path: arrays[path] for path in structs})


@jax.jit
def all_finite(array: jax.Array) -> jax.Array:
    """Returns whether no value is NaN or infinite."""
    return jnp.all(jnp.isfinite(array))


def refuse(where: str, problems: Sequence[str]) -> None:
    """Raises ValueError with the problems, one to a line and not too many; does nothing without problems."""
    if problems:
        others = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{where} does not hold this model:\n  " + "\n  ".join(problems[:_SHOWN]) + others)


def match(
    where: str,
    stored: Mapping[str, Stored],
    parameters: Mapping[Path, Sequence[Layout]],
    call: Callable[[str], str],
) -> dict[Path, list[tuple[Stored, Layout]]]:
    """Returns for every parameter its stored tensors, with their layouts.

    Args:
        where: the file or folder, for messages.
        stored: the stored tensors, by the names that layouts use.
        parameters: for every parameter the layouts of its parts.
        call: maps the names that layouts use to the file's.

    Raises:
        ValueError: with the name of every tensor that is missing, not of this model, of another shape, or has a
            `problem`.
    """
    wanted = {layout.name: layout for layouts in parameters.values() for layout in layouts}
    problems = [f"missing: {call(name)}" for name in wanted if name not in stored]
    problems += [f"not in this model: {stored[name].name}" for name in stored if name not in wanted]
    for name in wanted:
        if name in stored:
            tensor, shape = stored[name], wanted[name].shape
            if tensor.shape != shape:
                problems.append(f"{tensor.name}: shape {tensor.shape}, expected {shape}")
            elif tensor.problem:
                problems.append(f"{tensor.name}: {tensor.problem}")
    refuse(where, problems)
    return {path: [(stored[one.name], one) for one in layouts] for path, layouts in parameters.items()}
