"""The kinds of sites: for each one record, with the rewrites that put its tap into the model's source.

To add a site, add a `Kind` here, where the forward pass reaches it: its names, shapes, shardings, the table of the
documentation and whatever else is known about it derive from the record.

The rewrites may use `tap(name, value)`, `at(module, kind)` (the name in the block of a module) and what else
`gemma/sites.py` gives them.
"""

from gemma import layers, readout, transformer
from gemma.site_records import Edit, Kind
from mishax_lite import Rewrite


def _attention(before: str, after: str) -> Edit:
    return Edit(layers, "Attention.__call__", Rewrite(before, after))


def _feed_forward(before: str, after: str) -> Edit:
    return Edit(layers, "FeedForward.__call__", Rewrite(before, after))


def _block(before: str, after: str) -> Edit:
    return Edit(transformer, "Block.__call__", Rewrite(before, after))


def _transformer(before: str, after: str) -> Edit:
    return Edit(transformer, "Transformer.__call__", Rewrite(before, after))


def _absent_if_fused(kind: str) -> Edit:
    return _attention(
        "z = fused(q, k, v, allowed, c.attn_softcap)",
        f"absent(at(self, {kind!r}), fused_lacks({kind!r}))\nz = fused(q, k, v, allowed, c.attn_softcap)",
    )


def _norm(name: str, tap: str, variable: str, line: str) -> Edit:
    """Taps a variable of the norms that have a name, before a line. Queries' and keys' norms have other names."""
    rewrite = Rewrite(line, f"if self.name == {name!r}:\n    {variable} = tap({tap}, {variable})\n{line}")
    return Edit(layers, "RMSNorm.__call__", rewrite)


def _scale(kind: str, norm: str, *, in_layers: bool = True) -> Kind:
    """What a norm multiplies by before its gain."""
    tap = f"at(self, {kind!r})" if in_layers else repr(kind)
    words = norm.removesuffix("_norm").replace("ffw", "feed_forward").replace("_", "-")
    return Kind(
        kind,
        "B T 1",
        f"1/rms, what the {words} norm multiplies by",
        (_norm(norm, tap, "inverse", "normed = x32 * inverse"),),
        in_layers=in_layers,
        frozen=True,
        float32=True,
    )


# In the order of the forward pass.
KINDS = (
    Kind(
        "embed",
        "B T D",
        "embeddings after the sqrt(D) scaling, the input of block 0",
        (
            _transformer(
                "x = embedder.encode(tokens, self.dtype)",
                "x = tap('embed', embedder.encode(tokens, self.dtype))",
            ),
        ),
        in_layers=False,
        way=readout.unchanged,
    ),
    Kind(
        "resid_pre",
        "B T D",
        "input of the block",
        (
            _block(
                "attn_in = RMSNorm(name='pre_attention_norm')(x)",
                "x = tap(at(self, 'resid_pre'), x)\nattn_in = RMSNorm(name='pre_attention_norm')(x)",
            ),
        ),
        way=readout.unchanged,
    ),
    _scale("pre_attn_scale", "pre_attention_norm"),
    Kind(
        "attn_in",
        "B T D",
        "after the pre-attention norm",
        (
            _block(
                "attn_out, cache = Attention(...)(attn_in, positions, allowed, cache)",
                "attn_in = tap(at(self, 'attn_in'), attn_in)\n"
                "attn_out, cache = Attention(...)(attn_in, positions, allowed, cache)",
            ),
        ),
    ),
    Kind(
        "q",
        "B T N H",
        "queries after RoPE and their scaling",
        (
            _attention(
                "q = rope(q, positions, base, scale) * jnp.asarray(c.query_scale, x.dtype)",
                "q = tap(at(self, 'q'), rope(q, positions, base, scale) * jnp.asarray(c.query_scale, x.dtype))",
            ),
        ),
    ),
    Kind(
        "k",
        "B S K H",
        "keys after RoPE",
        (
            _attention(
                "k = rope(k, positions, base, scale)",
                "k = tap(at(self, 'k'), rope(k, positions, base, scale))",
            ),
        ),
    ),
    Kind(
        "v",
        "B S K H",
        "values as projected",
        (
            _attention(
                "if cache is not None:\n    k, v, cache = extend(cache, k, v)",
                "v = tap(at(self, 'v'), v)\nif cache is not None:\n    k, v, cache = extend(cache, k, v)",
            ),
        ),
    ),
    Kind(
        "attn_scores",
        "B N T S",
        "before softcap and mask",
        (
            _attention(
                "capped = softcap(scores.astype(jnp.float32), c.attn_softcap)",
                "scores = tap(at(self, 'attn_scores'), scores)\n"
                "capped = softcap(scores.astype(jnp.float32), c.attn_softcap)",
            ),
            _absent_if_fused("attn_scores"),
        ),
    ),
    Kind(
        "attn_pattern",
        "B N T S",
        "after softmax",
        (
            _attention(
                "pattern = jax.nn.softmax(masked, axis=-1).astype(x.dtype)",
                "pattern = tap(at(self, 'attn_pattern'), jax.nn.softmax(masked, axis=-1).astype(x.dtype))",
            ),
            _absent_if_fused("attn_pattern"),
        ),
        frozen=True,
    ),
    Kind(
        "attn_z",
        "B T N H",
        "heads' outputs before the output projection",
        (
            _attention(
                "return product('BTNH,NHD->BTD', z, ...), cache",
                "z = tap(at(self, 'attn_z'), z)\nreturn product('BTNH,NHD->BTD', z, ...), cache",
            ),
        ),
        way=readout.through_attention_output,
        division="post_attn_scale",
    ),
    _scale("post_attn_scale", "post_attention_norm"),
    Kind(
        "attn_out",
        "B T D",
        "after the post-attention norm: what is added to the residual",
        (
            _block(
                "attn_out = RMSNorm(name='post_attention_norm')(attn_out)",
                "attn_out = tap(at(self, 'attn_out'), RMSNorm(name='post_attention_norm')(attn_out))",
            ),
        ),
        way=readout.unchanged,
    ),
    Kind(
        "resid_mid",
        "B T D",
        "after that addition",
        (_block("x = x + attn_out", "x = tap(at(self, 'resid_mid'), x + attn_out)"),),
        way=readout.unchanged,
    ),
    _scale("pre_mlp_scale", "pre_ffw_norm"),
    Kind(
        "mlp_normed",
        "B T D",
        "after the pre-feed-forward norm's division, before its gain",
        (
            _norm(
                "pre_ffw_norm",
                "at(self, 'mlp_normed')",
                "normed",
                "gain = jnp.expand_dims(1.0 + scale.astype(jnp.float32), tuple(range(x.ndim - 1)))",
            ),
        ),
        float32=True,
    ),
    Kind(
        "mlp_in",
        "B T D",
        "after the pre-feed-forward norm with its gain",
        (
            _block(
                "mlp_in = RMSNorm(name='pre_ffw_norm')(x)",
                "mlp_in = tap(at(self, 'mlp_in'), RMSNorm(name='pre_ffw_norm')(x))",
            ),
        ),
    ),
    Kind(
        "mlp_gate",
        "B T F",
        "the gate's projection, before the nonlinearity",
        (
            _feed_forward(
                "gate, up = products('BTD,DF->BTF', x, gating)",
                "gate, up = products('BTD,DF->BTF', x, gating)\ngate = tap(at(self, 'mlp_gate'), gate)",
            ),
        ),
    ),
    Kind(
        "mlp_up",
        "B T F",
        "the other projection",
        (
            _feed_forward(
                "hidden = nn.gelu(gate, approximate=True) * up",
                "up = tap(at(self, 'mlp_up'), up)\nhidden = nn.gelu(gate, approximate=True) * up",
            ),
        ),
    ),
    Kind(
        "mlp_hidden",
        "B T F",
        "gelu(gate) * up",
        (
            _feed_forward(
                "return jnp.einsum('BTF,FD->BTD', hidden, linear)",
                "hidden = tap(at(self, 'mlp_hidden'), hidden)\nreturn jnp.einsum('BTF,FD->BTD', hidden, linear)",
            ),
        ),
        way=readout.through_feed_forward_output,
        division="post_mlp_scale",
    ),
    _scale("post_mlp_scale", "post_ffw_norm"),
    Kind(
        "mlp_out",
        "B T D",
        "after the post-feed-forward norm: what is added to the residual",
        (
            _block(
                "mlp_out = RMSNorm(name='post_ffw_norm')(mlp_out)",
                "mlp_out = tap(at(self, 'mlp_out'), RMSNorm(name='post_ffw_norm')(mlp_out))",
            ),
        ),
        way=readout.unchanged,
    ),
    Kind(
        "resid_post",
        "B T D",
        "output of the block",
        (_block("x = x + mlp_out", "x = tap(at(self, 'resid_post'), x + mlp_out)"),),
        way=readout.unchanged,
    ),
    _scale("final_scale", "final_norm", in_layers=False),
    Kind(
        "final_norm",
        "B T D",
        "after the last norm",
        (
            _transformer(
                "x = RMSNorm(name='final_norm')(x)",
                "x = tap('final_norm', RMSNorm(name='final_norm')(x))",
            ),
        ),
        in_layers=False,
    ),
    Kind(
        "logits",
        "B T V",
        "after the final softcap",
        (
            _transformer(
                "logits = softcap(embedder.decode(x), c.final_softcap)",
                "logits = tap('logits', softcap(embedder.decode(x), c.final_softcap))",
            ),
            _transformer(
                "if not self.unembeds:\n    return x",
                "if not self.unembeds:\n    absent('logits', losses_lack_logits)\n    return x",
            ),
        ),
        in_layers=False,
        float32=True,
    ),
)
