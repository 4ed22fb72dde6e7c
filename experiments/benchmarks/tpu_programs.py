"""Gemma's forward pass, compiled ahead of time for a TPU topology, which may be missing.

libtpu compiles for any topology on any x86-64 machine (the extra `tpu`; `make .venv-tpu/.stamp`).
"""

import dataclasses
import math
from collections import Counter

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import gemma
import mishax_lite
from experiments.benchmarks import tpu_hlo
from gemma import sharding
from gemma.model import param_shapes
from sae import topologies

PROGRAMS = ("sites", "logits", "loss")
_SCOPE = ("attn_z", "mlp_out", "resid_post")  # what Gemma Scope has autoencoders for


class DoesNotFitError(Exception):
    """The program takes more memory than a chip has; XLA's message says how much."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A program to compile.

    Attributes:
      model: the name of a preset.
      topology: as libtpu names it, such as `v5e:4x4`.
      dtype: of parameters and activations.
      program: what is computed beside three sites of the middle layer: "sites", nothing, so that the layers after it
        are not run; "logits", all logits [B, T, V]; "loss", each token's loss, as `sae.evaluate` does.
      batch: sequences for each step of the axis `data`.
      tokens: tokens of a sequence.
      attention: "plain" or "fused".
      model_axis: chips that share the parameters; 0: the most that divide both the topology and K.
    """

    model: str
    topology: str
    dtype: str = "bfloat16"
    program: str = "sites"
    batch: int = 8
    tokens: int = 1024
    attention: str = "plain"
    model_axis: int = 0

    @property
    def config(self) -> gemma.Config:
        """The model's shape."""
        return gemma.config(self.model)

    @property
    def layer(self) -> int:
        """The middle layer: 12 of the 2B, 20 of the 9B, 22 of the 27B, each of which Gemma Scope covers."""
        return self.config.num_layers // 2 - 1

    def sites(self) -> list[str]:
        """The three sites."""
        return [f"layer_{self.layer}/{site}" for site in _SCOPE]


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of a case; sizes are bytes of a chip.

    Attributes:
      mesh: chips over `data`, and over `model`.
      arguments: parameters (those of unused layers too) and tokens.
      temporaries: memory beside arguments and outputs.
      outputs: what the program returns.
      peak: the most at any time.
      flops: operations of a chip.
      collectives: the moved arrays, with their counts; `tpu_hlo.collectives`.
      below_float32: `tpu_hlo.below_float32`.
      unexpected: collectives that are no sums of activations; `tpu_hlo.not_activations`.
    """

    mesh: tuple[int, int]
    arguments: int
    temporaries: int
    outputs: int
    peak: int
    flops: float
    collectives: Counter
    below_float32: Counter
    unexpected: list


def mesh_for(case: Case) -> Mesh:
    """Returns a mesh `data` x `model` over all chips of the topology."""
    devices = topologies.chips(case.topology)
    over = case.model_axis or math.gcd(len(devices), case.config.num_kv_heads)
    return topologies.mesh(devices, over, "model", case.topology)


def program(case: Case, model: gemma.Model, tokens: jax.Array):
    """Returns what the compiled program computes: the three sites, and what the case adds."""

    def forward(tokens):
        # pyrefly: ignore[bad-argument-type]  not None here
        return model.apply(tokens, attention=case.attention)

    logits, values = mishax_lite.capture(forward, case.sites())(tokens)
    if case.program == "sites":
        return values
    if case.program == "logits":
        return values, logits
    return values, optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])


def compile_forward(case: Case) -> Report:
    """Compiles a case.

    Raises:
      ValueError: for a case that makes no sense.
      DoesNotFitError: when the chips' memory does not suffice.
    """
    if case.program not in PROGRAMS:
        raise ValueError(f"a program is one of {', '.join(PROGRAMS)}, got {case.program!r}")
    if case.dtype not in ("bfloat16", "float32"):
        raise ValueError(f"a dtype is one of bfloat16, float32, got {case.dtype!r}")
    mesh, config, dtype = mesh_for(case), case.config, jnp.dtype(case.dtype)
    shapes = param_shapes(config, dtype)
    over = sharding.site_shardings(config, [*case.sites(), "logits"], mesh)
    logits = over.pop("logits")
    outputs = {"sites": over, "logits": (over, logits), "loss": (over, sharding.batch_sharding(mesh))}[case.program]

    def struct(leaf: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    model = gemma.Model(jax.tree.map(struct, shapes, sharding.param_shardings(shapes, mesh)), config, None, dtype)
    tokens = jax.ShapeDtypeStruct((case.batch * mesh.shape["data"], case.tokens), jnp.int32)
    tokens = struct(tokens, sharding.batch_sharding(mesh))
    # Parameters of layers that are not run take their memory all the same.
    jitted = jax.jit(lambda m, t: program(case, m, t), out_shardings=outputs, keep_unused=True)
    with jax.set_mesh(mesh):
        lowered = jitted.trace(model, tokens).lower(lowering_platforms=("tpu",))
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFitError(str(error).splitlines()[0]) from None
    # pyrefly: ignore[bad-argument-type]  not None here
    memory, moved = compiled.memory_analysis(), tpu_hlo.collectives(compiled.as_text())
    return Report(
        mesh=(mesh.shape["data"], mesh.shape["model"]),
        # pyrefly: ignore[missing-attribute]  not None here
        arguments=memory.argument_size_in_bytes,
        # pyrefly: ignore[missing-attribute]  not None here
        temporaries=memory.temp_size_in_bytes,
        # pyrefly: ignore[missing-attribute]  not None here
        outputs=memory.output_size_in_bytes,
        # pyrefly: ignore[missing-attribute]  not None here
        peak=memory.peak_memory_in_bytes,
        # pyrefly: ignore[unsupported-operation]  not None here
        flops=compiled.cost_analysis()["flops"],
        collectives=moved,
        below_float32=tpu_hlo.below_float32(lowered.as_text(), config.d_ff),
        unexpected=tpu_hlo.not_activations(moved, case.batch * case.tokens, config.d_model),
    )
