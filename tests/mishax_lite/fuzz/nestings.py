"""Programs that nest the transformations in every order, around a tapped function."""

from __future__ import annotations

import itertools
import random

from tests.mishax_lite.fuzz.programs import RULES, Block, Call, Function, Op, Program, Tap, With

TRANSFORMATIONS = ("jit", "scan", "while", "cond", "remat", "vmap", "custom_jvp", "custom_vjp", "shard_map")

Nesting = tuple[str, ...]


def nestings(depth: int, sample: int | None = None) -> list[Nesting]:
    """All nestings of a depth, outermost first, or a sample of them, always the same."""
    every = list(itertools.product(TRANSFORMATIONS, repeat=depth))
    return every if sample is None else random.Random(depth).sample(every, sample)


def nest(nesting: Nesting) -> Program:
    """The program of a nesting: each level taps a value before the next level, all under one name.

    Which rule, policy and options a level has is drawn from the nesting, so that many nestings try all.
    """
    draw = random.Random("-".join(nesting))
    functions: list[Function] = []
    inner = Block((Tap("h", -1), Op("sin", -1), Tap("leaf", -1, draw.choice(("used", "pair", "unused")), 0)))
    for kind in reversed(nesting):
        if kind in RULES:
            rule = draw.choice(RULES[kind])
            options = tuple(o for o in ("only_fwd", "only_bwd") if draw.random() < 0.3)
            functions.append(Function(kind, inner, rule, options if (kind, rule) == ("custom_vjp", "value") else ()))
            step = Call(len(functions) - 1, -1)
        else:
            other = Block((Tap("h", -1),))
            blocks = {"while": (other, inner), "cond": (inner, other)}.get(kind, (inner,))
            options = {
                "scan": draw.choice(((), ("reverse",), ("no_xs",))),
                "vmap": draw.choice(((), ("transposed",))),
                "remat": draw.choice(((), ("dots",), ("everything",))),
                "cond": draw.choice(((), ("never",), ("always",))),
            }.get(kind, ())
            step = With(kind, -1, blocks, size=3 if kind == "vmap" else 2, b=0, options=options)
        inner = Block((Tap("h", -1), step))
    return Program(inner, tuple(functions), top=("f", "derivative") if draw.random() < 0.2 else ())
