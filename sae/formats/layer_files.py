"""The base of formats with a file for each layer, each of which is an autoencoder by itself."""

import re
from pathlib import Path
from typing import ClassVar

from sae.formats.format import Format


class LayerFiles(Format):
    """A format with several autoencoders in a folder; only read.

    Attributes:
        pattern: the pattern of a file's name, whose first group is the index of its layer.
    """

    main = None
    written = False
    pattern: ClassVar[re.Pattern[str]]

    def parts(self, folder: Path) -> list[Path]:
        """Returns the layers' files."""
        files = [path for path in folder.iterdir() if self.pattern.fullmatch(path.name)]
        # pyrefly: ignore[unsupported-operation]  not None here
        return sorted(files, key=lambda path: int(self.pattern.fullmatch(path.name)[1]))

    def takes(self, file: Path) -> bool:
        """Returns whether a file is a layer's."""
        return self.pattern.fullmatch(file.name) is not None
