"""Hooks for any JAX code: names for values inside of functions, and source rewriting to put them there.

tap      marks a value with a name; the identity under every transformation, and nothing of it is left when compiled
sites    the names in a function, with shapes
capture  makes a function return the values at its sites too
edit     makes a function compute with other values there; `Edits` is what it takes, as a pytree that can be joined
gradients  makes a function return how its output moves with them
absent   says why a site is missing, to whoever asks for it
scope    prefixes the names tapped in it
modules  taps the output of every module of a Flax linen, nnx or Equinox model under its path
Patch    rewrites functions of a module, anybody's, so that they tap; `Rewrite` is one edit
"""

# First, to warn before anything that a new JAX may break.
from mishax_lite._versions import UntestedVersionWarning  # isort: skip

from mishax_lite import tool_rules  # noqa: F401  (enters the rules of `tap` into other tools' tables)
from mishax_lite.differentiating import gradients
from mishax_lite.edits import Edits
from mishax_lite.hooks import capture, edit, sites
from mishax_lite.interpret import Site
from mishax_lite.module_taps import modules
from mishax_lite.patching import Patch
from mishax_lite.primitive import absent, scope, tap
from mishax_lite.report import Finding, PatchError, Report
from mishax_lite.rewriting import Rewrite
from mishax_lite.turns import BranchValue, LoopValue

__all__ = [
    "BranchValue",
    "Edits",
    "Finding",
    "LoopValue",
    "Patch",
    "PatchError",
    "Report",
    "Rewrite",
    "Site",
    "UntestedVersionWarning",
    "absent",
    "capture",
    "edit",
    "gradients",
    "modules",
    "scope",
    "sites",
    "tap",
]
