"""Language models that nobody here wrote, adapted in few lines, go the whole way from text to pages."""

import importlib.util
from pathlib import Path

import jax
import pytest

from tests.sae import speaking
from tests.sae.models import equinox_adapter, equinox_transformer, whole_way

FOLDER = Path(__file__).parent / "models"


def penzai(tokenizer):
    """Penzai's Llama-like transformer with random weights."""
    if importlib.util.find_spec("penzai") is None:
        pytest.skip("penzai is not installed")
    from penzai.models.transformer.variants import llamalike_common

    from tests.sae.models import penzai_llama

    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=24,
        projection_dim=6,
        mlp_hidden_dim=32,
        num_decoder_blocks=2,
        vocab_size=len(tokenizer),
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
    )
    transformer = llamalike_common.build_llamalike_transformer(config, jax.random.key(0))
    return penzai_llama.adapt(transformer, config, tokenizer)


def equinox(tokenizer):
    return equinox_adapter.adapt(equinox_transformer.Transformer(jax.random.key(0), len(tokenizer)), tokenizer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sae.TrainingWarning")  # runs of a few steps
@pytest.mark.parametrize(
    ("make", "sites"),
    [
        (penzai, ["layer_0/attn_z", "layer_1/resid_post"]),
        (equinox, ["blocks/0/mlp/up", "blocks/1/attention/mix"]),
    ],
)
def test_it_goes_the_whole_way(make, sites, tiny, tmp_path):
    model = make(tiny.tokenizer)
    speaking.check(model, "And God said")
    whole_way.go(model, sites, tmp_path)


@pytest.mark.parametrize("name", ["penzai_llama", "equinox_adapter"])
def test_an_adapter_has_less_than_80_lines(name):
    lines = (FOLDER / f"{name}.py").read_text("utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) < 80
