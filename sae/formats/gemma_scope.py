"""Gemma Scope's files: `params.npz` with float32 `W_enc W_dec b_enc b_dec threshold` (arXiv 2408.05147), on raw
activations, b_dec not subtracted at the input. The paths of the public files name the model and the site
(`gemma_scope_paths.py`)."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from sae.autoencoder import JumpReLU
from sae.formats import gemma_scope_paths, npz_files
from sae.formats.format import Contents, Files, Format, formats
from sae.released import Released

_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


@formats.register("gemma_scope")
class GemmaScope(Format):
    """`params.npz`; a JumpReLU without a skip."""

    title = "Gemma Scope's format"
    main = "params.npz"
    default = 0

    def takes(self, file: Path) -> bool:
        """Returns whether a file is an npz archive, under any name but that of the format mishax_lite."""
        return file.suffix == ".npz" and file.name != "autoencoder.npz"

    def read(self, file: Path) -> Contents:
        """Reads a file; the names of arrays may begin with a lower-case w, as in some copies."""
        names = _own(npz_files.headers(file) or {})
        values = npz_files.read(file, list(names.values()))
        if others := [name for name, value in values.items() if name not in names.values() and value.ndim > 1]:
            raise ValueError(f"{file}: it holds {', '.join(others)}, which Gemma Scope's format has no meaning for")
        contents = {name: values[stored] for name, stored in names.items()}
        return Contents(JumpReLU, contents, info=gemma_scope_paths.info_of(file.parent))

    def shapes(self, file: Path) -> Contents | None:
        """Reads the archive's headers."""
        leaves = npz_files.headers(file)
        if leaves is None or set(_own(leaves).values()) - set(leaves):
            return None  # `read` names the problem
        contents = {name: leaves[stored] for name, stored in _own(leaves).items()}
        return Contents(JumpReLU, contents, info=gemma_scope_paths.info_of(file.parent))

    def lacks(self, autoencoder: Released) -> str | None:
        """Refuses all but a JumpReLU without a skip."""
        if not isinstance(autoencoder, JumpReLU):
            exact = " (its method jumprelu() makes one of it)" if hasattr(autoencoder, "jumprelu") else ""
            return (
                f"a {type(autoencoder).noun}"
                if autoencoder.several_sites()
                else (f"a {type(autoencoder).__name__}, only for a JumpReLU{exact}")
            )
        return None if autoencoder.W_skip is None else "an affine skip (W_skip)"

    def files(self, contents: Contents) -> Files:
        """Returns one archive, not compressed."""
        # pyrefly: ignore[bad-assignment]  not None here
        return {self.main: lambda file: np.savez(file, **contents.values)}


def _own(held: Collection[str]) -> dict[str, str]:
    """Returns {this library's name: the archive's name} of the arrays: some copies have a lower-case w."""
    small = {name: name.replace("W_", "w_") for name in _NAMES}
    return {name: other if other in held else name for name, other in small.items()}
