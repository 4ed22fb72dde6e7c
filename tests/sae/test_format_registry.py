"""A file format is one class, and so is a released form: both are added here, in a test's code alone."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae.autoencoder import Largest
from sae.formats import files
from sae.formats.format import Contents, Format, formats
from sae.released import Independent, forms
from tests.registering import registered

A, Z = 4, 8
RNG = np.random.default_rng(0)
INFO = sae.Info("m", "layer_1/resid_post", "layer_1/resid_post", training='{"a": 1}')


class InJson(Format):
    """An autoencoder as text."""

    title = "the format in_json"
    main = "autoencoder.json"

    def read(self, file):
        facts = json.loads(file.read_text())
        values = {name: np.float32(value) for name, value in facts["arrays"].items()}
        return Contents(forms[facts["form"]], values, facts["numbers"])

    def lacks(self, autoencoder):
        return None if autoencoder.width < 1000 else "so many latents"

    def files(self, contents):
        arrays = {name: value.tolist() for name, value in contents.values.items()}
        facts = {"form": forms.name_of(contents.form), "arrays": arrays, "numbers": dict(contents.numbers)}
        return {self.main: json.dumps(facts).encode()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Softplus(Independent):
    """A form of one's own, with a number of its own."""

    axes: ClassVar = {"W_enc": ("A", "Z"), "b_enc": ("Z",), "W_dec": ("Z", "A'"), "b_dec": ("A'",)}
    numbers: ClassVar = ("sharpness",)
    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    sharpness: float = dataclasses.field(default=2.0, metadata={"static": True})
    info: sae.Info | None = dataclasses.field(default=None, metadata={"static": True})
    largest: Largest | None = dataclasses.field(default=None, metadata={"static": True}, repr=False)

    def __post_init__(self):
        self.check_shapes()

    def encode(self, x):
        return jax.nn.softplus(self.sharpness * (self.joined(x) @ self.W_enc + self.b_enc)) / self.sharpness


def arrays():
    shapes = {"W_enc": (A, Z), "b_enc": (Z,), "W_dec": (Z, A), "b_dec": (A,)}
    return {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


@pytest.fixture
def added():
    files.main_files()  # the others are found
    with registered((formats, "in_json", InJson), (forms, "Softplus", Softplus)):
        yield


@pytest.mark.parametrize("format", ["in_json", "mishax_lite", None])
def test_a_form_of_ones_own_goes_through_a_format_of_ones_own(added, tmp_path, format):
    largest = Largest(np.arange(Z, dtype=np.float32), 10)
    autoencoder = Softplus(**arrays(), sharpness=3.5, info=INFO, largest=largest)
    sae.save(autoencoder, tmp_path, format=format)
    loaded = sae.load(tmp_path)
    assert isinstance(loaded, Softplus) and loaded.sharpness == 3.5
    assert loaded.info == INFO and loaded.largest == largest
    jax.tree.map(np.testing.assert_array_equal, loaded, autoencoder)
    outline = files.outline(tmp_path)
    assert outline.W_enc == jax.ShapeDtypeStruct((A, Z), np.float32) and outline.info == INFO
    x = jnp.ones((3, A))
    np.testing.assert_array_equal(loaded(x), autoencoder(x))


def test_a_format_of_ones_own_takes_the_houses_forms_and_is_refused_what_it_lacks(added, tmp_path):
    topk = sae.TopK(**arrays(), k=3, info=INFO)
    sae.save(topk, tmp_path / "a", format="in_json")
    assert isinstance(sae.load(tmp_path / "a" / "autoencoder.json"), sae.TopK) and sae.load(tmp_path / "a").k == 3
    sae.save(topk, tmp_path / "a", format="saelens")  # in the place of the other
    assert not (tmp_path / "a" / "autoencoder.json").exists() and sae.load(tmp_path / "a").k == 3
    wide = dataclasses.replace(topk, W_enc=jnp.ones((A, 1000)), b_enc=jnp.ones(1000), W_dec=jnp.ones((1000, A)))
    with pytest.raises(ValueError, match=r"the format in_json has no place for so many latents\. .* mishax_lite"):
        sae.save(wide, tmp_path / "b", format="in_json")


def test_a_form_that_is_not_registered_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no place for a Softplus, no registered form"):
        sae.save(Softplus(**arrays()), tmp_path)
    with pytest.raises(ValueError, match=r"no format is named 'gemma_scop': did you mean gemma_scope"):
        sae.save(sae.TopK(**arrays(), k=3), tmp_path, format="gemma_scop")
