"""How launches read text: which records they leave out, and where they keep a large text as tokens."""

from pathlib import Path

from absl import flags

from sae.text.preparing import Form

SKIP_BAD = flags.DEFINE_bool(
    "skip_bad",
    False,
    "Leave out records that are no text (broken JSON, no `text`, a chat that the model's template refuses), and say "
    "how many. Without this flag the first one ends the launch.",
)
TEXT_DIR = flags.DEFINE_string(
    "text_dir",
    None,
    "Folder in which text is kept as tokens, so that memory does not grow with it, and the next launch need not cut it "
    "again. Default: memory for files under 64 MiB, and else runs/text.",
)


def form(length: int, packed: bool, only_model_turns: bool, folder: Path) -> Form:
    """Returns how documents become sequences, as the flags say.

    Args:
      length: tokens of a sequence.
      packed: whether documents stand one after another in a sequence.
      only_model_turns: whether the other parts of chats are left out.
      folder: where a large text goes without `--text_dir`.
    """
    named = TEXT_DIR.value is not None
    # pyrefly: ignore[bad-argument-type]  not None here
    return Form(length, packed, only_model_turns, SKIP_BAD.value, TEXT_DIR.value if named else folder, named)
