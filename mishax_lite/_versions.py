"""The versions of JAX that are tested, and a warning on import for a version outside of their range.

`TESTED` is the only list of them: `tests/mishax_lite/test_versions.py` holds the locks and `setup.py` to it. No newer
version is refused, so this package never pulls JAX down where something else needs a newer one.
"""

import re
import warnings

import jax

# The oldest that setup.py admits, Python 3.11's newest, and the newest: requirements-oldest.lock, requirements.lock and
# requirements-newest.lock.
TESTED = ("0.8.2", "0.10.2", "0.12.0.1")


class UntestedVersionWarning(UserWarning):
    """A warning that this version of JAX lies outside of the tested range, so that hooks may fail with it.

    Importing `mishax_lite` gives it. To silence it, filter it by its text before the import.

    Example:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", message="mishax_lite is tested")
        >>> issubclass(mishax_lite.UntestedVersionWarning, UserWarning)
        True
    """


def warn_if_untested(version: str) -> None:
    """Warns if a version of JAX is older than the oldest tested one, or of a later minor version than the newest.

    Args:
        version: a version as `jax.__version__` has it; a suffix after its numbers (".dev20261101", "rc1") does not
            count.

    Example:
        >>> warn_if_untested("0.8.2")
    """
    numbers, oldest, newest = (_numbers(each) for each in (version, TESTED[0], TESTED[-1]))
    if numbers and oldest <= numbers and numbers[:2] <= newest[:2]:
        return
    warnings.warn(
        f"mishax_lite is tested with JAX {', '.join(TESTED[:-1])} and {TESTED[-1]}; this is JAX {version}. "
        "Hooks depend on the form of the programs that JAX traces, which other versions may have changed. "
        f"If one fails, install a tested range: pip install 'jax>={TESTED[0]},<{newest[0]}.{newest[1] + 1}'.",
        UntestedVersionWarning,
        stacklevel=4,  # this function, this module, mishax_lite/__init__.py, and the import that the user wrote
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version; none if it starts with something else."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match.group().split(".")) if match else ()


warn_if_untested(jax.__version__)
