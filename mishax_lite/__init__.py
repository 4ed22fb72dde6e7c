"""Hooks for any JAX code: names for values inside of functions, and source rewriting to put the names there.

tap        marks a value with a name; it is the identity under every transformation, and compiled code has none of it
sites      lists the names in a function, with shapes
capture    makes a function return the values at its sites too
edit       makes a function compute with other values at its sites; `Edits` joins several edits in one pytree
gradients  makes a function return how its output moves with the values at its sites
absent     says why a site is missing, to whoever asks for it
scope      prefixes the names of the taps in it
modules    taps the output of every module of a Flax linen, nnx or Equinox model under the module's path
Patch      rewrites functions of any module so that they tap; `Rewrite` is one edit
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
