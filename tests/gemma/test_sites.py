import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma
import mishax_lite
from gemma import layers
from gemma.site_records import Edit, Kind
from mishax_lite import Patch, Rewrite

TOKENS = np.array([[2, 23, 213, 277, 235, 316]], np.int32)


def compiled_text(fn, *args):
    """Optimised HLO without the metadata, which names source lines, and with names replaced by numbers."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    text = re.sub(r"(?m)^(FileNames|FunctionNames|FileLocations|StackFrames|\d+ [{\"].*)\n", "", text)
    numbers: dict[str, str] = {}
    name = r"%?[A-Za-z_][\w-]*(\.[\w-]+)*\.\d+[\w.-]*"
    return re.sub(name, lambda m: numbers.setdefault(m[0].lstrip("%"), f"n{len(numbers)}"), text).strip()


def test_an_idle_tap_costs_nothing(golden):
    model, _ = golden
    patched = compiled_text(lambda t: model.apply(t), TOKENS)
    gemma.sites.uninstall()
    try:
        assert mishax_lite.sites(model.apply, TOKENS) == {}
        bare = compiled_text(lambda t: model.apply(t), TOKENS)
    finally:
        gemma.sites.install()
    assert patched == bare
    assert len(mishax_lite.sites(model.apply, TOKENS)) == 21 * 4 + 4


def test_shapes_are_the_documented_ones(golden):
    model, _ = golden
    found = mishax_lite.sites(model.apply, TOKENS)
    B, T, c = 1, 6, model.config
    assert found["embed"].shape == (B, T, c.d_model)
    assert found["layer_3/q"].shape == found["layer_3/attn_z"].shape == (B, T, c.num_heads, c.head_dim)
    assert found["layer_3/k"].shape == found["layer_3/v"].shape == (B, T, c.num_kv_heads, c.head_dim)
    assert found["layer_3/attn_scores"].shape == found["layer_3/attn_pattern"].shape == (B, c.num_heads, T, T)
    assert found["layer_3/mlp_hidden"].shape == (B, T, c.d_ff)
    assert found["logits"].shape == (B, T, c.vocab_size)
    assert found["layer_3/post_mlp_scale"].shape == found["final_scale"].shape == (B, T, 1)
    for name, struct in found.items():
        site = model.sites[name]
        pairs = name.endswith(("attn_scores", "attn_pattern"))
        assert site.per_token == (not pairs) and site.name == name and name.endswith(site.kind)
        assert struct.shape == ((B, *site.shape, T, T) if pairs else (B, T, *site.shape)), name
        assert site.layer == (int(name.split("/")[0].removeprefix("layer_")) if "/" in name else None)
    assert model.sites["layer_3/attn_z"].shape == (c.num_heads, c.head_dim)


def test_the_table_of_the_documentation_has_every_kind_of_site(golden):
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| .+ \| ([BTSNKHDFV1 ]+) \|$", gemma.sites.__doc__))
    kinds = dict.fromkeys(site.kind for site in golden[0].sites.values())
    assert list(rows) == list(kinds)
    assert (rows["attn_scores"], rows["k"], rows["pre_mlp_scale"]) == ("B N T S", "B S K H", "B T 1")


def test_a_site_is_added_by_one_record(golden):
    model, _ = golden
    before = list(model.sites)
    rewrite = Rewrite(
        "nn.gelu(gate, approximate=True) * up", "tap(at(self, 'mlp_act'), nn.gelu(gate, approximate=True)) * up"
    )
    edit = Edit(layers, "FeedForward.__call__", rewrite)
    kind = Kind("mlp_act", "B T F", "the gate after its nonlinearity", (edit,))
    gemma.sites.add(kind, before="mlp_hidden")
    try:
        assert list(mishax_lite.sites(model.apply, TOKENS)) == list(model.sites) == gemma.sites.names(model.config)
        site = model.sites["layer_1/mlp_act"]
        assert (site.shape, site.sharding, site.writes_to_residual) == ((model.config.d_ff,), 0, False)
        values = model.run(TOKENS, capture="layer_1/mlp_*").values
        product = values["layer_1/mlp_act"] * values["layer_1/mlp_up"]
        np.testing.assert_allclose(product, values["layer_1/mlp_hidden"], rtol=1e-6)
        with pytest.raises(ValueError, match="the kind of site mlp_act exists already"):
            gemma.sites.add(kind, before="mlp_hidden")
    finally:
        gemma.sites.remove("mlp_act")
    assert list(mishax_lite.sites(model.apply, TOKENS)) == list(model.sites) == before
    with pytest.raises(ValueError, match="before is the kind of a site, such as mlp_hidden; got 'mlp_hiden'"):
        gemma.sites.add(kind, before="mlp_hiden")
    with pytest.raises(ValueError, match="no kind of site mlp_act was added"):
        gemma.sites.remove("mlp_act")
    stale = Edit(layers, "FeedForward.__call__", Rewrite("nn.relu(gate)", "tap(at(self, 'relu'), nn.relu(gate))"))
    with pytest.raises(ValueError, match=r"nn.relu\(gate\)"):
        gemma.sites.add(Kind("relu", "B T F", "", (stale,)), before="mlp_hidden")
    assert list(model.sites) == before


def test_only_what_is_asked_for_is_computed(tiny):
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    flops = lambda fn: jax.jit(fn).lower(tokens).compile().cost_analysis()["flops"]  # noqa: E731
    part = flops(lambda t: mishax_lite.capture(tiny.apply, ["layer_2/resid_post"])(t)[1])
    assert part < 0.6 * flops(lambda t: tiny.apply(t))


def test_an_edit_changes_what_comes_after_it_and_nothing_before(golden):
    model, _ = golden
    zero = {"layer_1/mlp_out": lambda value, site: jnp.zeros_like(value)}
    _, clean = mishax_lite.capture(model.apply, ["*"])(TOKENS)
    _, edited = jax.jit(mishax_lite.capture(mishax_lite.edit(model.apply, zero), ["*"]))(TOKENS)
    names = list(clean)
    at = names.index("layer_1/mlp_out")
    for name in names[:at]:
        np.testing.assert_allclose(clean[name], edited[name], atol=1e-5)
    assert not np.asarray(edited["layer_1/mlp_out"]).any()
    np.testing.assert_allclose(edited["layer_1/resid_post"], edited["layer_1/resid_mid"])
    assert all(np.abs(np.asarray(clean[name] - edited[name])).max() > 1e-3 for name in ("layer_2/q", "logits"))


@pytest.mark.slow
def test_gradients_and_vmap_go_through_sites(golden):
    model, _ = golden

    def logit(x):
        return mishax_lite.edit(model.apply, {"layer_2/resid_post": lambda v, _: v + x})(TOKENS)[0, -1, 5]

    gradient = jax.grad(logit)(jnp.zeros(48))
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    assert logit(step) - logit(-step) == pytest.approx(float(2 * gradient @ step), rel=2e-2)
    batched = jax.vmap(lambda t: mishax_lite.capture(model.apply, ["layer_0/q"])(t[None])[1]["layer_0/q"])
    one_by_one = mishax_lite.capture(model.apply, ["layer_0/q"])(np.repeat(TOKENS, 3, 0))[1]["layer_0/q"]
    np.testing.assert_allclose(batched(np.repeat(TOKENS, 3, 0))[:, 0], one_by_one, atol=1e-5)


def test_unknown_patterns_offer_the_nearest(golden):
    with pytest.raises(ValueError, match=r"layer_1/resid_pots(.|\n)*layer_1/resid_post"):
        mishax_lite.capture(golden[0].apply, ["layer_1/resid_pots"])(TOKENS)


def test_an_edit_of_source_that_no_longer_matches_is_a_clear_error():
    stale = Patch(layers, {"FeedForward.__call__": [Rewrite("hidden = nn.relu(gate) * up", "hidden = tap('h', 0)")]})
    with pytest.raises(ValueError) as error:
        stale.install()
    assert "FeedForward.__call__" in str(error.value)
    assert "nn.gelu(gate, approximate=True) * up" in str(error.value)  # the nearest source


def test_the_models_own_files_know_nothing_of_hooks():
    for name in ("layers", "transformer", "configs"):
        source = (Path(gemma.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        assert "mishax" not in source and "tap(" not in source


def test_importing_gemma_installs_the_sites():
    code = (
        "import gemma, mishax_lite, jax, numpy as np; m = gemma.load('gemma2-tiny'); "
        "print(len(mishax_lite.sites(m.apply, np.ones((1, 4), np.int32))))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == [str(21 * 6 + 4)]
