"""The forward pass against the reference implementation, at every site."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
from mishax_lite.compiling import jit_forward

# Absolute and relative; the reference's own rounding is 2e-5. A GPU adds up products in float32 in another order, and
# its own sines, exponentials and tanh differ in the last bits.
TOLERANCE = 1e-4 if jax.default_backend() == "cpu" else 3e-4


@pytest.fixture(scope="module", params=["golden", "golden_3"])
def reference(request):
    """(model, expected values by name) of a Gemma 2 and of a Gemma 3."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def captured(reference):
    model, expected = reference
    return jit_forward(mishax_lite.capture(model.apply, ["*"]))(expected["tokens"])


def close(got, want):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.gpu
def test_logits_and_golden_sites(reference, captured):
    model, expected = reference
    logits, values = captured
    close(logits, expected["logits"])
    golden_sites = [name for name in expected if "/" in name] + ["final_norm", "logits"]
    assert len(golden_sites) == 8 * model.config.num_layers + 2
    for site in golden_sites:
        close(np.asarray(values[site]).reshape(expected[site].shape), expected[site])


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + scale)


def rotate(x, base, scale):
    """RoPE, one token and one pair at a time, as complex numbers: nothing in common with gemma/layers.py."""
    _, T, _, H = x.shape
    out = np.empty_like(x)
    for t in range(T):
        for i in range(H // 2):
            turned = (x[:, t, :, i] + 1j * x[:, t, :, i + H // 2]) * np.exp(1j * t / scale / base ** (2 * i / H))
            out[:, t, :, i], out[:, t, :, i + H // 2] = turned.real, turned.imag
    return out


def test_other_sites_from_their_golden_neighbours(reference, captured):
    """`embed attn_in q k v attn_scores attn_pattern mlp_gate mlp_up` in float64 numpy from golden values."""
    model, expected = reference
    table = np.asarray(model.params["embedder"]["input_embedding"], np.float64)
    close(captured[1]["embed"], expected["layer_0/resid_pre"])
    close(captured[1]["embed"], table[expected["tokens"]] * np.sqrt(model.config.d_model))
    for layer in range(model.config.num_layers):
        check_block(model, expected, captured[1], layer)


def check_block(model, expected, values, layer):
    c = model.config
    local = layer % 2 == 0 if c.num_layers == 4 else layer != 5
    base, scale = (1e6, 8.0) if c.num_layers == 7 and not local else (1e4, 1.0)
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), model.params[f"layer_{layer}"])
    at = lambda site: expected[f"layer_{layer}/{site}"].astype(np.float64)  # noqa: E731
    got = lambda site: values[f"layer_{layer}/{site}"]  # noqa: E731
    attn_in = rms_norm(at("resid_pre"), p["pre_attention_norm"]["scale"])
    close(got("attn_in"), attn_in)
    q = np.einsum("btd,ndh->btnh", attn_in, p["attn"]["q_einsum"]["w"])
    k, v = np.einsum("bsd,ckdh->cbskh", attn_in, p["attn"]["kv_einsum"]["w"])
    if c.num_layers == 7:
        q, k = (rms_norm(x, p["attn"][name]["scale"]) for x, name in ((q, "_query_norm"), (k, "_key_norm")))
    q, k = rotate(q, base, scale) * c.query_scale, rotate(k, base, scale)
    for site, want in (("q", q), ("k", k), ("v", v)):
        close(got(site), want)
    B, T, N, H = q.shape
    scores, pattern, z = np.zeros((B, N, T, T)), np.zeros((B, N, T, T)), np.zeros((B, T, N, H))
    for n in range(N):
        kv = n // (N // c.num_kv_heads)
        scores[:, n] = np.einsum("bth,bsh->bts", q[:, :, n], k[:, :, kv])
        for t in range(T):
            first = max(0, t - c.window + 1) if local else 0
            capped = scores[:, n, t, first : t + 1]
            capped = 50 * np.tanh(capped / 50) if c.num_layers == 4 else capped
            weights = np.exp(capped - capped.max(axis=-1, keepdims=True))
            pattern[:, n, t, first : t + 1] = weights / weights.sum(axis=-1, keepdims=True)
        z[:, :, n] = np.einsum("bts,bsh->bth", pattern[:, n], v[:, :, kv])
    close(got("attn_scores"), scores)
    close(got("attn_pattern"), pattern)
    close(z.reshape(B, T, -1), at("attn_z"))
    close(got("mlp_gate"), at("mlp_in") @ p["mlp"]["gating_einsum"][0])
    close(got("mlp_up"), at("mlp_in") @ p["mlp"]["gating_einsum"][1])


def test_every_site_is_named_and_nothing_else_is(reference):
    model, expected = reference
    assert list(mishax_lite.sites(model.apply, expected["tokens"])) == gemma.sites.names(model.config)


def test_greedy_continuation(reference):
    model, expected = reference
    prompt, want = expected["greedy_prompt"], expected["greedy_tokens"]  # the continuation begins with the prompt
    apply = jax.jit(model.apply)
    tokens = np.zeros_like(want)
    tokens[:, : prompt.shape[1]] = prompt
    for t in range(prompt.shape[1], want.shape[1]):
        tokens[:, t] = np.argmax(apply(jnp.asarray(tokens))[0, t - 1])
    np.testing.assert_array_equal(tokens, want)


@pytest.mark.gpu
def test_greedy_continuation_by_generate(reference):
    model, expected = reference
    prompt, want = expected["greedy_prompt"], expected["greedy_tokens"]
    new = want.shape[1] - prompt.shape[1]
    made = gemma.generate(model, prompt.tolist(), max_new_tokens=new, stop_tokens=())
    np.testing.assert_array_equal(made.tokens, want[:, prompt.shape[1] :])
