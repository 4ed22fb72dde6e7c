"""Where the hooks go: patches that put a tap at every site into the model's functions, by rewriting their source.

A site is a name and one exact point. `layer_{i}/` stands before all but `embed`, `final_norm` and `logits`.

| site | the value | shape |
| --- | --- | --- |
| `embed` | embeddings after the sqrt(D) scaling, the input of block 0 | B T D |
| `resid_pre` | input of the block | B T D |
| `attn_in` | after the pre-attention norm | B T D |
| `q` `k` `v` | after RoPE (q also after its scaling); v as projected | B T N H, B S K H |
| `attn_scores` | before softcap and mask | B N T S |
| `attn_pattern` | after softmax | B N T S |
| `attn_z` | heads' outputs before the output projection | B T N H |
| `attn_out` | after the post-attention norm: what is added to the residual | B T D |
| `resid_mid` | after that addition | B T D |
| `mlp_in` | after the pre-feed-forward norm | B T D |
| `mlp_gate` `mlp_up` | the two projections, before the nonlinearity | B T F |
| `mlp_hidden` | gelu(gate) * up | B T F |
| `mlp_out` | after the post-feed-forward norm: what is added to the residual | B T D |
| `resid_post` | output of the block | B T D |
| `final_norm` `logits` | after the last norm; after the final softcap | B T D, B T V |
"""

import difflib
import fnmatch
import re
from collections.abc import Sequence

from flax import linen as nn

from gemma import layers, transformer
from gemma.configs import Config
from mishax_lite import Patch, Rewrite, absent

# The sites of a block, in the order in which the forward pass reaches them, and those outside of blocks.
BLOCK_SITES = (
    *("resid_pre", "attn_in", "q", "k", "v", "attn_scores", "attn_pattern", "attn_z", "attn_out"),
    *("resid_mid", "mlp_in", "mlp_gate", "mlp_up", "mlp_hidden", "mlp_out", "resid_post"),
)
MODEL_SITES = ("embed", "final_norm", "logits")

# Sites with one vector per token, which an SAE can be trained on, and how wide it is.
_WIDTHS = {
    **dict.fromkeys(("embed", "final_norm", "resid_pre", "attn_in", "attn_out", "resid_mid"), lambda c: (c.d_model,)),
    **dict.fromkeys(("mlp_in", "mlp_out", "resid_post"), lambda c: (c.d_model,)),
    **dict.fromkeys(("mlp_gate", "mlp_up", "mlp_hidden"), lambda c: (c.d_ff,)),
    **dict.fromkeys(("q", "attn_z"), lambda c: (c.num_heads, c.head_dim)),
    **dict.fromkeys(("k", "v"), lambda c: (c.num_kv_heads, c.head_dim)),
    "logits": lambda c: (c.vocab_size,),
}


def names(config: Config) -> list[str]:
    """Every site of a model, in the order of the forward pass."""
    blocks = [f"layer_{i}/{site}" for i in range(config.num_layers) for site in BLOCK_SITES]
    return ["embed", *blocks, "final_norm", "logits"]


def matching(config: Config, patterns: Sequence[str]) -> list[str]:
    """The sites with a vector for each token that match names or patterns (`fnmatch`; `*` crosses `/`), in the order of
    the patterns and, within one, of the forward pass.

    Raises:
      ValueError: for a pattern that matches none; the nearest names are offered.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [site for site in fnmatch.filter(names(config), pattern) if site.rsplit("/", 1)[-1] in _WIDTHS]
        if not hits:
            # A plain name gets the better message; a pattern, the names nearest to it.
            token_shape(config, pattern)
        found.update(dict.fromkeys(hits))
    return list(found)


def token_shape(config: Config, site: str) -> tuple[int, ...]:
    """The shape of the activation of one token at a site: (D,), (F,), (N, H), … An SAE sees its axes joined.

    Raises:
      ValueError: for a name that is no site of this model (the nearest are offered), and for `attn_scores` and
        `attn_pattern`, which belong to pairs of tokens.
    """
    check(config, site)
    kind = site.rsplit("/", 1)[-1]
    if kind not in _WIDTHS:
        raise ValueError(f"{site} has a value for every pair of tokens, not a vector for each: it has no width")
    return _WIDTHS[kind](config)


def check(config: Config, site: str) -> None:
    """Raises ValueError, with the nearest names, unless `site` is a site of the model."""
    known = names(config)
    if site in known:
        return
    layer = re.fullmatch(r"layer_(\d+)/(.+)", site)
    if layer and layer[2] in BLOCK_SITES:
        raise ValueError(
            f"no site {site!r}: {config.name} has {config.num_layers} layers, 0 to {config.num_layers - 1}"
        )
    near = difflib.get_close_matches(site, known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"sites are layer_0/resid_post, {', '.join(MODEL_SITES)}, …"
    raise ValueError(f"no site {site!r} in {config.name}: {hint}")


def _in_block(module: nn.Module, kind: str) -> str:
    """The name of a site in a block, for a module of that block: `layer_3/q`; `q` for a module that stands alone.

    Not by `mishax_lite.scope`: that would make JAX trace anew, in every layer, each function that it has jitted itself.
    """
    layers_above = [name for name in module.path if name.startswith("layer_")]
    return f"{layers_above[-1]}/{kind}" if layers_above else kind


def _fused_lacks(kind: str) -> str:
    return f"fused attention never holds {kind}; it exists with attention='plain'"


_LAYERS = Patch(
    layers,
    {
        "Attention.__call__": [
            Rewrite(
                "q = rope(q, positions, base, scale) * jnp.asarray(c.query_scale, x.dtype)",
                "q = tap(at(self, 'q'), rope(q, positions, base, scale) * jnp.asarray(c.query_scale, x.dtype))",
            ),
            Rewrite(
                "k = rope(k, positions, base, scale)",
                "k = tap(at(self, 'k'), rope(k, positions, base, scale))\nv = tap(at(self, 'v'), v)",
            ),
            Rewrite(
                "capped = softcap(scores.astype(jnp.float32), c.attn_softcap)",
                "scores = tap(at(self, 'attn_scores'), scores)\n"
                "capped = softcap(scores.astype(jnp.float32), c.attn_softcap)",
            ),
            Rewrite(
                "pattern = jax.nn.softmax(masked, axis=-1).astype(x.dtype)",
                "pattern = tap(at(self, 'attn_pattern'), jax.nn.softmax(masked, axis=-1).astype(x.dtype))",
            ),
            Rewrite(
                "z = fused(q, k, v, allowed, c.attn_softcap)",
                "for kind in ('attn_scores', 'attn_pattern'):\n"
                "    absent(at(self, kind), fused_lacks(kind))\n"
                "z = fused(q, k, v, allowed, c.attn_softcap)",
            ),
            Rewrite(
                "return product('BTNH,NHD->BTD', z, ...), cache",
                "z = tap(at(self, 'attn_z'), z)\nreturn product('BTNH,NHD->BTD', z, ...), cache",
            ),
        ],
        "FeedForward.__call__": [
            Rewrite(
                "hidden = nn.gelu(gate, approximate=True) * up",
                "gate, up = tap(at(self, 'mlp_gate'), gate), tap(at(self, 'mlp_up'), up)\n"
                "hidden = tap(at(self, 'mlp_hidden'), nn.gelu(gate, approximate=True) * up)",
            ),
        ],
    },
    names={"at": _in_block, "absent": absent, "fused_lacks": _fused_lacks},
)

_TRANSFORMER = Patch(
    transformer,
    {
        "Block.__call__": [
            Rewrite(
                "attn_in = RMSNorm(name='pre_attention_norm')(x)",
                "x = tap(at(self, 'resid_pre'), x)\n"
                "attn_in = tap(at(self, 'attn_in'), RMSNorm(name='pre_attention_norm')(x))",
            ),
            Rewrite(
                "attn_out = RMSNorm(name='post_attention_norm')(attn_out)",
                "attn_out = tap(at(self, 'attn_out'), RMSNorm(name='post_attention_norm')(attn_out))",
            ),
            Rewrite("x = x + attn_out", "x = tap(at(self, 'resid_mid'), x + attn_out)"),
            Rewrite(
                "mlp_in = RMSNorm(name='pre_ffw_norm')(x)",
                "mlp_in = tap(at(self, 'mlp_in'), RMSNorm(name='pre_ffw_norm')(x))",
            ),
            Rewrite(
                "mlp_out = RMSNorm(name='post_ffw_norm')(mlp_out)",
                "mlp_out = tap(at(self, 'mlp_out'), RMSNorm(name='post_ffw_norm')(mlp_out))",
            ),
            Rewrite("x = x + mlp_out", "x = tap(at(self, 'resid_post'), x + mlp_out)"),
        ],
        "Transformer.__call__": [
            Rewrite(
                "x = embedder.encode(tokens, self.dtype)",
                "x = tap('embed', embedder.encode(tokens, self.dtype))",
            ),
            Rewrite(
                "x = RMSNorm(name='final_norm')(x)",
                "x = tap('final_norm', RMSNorm(name='final_norm')(x))",
            ),
            Rewrite(
                "logits = softcap(embedder.decode(x), c.final_softcap)",
                "logits = tap('logits', softcap(embedder.decode(x), c.final_softcap))",
            ),
        ],
    },
    names={"at": _in_block},
)

_PATCHES = (_LAYERS, _TRANSFORMER)


def install() -> None:
    """Puts the taps into the model's functions. Importing `gemma` does it: a tap that nobody asks for costs nothing."""
    for patch in _PATCHES:
        patch.install()


def uninstall() -> None:
    """Gives back the bare model."""
    for patch in reversed(_PATCHES):
        patch.uninstall()
