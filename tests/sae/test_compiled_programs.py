"""The compiler options of the library's own programs; what options there are, tests of mishax_lite show."""

import jax
import pytest

import sae
from gemma import decoding
from mishax_lite import compiling
from sae import capturing
from sae.evaluation import latents
from sae.evaluation import programs as evaluation
from sae.trainer import programs
from sae.trainer.sweeps import groups_of


def test_programs_that_matter_are_compiled_with_the_options_of_their_kind(monkeypatch, one_device):
    forward = (capturing.activations_at, evaluation.losses_with, evaluation.reconstruct, latents._text_latents)
    assert {function.program for function in forward} == {"forward"}
    assert decoding.decode.program == "other"
    # That they reach the compiler shows an option which it refuses by its name.
    refused = lambda program, platform=None: {f"xla_of_{program}": "1"}  # noqa: E731
    monkeypatch.setattr(compiling, "compiler_options", refused)
    monkeypatch.setattr(programs, "compiler_options", refused)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_of_other"):
        compiling.jit_program(lambda x: x, program="other")(1)
    config = sae.short_run("x", 64, 100, batch_size=8, l0_target=4.0)
    shape = groups_of([config], {"x": 40}, "side_by_side")[0][0]
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_of_other"):
        programs.compiled_step(shape, one_device)
