"""Our half of the tests against programs that have files of autoencoders: random ones that we save, and what we make of
theirs.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

import sae
from sae.released import Released
from tests.peers import comparing

BATCH, A, Z = 40, 12, 32
AUTOENCODER, TRANSCODER = ("layer_1/resid_post",) * 2, ("layer_1/mlp_in", "layer_1/mlp_out")


def random(
    form: type[Released], sites: tuple, seed: int, *optional: str, out: int = A, L: int = 3, **numbers: int
) -> Released:
    """An autoencoder of random arrays, of which about half the latents are active, if it does not keep k.

    Args:
      form: the released form.
      sites: `info.site` and `info.site_out`.
      seed: of the arrays.
      optional: those of its arrays that may be None and are not.
      out: A'.
      L: the number of layers, of a form with several.
      **numbers: the form's, such as k.
    """
    rng, sizes = np.random.default_rng(seed), {"A": A, "A'": out, "Z": Z, "Zl": Z, "L": L}
    names = [name for name in form.axes if name not in form.optional() or name in optional]
    shapes = {name: [sizes[axis] for axis in form.axes[name]] for name in names}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name in {"W_enc", "W_dec", "W_skip"} & arrays.keys():
        arrays[name] /= np.float32(np.sqrt(A))
    if "threshold" in arrays:
        arrays["threshold"] = np.abs(arrays["threshold"])
    if form is sae.CrossLayerTranscoder:
        for layer in range(L):
            arrays["W_dec"][layer, :, :layer] = 0  # a latent writes to its layer and to later ones
    return form(**arrays, **numbers, info=sae.Info("gemma2-2b", *sites))


def write(autoencoders: Mapping[str, Released], folder: Path, format: str, *shape: int) -> None:
    """Saves autoencoders in a format, each with what it computes for random activations.

    Args:
      autoencoders: by the name of the folder below `ours`.
      folder: of the run.
      format: as `sae.save` takes it.
      *shape: of one token's activation; by default [A], or [L, A].
    """
    for seed, (name, autoencoder) in enumerate(autoencoders.items()):
        token = shape or np.shape(autoencoder.W_enc)[:-1]
        x = np.random.default_rng(seed).normal(size=(BATCH, *token)).astype(np.float32)
        place = folder / "ours" / name
        sae.save(autoencoder, place, format=format)
        comparing.keep(place, x, np.asarray(autoencoder.encode(x)), np.asarray(autoencoder(x)))


def read(folder: Path, names: Iterable[str]) -> None:
    """Reads every autoencoder that the peer has saved, and compares; those that are to be refused have to be.

    Args:
      folder: of the run, with the peer's autoencoders below `theirs`.
      names: the autoencoders that have to be there.

    Raises:
      ValueError: for one that is missing, one that computes something else, one that is read and has to be refused, and
        for a refusal that does not name what is refused.
    """
    places = sorted(path for path in (folder / "theirs").iterdir())
    if missing := set(names) - {place.name for place in places}:
        raise ValueError(f"{folder / 'theirs'} has no {', '.join(sorted(missing))}: the peer's half has not run")
    for place in places:
        word = comparing.refused(place)
        if word is None:
            autoencoder, x = sae.load(place), comparing.inputs(place)
            comparing.compare(place, comparing.OURS, np.asarray(autoencoder.encode(x)), np.asarray(autoencoder(x)))
        else:
            _check_refused(place, word)


def _check_refused(place: Path, word: str) -> None:
    try:
        sae.load(place)
    except ValueError as error:
        text = str(error).replace(str(place), "")
        if word not in text:
            raise ValueError(f"{place}: it is refused without the word {word!r}: {error}") from None
        print(f"{place.name}: refused by name:{text}")
        comparing.note(place, comparing.OURS, refused=word)
    else:
        raise ValueError(f"{place}: it was read, while {word!r} has to be refused")
