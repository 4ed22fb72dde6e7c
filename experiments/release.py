"""Makes a release of autoencoders: the folders of Gemma Scope 1 or 2, a model card, checksums, and a push to the hub.

    python -m experiments.release --saes_dir=runs/scope/saes --release_dir=runs/release --layout=gemma_scope_2
    python -m experiments.release --saes_dir=runs/scope/saes --only='*resid_post*' --push=owner/name --licence=cc-by-4.0

Metrics are those that `experiments.evaluate` or `experiments.scope` has kept beside the autoencoders. What is not on
record, and a licence that is not given, the card says to be missing. The same command again changes what has changed,
and pushes what the hub lacks.
"""

from absl import flags

import sae

from . import common, running
from .train import SAES_DIR

RELEASE_DIR = flags.DEFINE_string("release_dir", "runs/release", "Folder for the release.")
LAYOUT = flags.DEFINE_enum(
    "layout",
    "gemma_scope",
    ["gemma_scope", "gemma_scope_2"],
    "Folders of Gemma Scope 1, for one kind of site, or of Gemma Scope 2, for several.",
)
FILE_FORMAT = flags.DEFINE_string(
    "file_format", None, "Format of the files, such as saelens or mishax_lite. Default: the layout's own."
)
ONLY = flags.DEFINE_list("only", None, "Patterns of paths under --saes_dir: the autoencoders to release. Default: all.")
PUSH = flags.DEFINE_string("push", None, "Upload to this repository of the Hugging Face hub, owner/name.")
PRIVATE = flags.DEFINE_bool("private", False, "Make the repository private, where --push makes it.")
LICENCE = flags.DEFINE_string("licence", None, "Licence of the autoencoders, by the hub's name, such as apache-2.0.")
MODEL_LICENCE = flags.DEFINE_string("model_licence", None, "Licence of the model, for the card.")
TEXT_LICENCE = flags.DEFINE_string("text_licence", None, "Licence of the text that was trained on, for the card.")
# What --help lists.
flags.declare_key_flag("saes_dir")
flags.declare_key_flag("overwrite")


def check_flags() -> None:
    """Raises ValueError for flags that contradict one another."""
    if PRIVATE.value and not PUSH.value:
        raise ValueError("--private is of the repository that --push=owner/name makes: give both")


def main() -> None:
    """Makes the release, says what its card says to be missing, and pushes it.

    Raises:
        ValueError: as `sae.release` and `sae.push` do.
    """
    release = sae.release(
        SAES_DIR.value,
        RELEASE_DIR.value,
        layout=LAYOUT.value,
        format=FILE_FORMAT.value,
        only=ONLY.value or (),
        repository=PUSH.value,
        licences=sae.Licences(LICENCE.value, MODEL_LICENCE.value, TEXT_LICENCE.value),
        overwrite=flags.FLAGS.overwrite,
        progress=common.progress,
    )
    for line in release.missing:
        print(f"missing: {line}")
    for path in release.paths:
        print(f"{release.folder}/{path}")
    print(f"card: {release.folder}/README.md" + ("" if release.changed else " (nothing has changed)"))
    if PUSH.value:
        print(f"pushed: {sae.push(release.folder, private=PRIVATE.value, overwrite=flags.FLAGS.overwrite)}")


if __name__ == "__main__":
    running.run(main, check_flags)
