"""Which tap a tap in a backward pass recomputes: `jax.checkpoint` runs it a second time.

Both come from one call of `tap` and share its serial number. A checkpointed function that is called several times is
traced once, so that several taps share it; then the inputs tell: what recomputes a tap is given the same value. Two
values are the same if the same operations made them of the same inputs, which is found by numbering values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from jax.extend import core as extend_core
from jax.extend.core import primitives

from mishax_lite.primitive import tap_p
from mishax_lite.survey import inner_jaxprs, survey

# Operations that return what they are given; jax.checkpoint puts some of them around what it saves.
_SAME = {"reduce_precision", "optimization_barrier", "name", "copy", "copy_p", "pvary", "pbroadcast"}


def first_runs(jaxpr: extend_core.Jaxpr) -> dict[int, int]:
    """For each recomputation in the survey of `jaxpr`, by position, the position of the tap that it recomputes."""
    taps = survey(jaxpr)
    firsts, agains = defaultdict(list), defaultdict(list)
    for position, tap in enumerate(taps):
        (agains if tap.again else firsts)[tap.params["serial"]].append(position)
    doubtful = any(len(firsts[serial]) > 1 for serial in agains)
    inputs = _Numbering().of_taps(jaxpr) if doubtful else None
    pairs = {}
    for serial, positions in agains.items():
        origins = firsts[serial]
        for k, position in enumerate(positions):
            same = [p for p in origins if inputs is None or inputs[p] == inputs[position]]
            if len(same) == 1:
                pairs[position] = same[0]
            elif origins:
                # A backward pass goes through the calls in reverse.
                pairs[position] = origins[max(0, len(origins) - 1 - k)]
    return pairs


class _Numbering:
    """Gives equal values of a program equal numbers, as far as it can see."""

    def __init__(self):
        self.numbers: dict[Hashable, int] = {}
        self.taps: list[tuple[int, ...]] = []
        self.stacked: dict[int, int] = {}  # of a value stacked by a scan, the value in its body

    def of_taps(self, jaxpr: extend_core.Jaxpr) -> list[tuple[int, ...]]:
        """For each tap in the survey, in its order, the numbers of its inputs."""
        self.run(jaxpr, [self.new() for _ in jaxpr.invars])
        return self.taps

    def number(self, key: Hashable) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def new(self) -> int:
        return self.number(("new", len(self.numbers)))

    def run(self, jaxpr: extend_core.Jaxpr, inputs: Sequence[int]) -> list[int]:
        env: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Any) -> int:
            if isinstance(v, extend_core.Literal):
                return self.number(("literal", str(v.val), str(v.aval)))
            return env[v]

        env.update((v, self.new()) for v in jaxpr.constvars)
        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self.equation(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: extend_core.JaxprEqn, inputs: list[int]) -> list[int]:
        inner = inner_jaxprs(eqn)
        if eqn.primitive is tap_p:
            self.taps.append(tuple(inputs))
            return [self.number(("tap", eqn.params["serial"], number)) for number in inputs]
        if eqn.primitive.name in _SAME and len(eqn.outvars) == len(inputs):
            return inputs
        if not inner:
            params = tuple(sorted((k, _hashable(v)) for k, v in eqn.params.items()))
            key = (eqn.primitive.name, str(params), tuple(inputs))
            return [self.number((*key, k)) for k in range(len(eqn.outvars))]
        if eqn.primitive is primitives.scan_p:
            return self.scan(eqn, inner[0], inputs)
        found = []
        for jaxpr in inner:
            # Calls run on their inputs; a branch on all but the index; what is in a loop, or unknown, on new values.
            own = inputs[1:] if eqn.primitive is primitives.cond_p else inputs
            opaque = eqn.primitive is primitives.while_p or len(own) != len(jaxpr.invars)
            found.append(self.run(jaxpr, [self.new() for _ in jaxpr.invars] if opaque else own))
        if len(found) == 1 and len(found[0]) == len(eqn.outvars):
            return found[0]
        return [self.new() for _ in eqn.outvars]

    def scan(self, eqn: extend_core.JaxprEqn, jaxpr: extend_core.Jaxpr, inputs: list[int]) -> list[int]:
        """An iteration's value is the same wherever it is read again from the stack that the scan made of it."""
        consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
        rows = [self.stacked.get(n, self.number(("row", n))) for n in inputs[consts + carries :]]
        outs = self.run(jaxpr, [*inputs[:consts], *(self.new() for _ in range(carries)), *rows])
        stacks = [self.number(("stack", n)) for n in outs[carries:]]
        self.stacked.update(zip(stacks, outs[carries:], strict=True))
        return [*(self.new() for _ in range(carries)), *stacks]


def _hashable(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else str(hash(text))
