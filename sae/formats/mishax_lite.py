"""This library's own file, `autoencoder.npz`: any released form, with the name of the form and its plain numbers.

Readers of `params.npz` would misread a skip, several sites or another form, so the file has another name. Older files
have no name of a form: they are a JumpReLU, or a crosscoder if W_enc has three axes.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sae.formats import npz_files
from sae.formats.format import Contents, Files, Format, formats
from sae.released import Released, forms

_FORM = "form"


@formats.register("mishax_lite")
class MishaxLite(Format):
    """`autoencoder.npz`; every registered form."""

    title = "the format mishax_lite"
    main = "autoencoder.npz"
    default = 1

    def read(self, file: Path) -> Contents:
        """Reads a file of any registered form."""
        return _contents(file, npz_files.read(file, ("W_enc", "W_dec", "b_dec")))

    def shapes(self, file: Path) -> Contents | None:
        """Reads the archive's headers, and its plain numbers."""
        leaves = npz_files.headers(file)
        if leaves is None or "W_enc" not in leaves:
            return None  # `read` names the problem
        plain = [name for name, leaf in leaves.items() if not leaf.shape]
        return _contents(file, leaves | npz_files.some(file, (_FORM, *plain)))

    def lacks(self, autoencoder: Released) -> str | None:
        """Refuses a form that is not registered."""
        return None if type(autoencoder) in forms.values() else f"a {type(autoencoder).__name__}, no registered form"

    def files(self, contents: Contents) -> Files:
        """Returns one archive, not compressed."""
        about = {_FORM: np.str_(forms.name_of(contents.form)), **contents.numbers}
        # pyrefly: ignore[bad-assignment,bad-argument-type]  not None here; the keys say which is which
        return {self.main: lambda file: np.savez(file, **contents.values, **about)}


def _contents(file: Path, values: dict[str, Any]) -> Contents:
    """Returns the contents of an archive's arrays, or of their shapes."""
    form = _form(file, values)
    for name in form.numbers:
        if name not in values or values[name].shape or values[name].dtype.kind not in "if":
            raise ValueError(f"{file} is damaged: it has no number {name}")
    if missing := [name for name in form.axes if name not in values and name not in form.optional()]:
        raise ValueError(f"{file}: it has no {', '.join(missing)}; it holds {', '.join(values)}")
    numbers = {name: values[name].item() for name in form.numbers}
    return Contents(form, {name: values[name] for name in form.axes if name in values}, numbers)


def _form(file: Path, values: dict[str, Any]) -> type[Released]:
    if _FORM in values:
        name = str(values[_FORM])
        if name not in forms:
            raise ValueError(
                f"{file} has an autoencoder of the form {name!r}, and the registered forms are {', '.join(forms)}: "
                "import the module that registers it"
            )
        return forms[name]
    return forms["Crosscoder" if values["W_enc"].ndim == 3 else "JumpReLU"]
