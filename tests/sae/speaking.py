"""Whether a model speaks `sae.LanguageModel`: for the test of an adapter, whoever wrote the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def check(model, text: str, *, rtol: float = 1e-4) -> None:
    """Fails with what is wrong.

    Args:
        model: with its tokenizer, on one device.
        text: a few words.
        rtol: by how much numbers of two programs may differ, of the largest.
    """
    tokens = np.asarray([model.tokenizer.encode(text)] * 2, np.int32)
    check_what_it_says_of_itself(model)
    check_tokenizer(model.tokenizer, text, model.vocab_size)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))  # noqa: E731

    # Every site has the shape that its record says, where the model is an argument of a jit.
    names = tuple(model.sites)
    logits, values = jax.jit(lambda model: model.apply(tokens, capture=names))(model)
    assert set(values) == set(names)
    B, T = tokens.shape
    for name, site in model.sites.items():
        pairs = (B, *site.shape, T, T)
        assert values[name].shape == ((B, T, *site.shape) if site.per_token else pairs), name
    assert logits.shape == (B, T, model.vocab_size) and logits.dtype == jnp.float32
    forward = model.run(tokens, capture=names[:1])
    close(forward.logits, logits)
    close(forward.values[names[0]], values[names[0]])
    assert forward.mask.shape == tokens.shape and (np.asarray(forward.tokens) == tokens).all()

    # Losses are those of the logits, and an edit moves both.
    logp = jax.nn.log_softmax(logits)[:, :-1]
    losses = jax.jit(lambda model: model.losses(tokens))(model)
    close(losses, -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0])
    stream = [site for site in model.sites.values() if site.writes_to_residual and site.per_token]
    edits = {stream[-1].name: lambda value, _: 0 * value}
    without = jax.jit(lambda model: model.apply(tokens, edits=edits))(model)
    assert np.abs(without - logits).max() > 1e-3
    logp = jax.nn.log_softmax(without)[:, :-1]
    want = -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    close(jax.jit(lambda model: model.losses(tokens, edits=edits))(model), want)

    # Directions have no part that softmax ignores; a site that does not write to the residual stream has none.
    for site in model.sites.values():
        vector = jnp.ones(int(np.prod(site.shape)))
        if site.per_token and site.writes_to_residual:
            directions = model.logit_directions(site.name, vector)
            assert directions.shape == (model.vocab_size,) and directions.dtype == jnp.float32
            np.testing.assert_allclose(directions.mean(), 0, atol=1e-3 * float(jnp.abs(directions).max()))
        else:
            with pytest.raises(ValueError, match="residual stream"):
                model.logit_directions(site.name, vector)


def check_what_it_says_of_itself(model) -> None:
    """Its name, parameters, fingerprint and sites."""
    ids = {id(leaf) for leaf in jax.tree.leaves(model.params)}
    assert ids == {id(leaf) for leaf in jax.tree.leaves(model)}, "the leaves of the pytree are its parameters"
    hash(jax.tree.structure(model))  # as a jit of it needs
    assert isinstance(model.name, str) and jnp.issubdtype(model.dtype, jnp.floating)
    assert len(model.fingerprint) == 64 and int(model.fingerprint, 16) >= 0
    moved = jax.tree.map(lambda leaf: leaf + 1, model)
    assert moved.fingerprint != model.fingerprint
    assert all(site.name == name for name, site in model.sites.items()) and set(model.frozen) <= set(model.sites)
    layers = [site.layer for site in model.sites.values() if site.layer is not None]
    assert layers == sorted(layers), "sites are in the order of the forward pass"
    lean = getattr(model, "lean", model)
    assert {name for name, site in model.sites.items() if site.per_token} <= set(lean.sites)


def check_tokenizer(tokenizer, text: str, vocab_size: int) -> None:
    """Its ids."""
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos and tokenizer.bos in tokenizer.special_ids and tokenizer.pad in tokenizer.special_ids
    assert max(ids) < len(tokenizer) <= vocab_size and text.strip() in tokenizer.decode(ids)
    assert all(isinstance(tokenizer.piece(i), str) for i in ids)
    assert all(tokenizer.byte(i) is None or 0 <= tokenizer.byte(i) < 256 for i in ids)
    assert isinstance(tokenizer.sha256, str)
