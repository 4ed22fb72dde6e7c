"""The largest activation of each latent, which a released autoencoder carries: the measure for steering.

It is measured when a run ends, with the autoencoders as they end: what latents did earlier, with other weights, says
nothing of them. The batches are those that would have come next.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mishax_lite.compiling import jit_program
from sae.autoencoder import JumpReLU, Largest, bare
from sae.crosscoder import Crosscoder
from sae.recipes import TrainConfig

SHARE = 10  # a tenth of the run's tokens, as one product for each is a fiftieth of the run's work
MOST_TOKENS = 2**18


def batches_to_see(config: TrainConfig) -> int:
    """How many batches are measured at the end of a run: a tenth of its own, one at least, of up to 2^18 tokens."""
    return max(1, min(config.steps // SHARE, MOST_TOKENS // config.batch_size))


def largest_activations(
    autoencoders: Sequence[JumpReLU | Crosscoder],
    configs: Sequence[TrainConfig],
    batches: Iterator[Mapping[str, jax.Array]],
    mesh: Mesh,
) -> list[Largest]:
    """Returns the record of each autoencoder over the next batches of a run.

    Args:
        autoencoders: on raw activations, on the mesh.
        configs: theirs; all of one batch size and number of steps.
        batches: {site: [B, A]}, raw, on the mesh; `batches_to_see` of them are taken.
        mesh: of the run.
    """
    waits = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"  # collectives in flight starve each other there
    count = batches_to_see(configs[0])
    arrays = [bare(one) for one in autoencoders]
    peaks = [np.zeros(one.width, np.float32) for one in arrays]
    for _ in range(count):
        batch = next(batches)
        for i, (one, config) in enumerate(zip(arrays, configs, strict=True)):
            peaks[i] = _peaks(mesh)(one, tuple(batch[site] for site in config.sites), peaks[i])
            if waits:
                peaks[i].block_until_ready()
    return [Largest(np.asarray(peak), count * config.batch_size) for peak, config in zip(peaks, configs, strict=True)]


@functools.lru_cache(maxsize=64)
def _peaks(mesh: Mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())

    def peaks(autoencoder, values, so_far):
        x = values[0] if len(values) == 1 else jnp.stack(values, axis=-2)
        return jnp.maximum(so_far, autoencoder.encode(x).max(axis=0))

    return jit_program(peaks, program="other", out_shardings=everywhere)
