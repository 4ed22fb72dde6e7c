"""Gemma's forward pass, compiled ahead of time for a TPU topology that need not be there.

libtpu compiles for any topology on any x86-64 machine (the extra `tpu`; `make .venv-tpu/.stamp`).
"""

import dataclasses
import importlib.util
import math
import os
from collections import Counter

import jax
import jax.numpy as jnp
import optax
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh

import gemma
import mishax_lite
from experiments.benchmarks import tpu_hlo
from gemma import sharding
from gemma.model import param_shapes

HBM = {"v5e": 16, "v5p": 95, "v6e": 32}  # GiB of a chip, from Google Cloud's "TPU versions"
PROGRAMS = ("sites", "logits", "loss")
_SCOPE = ("attn_z", "mlp_out", "resid_post")  # what Gemma Scope has autoencoders for


class DoesNotFitError(Exception):
    """The program takes more memory than a chip has; XLA's message says how much."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One program to compile.

    Attributes:
      model: the name of a preset.
      topology: as libtpu names it, `v5e:4x4`.
      dtype: of parameters and activations.
      program: what is computed beside three sites of the middle layer: "sites" nothing, so that the layers after it
        are not run; "logits" all of them, [B, T, V]; "loss" each token's, as `sae.evaluate` does.
      batch: sequences for each step of the axis `data`; tokens: of a sequence.
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
      arguments: parameters (those of unused layers too) and tokens; temporaries, outputs; peak: the most at any time.
      flops: of a chip, matrix products and all else.
      collectives: what is moved and how often; `tpu_hlo.collectives`.
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


def missing() -> str | None:
    """Why nothing can be compiled for TPUs here, or None."""
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed (it is in the extra `tpu`; `make test-tpu` makes an environment with it)"
    return None


def chips(topology: str) -> list[jax.Device]:
    """The devices of a topology. Has to be called before JAX has made use of a device, or where that was the CPU.

    Raises:
      ValueError: for a topology that libtpu does not know, a chip of unknown memory, and without libtpu.
    """
    if missing():
        raise ValueError(missing())
    if topology.split(":")[0] not in HBM:
        raise ValueError(f"no topology {topology!r}: it is one of {', '.join(HBM)}, a colon and chips, as v5e:4x4")
    # libtpu looks for the TPU that it runs on, asks a metadata server, and takes a lock; none of that is wanted. The
    # type only keeps it from warning that it found none.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": "disabled"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
    jax.config.update("jax_platforms", "cpu")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"libtpu knows no topology {topology!r}: {str(error).splitlines()[0]}") from None


def mesh_for(case: Case) -> Mesh:
    """`data` x `model` over all chips of the topology."""
    devices = chips(case.topology)
    over = case.model_axis or math.gcd(len(devices), case.config.num_kv_heads)
    if len(devices) % over:
        raise ValueError(f"{case.topology} has {len(devices)} chips: {over} of them cannot share the parameters evenly")
    shape = (len(devices) // over, over)
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), ("data", "model"))


def program(case: Case, model: gemma.Model, tokens: jax.Array):
    """What is compiled: the three sites, and what the case wants beside them."""

    def forward(tokens):
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
    memory, found = compiled.memory_analysis(), tpu_hlo.collectives(compiled.as_text())
    return Report(
        mesh=(mesh.shape["data"], mesh.shape["model"]),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        flops=compiled.cost_analysis()["flops"],
        collectives=found,
        below_float32=tpu_hlo.below_float32(lowered.as_text(), config.d_ff),
        unexpected=tpu_hlo.not_activations(found, case.batch * case.tokens, config.d_model),
    )
