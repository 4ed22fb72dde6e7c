"""Output for terminals that lack characters: a latin-1 or ASCII terminal gets the nearest that it has."""

import codecs
import sys
import unicodedata

_HANDLER = "mishax_nearest"
_NEAREST = {
    **{
        "–": "-",
        "—": "-",
        "−": "-",
        "…": "...",
        "→": "->",
        "←": "<-",
        "×": "x",
        "·": ".",
        "•": "*",
        "≤": "<=",
        "≥": ">=",
    },
    **{"‘": "'", "’": "'", "“": '"', "”": '"', "▁": "_", "θ": "theta", "λ": "lambda"},
}


def print_what_it_can() -> None:
    """Makes standard output and error replace characters that they cannot encode, in place of an exception."""
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's or a test's stream has no encoding that could fail
            stream.reconfigure(errors=_HANDLER)


def nearest(text: str) -> str:
    """Returns ASCII for characters that a terminal lacks: a similar one, the letter without its accent, or `?`.

    Example:
      >>> nearest("harvest …")
      'harvest ...'
    """
    return "".join(_NEAREST.get(one) or _plain(one) for one in text)


def _plain(one: str) -> str:
    if 0xDC80 <= ord(one) <= 0xDCFF:  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(one) - 0xDC00:02x}"
    return unicodedata.normalize("NFKD", one).encode("ascii", "ignore").decode() or "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return nearest(error.object[error.start : error.end]), error.end
