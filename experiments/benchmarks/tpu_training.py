"""A training step, compiled ahead of time for TPU topologies, which may be missing: sizes on a chip, and collectives.

python -m experiments.benchmarks.tpu_training

The autoencoders are Gemma Scope's, on the residual stream of Gemma 2 2B.
"""

import dataclasses
from collections import Counter

from jax.sharding import Mesh

import sae
from experiments import common, running
from experiments.benchmarks.tpu_hlo import Moved, collectives
from sae import topologies
from sae.trainer import programs

A = 2304  # dim of the residual stream of Gemma 2 2B
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile: latents, topology, chips that share the latents (the others share the batch), tokens."""

    width: int
    topology: str
    latent: int
    batch: int = 4096

    def __str__(self) -> str:
        size = f"{self.width // 2**20}m" if self.width >= 2**20 else f"{self.width // 2**10}k"
        return f"{size}-{self.topology}"

    def run(self) -> sae.Run:
        return sae.gemma_scope("resid_post", self.width, 1_000_000, batch_size=self.batch)

    def mesh(self) -> Mesh:
        return topologies.mesh(topologies.chips(self.topology), self.latent, "latent", self.topology)


# Gemma Scope trained 16k latents with data parallelism alone, and wider ones with as many chips along the latents as
# possible (arXiv 2408.05147, section 3).
CASES = (
    Case(2**14, "v5e:4x4", latent=1),
    Case(2**17, "v5e:4x4", latent=16),
    Case(2**17, "v5e:16x16", latent=16),
    Case(2**20, "v5p:2x2x4", latent=16),
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Bytes of a chip: the state with its batch, and what a step takes beside it. The collectives, and among them those
    that put a [B, Z] array together, and the dtypes in which gradients of weights [A, Z] are summed."""

    state: int
    temporaries: int
    flops: float
    collectives: Counter[Moved]
    gathers_of_latents: list[Moved]
    gradient_sums: list[str]


def estimate(case: Case) -> sae.Estimate:
    """Returns what `sae.train` would say before it starts."""
    return sae.estimate([case.run()], {"resid_post": A}, case.mesh())


def compile_step(case: Case) -> Report:
    mesh, run = case.mesh(), case.run()
    compiled = programs.compiled_step(programs.Shape.of(run, {"resid_post": A}), mesh)
    # pyrefly: ignore[bad-argument-type]  not None here
    memory, moved = compiled.memory_analysis(), collectives(compiled.as_text())
    latents, tokens = case.width // mesh.shape["latent"], case.batch // mesh.shape["data"]
    weights = (A * latents, A * case.width)
    return Report(
        # pyrefly: ignore[missing-attribute]  not None here
        state=memory.argument_size_in_bytes,
        # pyrefly: ignore[missing-attribute]  not None here
        temporaries=memory.temp_size_in_bytes,
        # pyrefly: ignore[unsupported-operation]  not None here
        flops=compiled.cost_analysis()["flops"],
        collectives=moved,
        # More than a chip's own part of z, and made of pieces.
        gathers_of_latents=[m for m in moved if m.kind != "all-reduce" and m.bytes > 4 * tokens * latents],
        gradient_sums=[m.dtype for m in moved if m.kind in ("all-reduce", "reduce-scatter") and _size(m) in weights],
    )


def _size(moved: Moved) -> int:
    return moved.bytes // {"f32": 4, "bf16": 2}.get(moved.dtype, 4)


def main():
    print("| latents | topology | mesh | state, batch | a step | of HBM | TFLOP of a chip | collectives of a chip |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in common.progress(CASES, total=len(CASES), desc="compile"):
        report, hbm = compile_step(case), topologies.HBM[case.topology.split(":")[0]]
        mesh = case.mesh()
        moved = ", ".join(
            f"{n} {m.kind} {m.dtype}{list(m.shape)}" for m, n in report.collectives.items() if m.bytes > 2**16
        )
        print(
            f"| {case.width:,} | {case.topology} | {mesh.shape['data']} x {mesh.shape['latent']} | "
            f"{report.state / GIB:.3f} | {report.temporaries / GIB:.3f} | "
            f"{(report.state + report.temporaries) / GIB:.2f} of {hbm} | {report.flops / 1e12:.2f} | {moved} |",
            flush=True,
        )


if __name__ == "__main__":
    running.run(main)
