"""Hooks for any JAX code: names for values inside of functions, and source rewriting to put them there.

tap      marks a value with a name; the identity under every transformation, and nothing of it is left when compiled
sites    the names in a function, with shapes
capture  makes a function return the values at its sites too
edit     makes a function compute with other values there
absent   says why a site is not there, to whoever asks for it
scope    prefixes the names tapped in it
Patch    rewrites functions of a module, anybody's, so that they tap; `Rewrite` is one edit
"""

from mishax_lite.hooks import Site, capture, edit, sites
from mishax_lite.patching import Patch
from mishax_lite.primitive import absent, scope, tap
from mishax_lite.report import Finding, PatchError, Report
from mishax_lite.rewriting import Rewrite

__all__ = [
    "Finding",
    "Patch",
    "PatchError",
    "Report",
    "Rewrite",
    "Site",
    "absent",
    "capture",
    "edit",
    "scope",
    "sites",
    "tap",
]
