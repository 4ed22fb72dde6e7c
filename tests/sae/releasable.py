"""Autoencoders in folders as training and evaluation leave them, for tests of releases."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np

import sae
from sae.autoencoder import Largest
from sae.evaluation import kept
from sae.explorer import tradeoff
from sae.records import Record
from sae.text.origin import Origin

MODEL, TEXT = "ab" * 32, "cd" * 32  # fingerprints
SITE = "layer_3/resid_post"
A = 6


def autoencoder(site=SITE, width=256, aim=20.0, seed=0, site_out=None, skip=False, **facts):
    """A JumpReLU of random numbers, negative zero and the least of all numbers among them, with its records.

    Args:
        aim: the L0 target of its run.
        facts: fields of its `Info` that are to be others.
    """
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (A, width), "b_enc": (width,), "W_dec": (width, A), "b_dec": (A,), "threshold": (width,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["threshold"] = np.abs(arrays["threshold"])
    arrays["b_enc"][:2] = -0.0, 1e-45
    if skip:
        arrays["W_skip"] = rng.normal(size=(A, A)).astype(np.float32)
    run = sae.short_run(site, width, steps=9, l0_target=aim, seed=seed, site_out=site_out)
    training = {"run": run.json(), "tokens": 9216, "store": {"activation_dtype": "float32"}}
    origin = Origin(256, corpus="shipped", documents_sha256="ef" * 32, model="gemma2-tiny")
    info = sae.Info(
        "gemma2-tiny",
        site,
        site_out or site,
        training=json.dumps(training, sort_keys=True),
        counted=sae.Counted((0, 1, 2)),
        record=Record(MODEL, TEXT, "12" * 32, "float32", origin),
    )
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    largest = Largest(np.arange(width, dtype=np.float32), 9)
    return sae.JumpReLU(**arrays, info=dataclasses.replace(info, **facts), largest=largest)


def metrics(one, l0=20.2, fvu=0.125, **changes):
    """What an evaluation of it could have measured."""
    figures = {"l0": l0, "fvu": fvu, "loss": 3.0, "loss_spliced": 3.25, "loss_zero": 8.0, "delta_loss": 0.25}
    figures |= {"loss_recovered": 0.95, "dead": 3, "tokens": 2000, "predictions": 1900, "documents": 17}
    return sae.Metrics(site=str(one.info.site_out), width=one.width, **figures | changes)


def measure(folder, one, model=MODEL, text="34" * 32, **figures):
    """Keeps metrics beside an autoencoder, as an evaluation does."""
    identity = kept.identity(folder, model[:16] + text[:16])
    record = {"identity": identity, "dtype": "float32", "metrics": metrics(one, **figures).to_dict()}
    (folder / kept.METRICS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def save(root, l0=None, **options):
    """Saves an autoencoder where training puts it, with metrics where an L0 is given. Returns it and its folder."""
    one = autoencoder(**options)
    aim = options.get("aim", 20.0)
    folder = root / one.info.site / f"width_{one.width}" / f"target_l0_{aim:g}"
    sae.save(one, folder)
    if l0 is not None:
        measure(folder, one, l0=l0)
    return one, folder


def same(one, other):
    """Whether two autoencoders are the same in every bit and every record."""
    arrays, others = one.arrays(), other.arrays()
    bits = all(np.asarray(arrays[name]).tobytes() == np.asarray(others[name]).tobytes() for name in arrays)
    return bits and arrays.keys() == others.keys() and (one.info, one.largest) == (other.info, other.largest)


def contents(folder):
    """The files of a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw_once(monkeypatch):
    """Has a picture that was drawn before be copied: drawing takes half a second, the rest of a release a twentieth."""

    def draw(metrics, path, title):
        key = (tuple(metrics), title)
        if key not in _drawn:
            _draw(metrics, path, title)
            _drawn[key] = path.read_bytes()
        path.write_bytes(_drawn[key])

    monkeypatch.setattr(tradeoff, "draw", draw)


_draw, _drawn = tradeoff.draw, {}
