"""Taps in the body of Flax linen's `nn.scan`, which first traces its body to see what all turns share.

Recent versions of Flax (seen in 0.12.12) eliminate dead code from that first trace, and treat what remains as shared.
A tap that a hook looks at remains although nobody uses its result, so `nn.scan` would refuse the body ("broadcasted
variable has a data dependency on the scan body"). The first trace computes nothing, so its taps may go.
"""

from __future__ import annotations

import sys
from typing import Any

from jax.interpreters import partial_eval

from mishax_lite.primitive import tap_p


def _eliminate(used: list[bool], *rest: Any) -> tuple[list[bool], Any]:
    """Decides for JAX whether a tap's equation, the last argument, stays: returns which inputs it uses, and itself."""
    eqn = rest[-1]
    is_kept = any(used) or (bool(eqn.effects) and not _is_first_trace())
    return [is_kept] * len(eqn.invars), eqn if is_kept else None


def _is_first_trace() -> bool:
    """Returns whether Flax's scan itself called what runs now, and not a body that it traces."""
    if "flax.core.axes_scan" not in sys.modules:
        return False
    called, frame = None, sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "scan_fn" and frame.f_globals.get("__name__") == "flax.core.axes_scan":
            return called == "dce_jaxpr"
        called, frame = frame.f_code.co_name, frame.f_back
    return False


partial_eval.dce_rules[tap_p] = _eliminate
