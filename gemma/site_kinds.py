"""The kinds of sites: for each kind one record, with the rewrites that put its tap into the model's source.

To add a site, add a `Kind` here, at its place in the forward pass: its names, shapes, shardings, its line in the table
of the documentation and every other fact about it derive from the record. `gemma/site_edits.py` makes the rewrites.
"""

from gemma import readout
from gemma.site_edits import absent_if_fused, attention, block, feed_forward, norm, scale, transformer
from gemma.site_records import Kind

# In the order of the forward pass.
KINDS = (
    Kind(
        "embed",
        "B T D",
        "embeddings after the sqrt(D) scaling, the input of block 0",
        (
            transformer(
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
            block(
                "attn_in = RMSNorm(name='pre_attention_norm')(x)",
                "x = tap(at(self, 'resid_pre'), x)\nattn_in = RMSNorm(name='pre_attention_norm')(x)",
            ),
        ),
        way=readout.unchanged,
    ),
    scale("pre_attn_scale", "pre_attention_norm"),
    Kind(
        "attn_in",
        "B T D",
        "after the pre-attention norm",
        (
            block(
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
            attention(
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
            attention(
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
            attention(
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
            attention(
                "capped = softcap(scores.astype(jnp.float32), c.attn_softcap)",
                "scores = tap(at(self, 'attn_scores'), scores)\n"
                "capped = softcap(scores.astype(jnp.float32), c.attn_softcap)",
            ),
            absent_if_fused("attn_scores"),
        ),
    ),
    Kind(
        "attn_pattern",
        "B N T S",
        "after softmax",
        (
            attention(
                "pattern = jax.nn.softmax(masked, axis=-1).astype(x.dtype)",
                "pattern = tap(at(self, 'attn_pattern'), jax.nn.softmax(masked, axis=-1).astype(x.dtype))",
            ),
            absent_if_fused("attn_pattern"),
        ),
        frozen=True,
    ),
    Kind(
        "attn_z",
        "B T N H",
        "heads' outputs before the output projection",
        (
            attention(
                "return product('BTNH,NHD->BTD', z, ...), cache",
                "z = tap(at(self, 'attn_z'), z)\nreturn product('BTNH,NHD->BTD', z, ...), cache",
            ),
        ),
        way=readout.through_attention_output,
        division="post_attn_scale",
    ),
    scale("post_attn_scale", "post_attention_norm"),
    Kind(
        "attn_out",
        "B T D",
        "after the post-attention norm: what is added to the residual",
        (
            block(
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
        (block("x = x + attn_out", "x = tap(at(self, 'resid_mid'), x + attn_out)"),),
        way=readout.unchanged,
    ),
    scale("pre_mlp_scale", "pre_ffw_norm"),
    Kind(
        "mlp_normed",
        "B T D",
        "after the pre-feed-forward norm's division, before its gain",
        (
            norm(
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
            block(
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
            feed_forward(
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
            feed_forward(
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
            feed_forward(
                "return jnp.einsum('BTF,FD->BTD', hidden, linear)",
                "hidden = tap(at(self, 'mlp_hidden'), hidden)\nreturn jnp.einsum('BTF,FD->BTD', hidden, linear)",
            ),
        ),
        way=readout.through_feed_forward_output,
        division="post_mlp_scale",
    ),
    scale("post_mlp_scale", "post_ffw_norm"),
    Kind(
        "mlp_out",
        "B T D",
        "after the post-feed-forward norm: what is added to the residual",
        (
            block(
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
        (block("x = x + mlp_out", "x = tap(at(self, 'resid_post'), x + mlp_out)"),),
        way=readout.unchanged,
    ),
    scale("final_scale", "final_norm", in_layers=False),
    Kind(
        "final_norm",
        "B T D",
        "after the last norm",
        (
            transformer(
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
            transformer(
                "logits = softcap(embedder.decode(x), c.final_softcap)",
                "logits = tap('logits', softcap(embedder.decode(x), c.final_softcap))",
            ),
            transformer(
                "if not self.unembeds:\n    return x",
                "if not self.unembeds:\n    absent('logits', losses_lack_logits)\n    return x",
            ),
        ),
        in_layers=False,
        float32=True,
    ),
)
