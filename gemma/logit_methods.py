"""The methods of `gemma.Model` that lead from values at sites to logits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Float32, Integer, Shaped

from gemma import arguments, readout, sites
from gemma.configs import Config


class LogitMethods:
    """Methods of a model that need only its parameters and its configuration.

    Attributes:
        params: the parameters.
        config: the model's shape.
    """

    params: dict
    config: Config

    def unembed(self, residual: Float[ArrayLike, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """Returns the logits of a last residual stream: final norm, unembedding, final softcap. A pure function.

        Args:
            residual: [..., D], such as the value at the last layer's `resid_post`; computed in its own dtype.

        Returns:
            float32 [..., V].

        Raises:
            ValueError: for another width than D.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> model.unembed(jnp.ones(192)).shape
            (4096,)
        """
        with jax.default_matmul_precision("highest"):
            return readout.unembed(self.config, self.params, jnp.asarray(residual))

    def lens(self, value: Any) -> Any:
        """Returns the logits that the model would give if it ended at a value of the residual stream: the logit lens.

        It is `unembed` of any value in the stream, or of many at once (nostalgebraist 2020,
        https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens). A pure function.

        Args:
            value: [..., D], or a pytree of such arrays, such as `forward.values`.

        Returns:
            float32 [..., V] in the place of each array.

        Raises:
            ValueError: for another width than D.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> forward = model.run("The sea", capture="*/resid_post")
            >>> model.lens(forward.values)["layer_3/resid_post"].shape
            (1, 3, 4096)
        """
        return jax.tree.map(self.unembed, value)

    def direct_logits(
        self,
        value: Float[ArrayLike, "..."],
        site: str | None = None,
        *,
        scales: Mapping[str, Shaped[jax.Array, "..."]] | None = None,
        tokens: Integer[ArrayLike, " K"] | Sequence[int] | None = None,
    ) -> Float32[jax.Array, "..."]:
        """Returns what a component alone adds to the logits, before the final softcap: direct logit attribution.

        The residual stream is a sum, so with `scales` the contributions of `embed` and of every layer's `attn_out` and
        `mlp_out` add up to the model's logits (before the softcap), and those of the heads to that of `attn_out`. The
        contribution of a latent is that of its activation times its decoder row. A pure function.

        Args:
            value: [..., *shape] at the site. Heads [..., N, H] are taken one by one; joined, [..., N·H], together.
            site: a site that writes to the residual stream; None for a vector [..., D] of the stream itself.
            scales: captured values of the same tokens, such as `forward.values`, with the norms' scales that
                `gemma.sites.divisions` names: `final_scale`, and for heads their layer's `post_attn_scale`. The value
                may have further axes after the tokens'. None leaves the norms' divisions out.
            tokens: the ids [K] of the logits to compute; all by default.

        Returns:
            float32 [..., V], or [..., K] with `tokens`; for heads one by one [..., N, V].

        Raises:
            ValueError: for an unknown site or one that does not write to the residual stream, a value of another shape,
                scales that are missing or of other tokens, and ids that the model lacks.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> v = model.run("The sea", capture=["layer_3/attn_z", "layer_3/post_attn_scale", "final_scale"]).values
            >>> model.direct_logits(v["layer_3/attn_z"], "layer_3/attn_z", scales=v, tokens=[5, 6]).shape
            (1, 3, 4, 2)
        """
        record, way, shape = None, readout.unchanged, (self.config.d_model,)
        if site is not None:
            sites.check(self.config, site)
            record = sites.of(self.config)[site]
            way, shape = sites.way(record), record.shape
        vectors = readout.one_by_one(jnp.asarray(value, jnp.float32), shape)
        if vectors.shape[-1:] != (math.prod(shape),):
            raise ValueError(
                f"a value {'of the residual stream' if site is None else f'at {site}'} is [..., "
                f"{', '.join(map(str, shape))}], got {list(jnp.shape(value))}"
            )
        ids = None if tokens is None else jnp.asarray(tokens)
        if ids is not None and ids.ndim != 1:
            raise ValueError(f"tokens are ids [K], the same for every value; got an array {list(ids.shape)}")
        ids = None if ids is None else arguments.token_ids(ids[None], self.config)[0]
        *within, last = sites.divisions(record)
        if scales is not None and (missing := [name for name in (*within, last) if name not in scales]):
            raise ValueError(f"scales lack {missing[0]}: capture it with the value, or give no scales")
        with jax.default_matmul_precision("highest"):
            added = way(self.params, None if record is None else record.layer, vectors)
            if scales is not None:
                for name in (*within, last):
                    added = readout.multiplied(added, scales[name], name)
            return readout.direct_logits(self.params, added, ids)

    def logit_directions(self, site: str, vectors: Float[ArrayLike, "*B A"]) -> Float32[jax.Array, "*B V"]:
        """Returns how vectors at a site, added to the residual stream, would move the logits to first order.

        A vector passes the final norm's gain and the unembedding; the norm's division and the softcap, which depend on
        the token, are left out. Vectors of `attn_z` first go through the output projection and the post-attention
        norm's gain. The mean over the vocabulary, which softmax ignores, is subtracted. A pure function.

        Args:
            site: a site that writes to the residual stream.
            vectors: [..., A], A being the product of the site's axes.

        Returns:
            float32 [..., V].

        Raises:
            ValueError: for an unknown site or one that does not write to the residual stream, and for another A.

        Example:
            >>> model = gemma.load("gemma2-tiny")
            >>> model.logit_directions("layer_3/attn_z", jnp.eye(192)[:5]).shape
            (5, 4096)
        """
        sites.check(self.config, site)
        record = sites.of(self.config)[site]
        way, dim = sites.way(record), math.prod(record.shape)
        vectors = jnp.asarray(vectors, jnp.float32)
        if vectors.shape[-1:] != (dim,):
            raise ValueError(f"vectors at {site} are [..., {dim}], got {list(vectors.shape)}")
        with jax.default_matmul_precision("highest"):
            return readout.logits_of_directions(self.params, way(self.params, record.layer, vectors))
