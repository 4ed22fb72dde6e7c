"""What an outline promises: the same as loading, without reading the arrays."""

from pathlib import Path
from unittest import mock

import sae
from sae.formats import files


def check(path: Path) -> None:
    """Asserts that an outline has the form, shapes, numbers and info of what loading gives, and reads no arrays."""
    loaded, (format, _) = sae.load(path), files.find(path)
    with mock.patch.object(type(format), "read", side_effect=AssertionError("the arrays are read")):
        outline = files.outline(path)
    assert type(outline) is type(loaded) and outline.info == loaded.info
    shapes = [{name: (leaf.shape, leaf.dtype) for name, leaf in one.arrays().items()} for one in (outline, loaded)]
    assert shapes[0] == shapes[1]
    assert all(getattr(outline, name) == getattr(loaded, name) for name in loaded.numbers)
