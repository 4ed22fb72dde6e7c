"""Writes an autoencoder in another format. It needs no model.

python -m experiments.convert google/gemma-scope-2b-pt-res runs/res_20 --format=saelens \\
    --path=layer_20/width_16k/average_l0_71

FROM is a folder, a file in it, or a repository of the Hugging Face hub; TO is a folder without an autoencoder. What the
format has no place for is refused, and the error names the formats that have.
"""

from absl import flags

import sae
from sae.files import local_path
from sae.formats.files import main_files

from . import running

ARGUMENTS = ("FROM", "TO")
FORMAT = flags.DEFINE_string(
    "format", None, "Format to write, such as gemma_scope, gemma_scope_2, saelens, sparsify or mishax_lite. Needed."
)
PATH = flags.DEFINE_string("path", None, "Folder or file within FROM, where FROM is a repository or a copy of one.")
REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a repository. Default: its main branch.")


def check_flags() -> None:
    """Raises ValueError without a format."""
    if not FORMAT.value:
        raise ValueError("--format is needed: the format to write, such as gemma_scope_2 or saelens")


def main(source: str, target: str) -> None:
    """Reads the autoencoder, and writes it.

    Raises:
        ValueError: for a target with an autoencoder, and as `sae.load` and `sae.save` do.
    """
    folder = local_path(target)
    if kept := [name for name in main_files() if (folder / name).exists()]:
        raise ValueError(f"{target} holds an autoencoder already ({', '.join(kept)}): name another folder")
    autoencoder = sae.load(source, PATH.value, REVISION.value)
    sae.save(autoencoder, folder, FORMAT.value)
    print(f"{target}: {autoencoder} in the format {FORMAT.value}")


if __name__ == "__main__":
    running.run(main, check_flags, ARGUMENTS)
