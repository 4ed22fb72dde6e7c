"""Flags checked as a launch checks them, before anything is loaded."""

from absl import flags

from experiments import running


def check(module, *argv: str) -> None:
    """Raises what a launch says of flags.

    Args:
      module: of the launch.
      argv: the flags.
    """
    running.define_registered(module.__name__)
    flags.FLAGS(["a launch", *argv])
    running.check_values()
    running.check_names(module.__name__)
    module.check_flags()
