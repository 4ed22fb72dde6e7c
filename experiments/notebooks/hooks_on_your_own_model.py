# %% [markdown]
# # Hooks on your own model
#
# `mishax_lite` gives names to values inside any JAX function, and reads, changes and differentiates them from
# outside. It imports JAX alone. This notebook trains a small transformer in plain JAX to repeat what it has read, and
# opens it up to see how it does that. Then come Flax modules, and other people's code that you cannot edit. All of it
# takes less than a minute on a CPU, and runs unchanged on a TPU or a GPU.
#
# The next cell installs the package where it is missing. In a checkout you need not change it (after `make env` the
# package is installed). In Colab, choose a TPU or a CPU under *Runtime > Change runtime type*, and let `SOURCE` say
# where the package is: `git+https://...`, the address of your copy of the repository, or the path of a wheel that you
# have uploaded.

# %%
import glob
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = ""
if importlib.util.find_spec("mishax_lite") is None:
    here = (Path.cwd(), *Path.cwd().parents)
    source = SOURCE or next((str(folder) for folder in here if (folder / "mishax_lite").is_dir()), None)
    if source is None:
        raise RuntimeError("the package is not installed, and this is no checkout: let SOURCE say where it is")
    # The extra `tpu` brings the libtpu that goes with JAX's version.
    extra = "[tpu]" if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") else ""
    wanted = f"mishax-lite{extra} @ {source}" if "://" in source else source + extra
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)

# %%
import jax
import jax.numpy as jnp
import numpy as np

from mishax_lite import Patch, Rewrite, capture, edit, gradients, modules, scope, sites, tap

print(jax.devices())

# %% [markdown]
# ## A model with taps
#
# `tap(name, value)` returns the value and marks it; nothing of it is left in compiled code. `scope` puts a prefix
# before the names of one layer. Everything else is an ordinary transformer: attention alone, two layers of four
# heads.

# %%
VOCABULARY, DIM, HEADS, LENGTH = 32, 64, 4, 32


def init(key: jax.Array) -> dict:
    keys = iter(jax.random.split(key, 32))
    normal = lambda *shape: jax.random.normal(next(keys), shape) / np.sqrt(shape[0])
    head = DIM // HEADS
    layer = lambda: {"qkv": normal(DIM, 3, HEADS, head), "out": normal(HEADS * head, DIM)}
    table = {"embed": normal(VOCABULARY, DIM), "place": normal(LENGTH, DIM), "logits": normal(DIM, VOCABULARY)}
    return table | {"layers": [layer(), layer()]}


def attend(layer: dict, x: jax.Array) -> jax.Array:
    q, k, v = jnp.moveaxis(jnp.einsum("BTD,DcNH->BTcNH", x, layer["qkv"]), 2, 0)
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(q.shape[-1])
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    pattern = tap("pattern", jax.nn.softmax(jnp.where(causal, scores, -1e9)))
    z = tap("z", jnp.einsum("BNTS,BSNH->BTNH", pattern, v))
    return z.reshape(*x.shape[:2], -1) @ layer["out"]


def apply(params: dict, tokens: jax.Array) -> jax.Array:
    x = tap("embed", params["embed"][tokens] + params["place"][: tokens.shape[1]])
    for i, layer in enumerate(params["layers"]):
        with scope(f"layer_{i}/"):
            x = tap("resid", x + attend(layer, x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)))
    return tap("logits", x @ params["logits"])


params = init(jax.random.key(0))
tokens = jnp.zeros((1, LENGTH), int)
for name, value in sites(apply, params, tokens).items():
    print(f"{name:16} {value.shape}")

# %% [markdown]
# ## Train it
#
# A sequence is sixteen random tokens, and the same sixteen again. In the second half the model can know what comes
# next; in the first half nobody can.


# %%
def batch(key: jax.Array, size: int = 64) -> jax.Array:
    half = jax.random.randint(key, (size, LENGTH // 2), 0, VOCABULARY)
    return jnp.concatenate([half, half], axis=1)


def loss(params: dict, tokens: jax.Array) -> jax.Array:
    """Returns the loss in nats for each token of the second half."""
    logits = jax.nn.log_softmax(apply(params, tokens))[:, LENGTH // 2 - 1 : -1]
    return -jnp.take_along_axis(logits, tokens[:, LENGTH // 2 :, None], axis=-1).mean()


def adam(gradient, first, second, step):
    first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
    return 3e-3 * (first / (1 - 0.9**step)) / (jnp.sqrt(second / (1 - 0.99**step)) + 1e-8), first, second


@jax.jit
def train(params: dict, steps: jax.Array) -> tuple[dict, jax.Array]:
    def body(state, step):
        params, first, second = state
        value, gradient = jax.value_and_grad(loss)(params, batch(jax.random.key(step)))
        moved = jax.tree.map(lambda *leaves: adam(*leaves, step), gradient, first, second)
        change, first, second = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0, 0)), moved)
        return (jax.tree.map(jnp.subtract, params, change), first, second), value

    zeros = jax.tree.map(jnp.zeros_like, params)
    (params, _, _), losses = jax.lax.scan(body, (params, zeros, zeros), steps)
    return params, losses


params, losses = train(params, jnp.arange(1, 301))
tokens = batch(jax.random.key(10**6))
print(f"chance {np.log(VOCABULARY):.2f} nats; at first {losses[0]:.2f}, at last {losses[-1]:.3f}")

# %% [markdown]
# ## Capture
#
# `capture` transforms functions, as `jax.grad` does: wrap it in `jax.jit`. Patterns name the values that
# come back. Where do the heads look from the second half of a sequence? The answer, the token that came after the same
# one before, stands 15 places back.

# %%
logits, values = jax.jit(capture(apply, "*/pattern"))(params, tokens)
second = np.arange(LENGTH // 2, LENGTH)
for name, pattern in values.items():
    for head in range(HEADS):
        back = {d: float(pattern[:, head, second, second - d].mean()) for d in range(LENGTH // 2 + 1)}
        most = max(back, key=back.get)
        print(f"{name} head {head}: {back[most]:.2f} of its attention goes {most} back")

# %% [markdown]
# ## Edit
#
# `edit` takes functions of a value and its site, which return another value of the same shape. Which heads does the
# model need? Remove each head's output, and see how far the right token's logit falls.


# %%
def right(params: dict, tokens: jax.Array) -> jax.Array:
    """Returns how far the right token's logit is above the mean of all, in the second half."""
    logits = apply(params, tokens)[:, LENGTH // 2 - 1 : -1]
    chosen = jnp.take_along_axis(logits, tokens[:, LENGTH // 2 :, None], axis=-1)
    return (chosen - logits.mean(axis=-1, keepdims=True)).mean()


@jax.jit
def score(strengths: dict, params: dict, tokens: jax.Array) -> jax.Array:
    """Returns `right` with each head's output times its strength, {site: [HEADS]}."""
    return edit(right, {"*/z": lambda z, site: z * strengths[site.name][:, None]})(params, tokens)


names = ["layer_0/z", "layer_1/z"]
everything = {name: jnp.ones(HEADS) for name in names}
whole = score(everything, params, tokens)
without = {
    name: [
        score(everything | {name: everything[name].at[head].set(0)}, params, tokens) - whole for head in range(HEADS)
    ]
    for name in names
}
print(f"all heads: {whole:.2f}")

# %% [markdown]
# ## Gradients
#
# `gradients` says how a scalar moves with the value at each site; one backward pass gives all. Minus gradient
# times value estimates, to first order, what removing a head does. Compare it with the measurement: it is exact for
# layer 1, after which everything is linear, and too small for layer 0, whose outputs layer 1 scales and attends to.

# %%
_, slopes = jax.jit(gradients(right, "*/z"))(params, tokens)
_, values = jax.jit(capture(right, "*/z"))(params, tokens)
for name in names:
    estimates = -(slopes[name] * values[name]).sum(axis=(0, 1, 3))
    for head in range(HEADS):
        print(f"{name} head {head}: estimated {estimates[head]:+.2f}, measured {without[name][head]:+.2f}")

# %% [markdown]
# Gradients go through edits, too. With respect to the heads' strengths they are the same estimates:

# %%
by_strength = jax.jit(jax.grad(score))(everything, params, tokens)
for name in names:
    np.testing.assert_allclose(
        by_strength[name], (slopes[name] * values[name]).sum(axis=(0, 1, 3)), rtol=1e-2, atol=1e-3
    )
    print(name, np.round(np.asarray(by_strength[name]), 2))

# %% [markdown]
# ## Modules of Flax
#
# `modules` names the output of every module by its path, without taps or changes to the model. Equinox and nnx work
# the same.

# %%
import flax.linen as nn

network = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)])
x = jax.random.normal(jax.random.key(1), (2, 8))
weights = network.init(jax.random.key(2), x)
out, values = jax.jit(capture(modules(network).apply, "*"))(weights, x)
print({name: value.shape for name, value in values.items()})

# %% [markdown]
# ## Code that you cannot edit
#
# A `Patch` rewrites functions of an installed library in memory: wherever the syntax tree matches the first text of a
# `Rewrite`, it becomes the second. Flax's attention has no name for its pattern; inside the `with` it has one.

# %%
patch = Patch(
    "flax.linen.attention",
    {
        "dot_product_attention_weights": [
            Rewrite(
                "attn_weights = jax.nn.softmax($scores).astype(dtype)",
                "attn_weights = tap('attn_pattern', jax.nn.softmax($scores).astype(dtype))",
            ),
        ],
    },
)
attention = nn.MultiHeadDotProductAttention(num_heads=2)
weights = attention.init(jax.random.key(3), x)
with patch:
    out, values = capture(attention.apply, "attn_pattern")(weights, x)
    uniform = edit(attention.apply, {"attn_pattern": lambda p, site: jnp.full_like(p, 1 / p.shape[-1])})(weights, x)
print(values["attn_pattern"].shape, f"largest change by uniform attention: {jnp.abs(uniform - out).max():.3f}")

# %% [markdown]
# ## From here
#
# - `mishax_lite/README.md`: scans, while loops, `vmap`, `custom_vjp`, and a check for CI that patches still fit.
# - `sae/README.md`: `sae.AdaptedModel` makes a language model from your functions, to train autoencoders on.
# - *A first hour*, beside this notebook: autoencoders from training to steering.
