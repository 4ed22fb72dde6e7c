"""Trains the tiny model's tokenizer on the corpus of `experiments.tiny.corpus`, and tokenises the corpus with it.

    python -m experiments.tiny.tokenizer --corpus_dir=runs/tiny/corpus --out_dir=runs/tiny/tokenizer

A SentencePiece BPE set up as Gemma's is: byte fallback, identity normaliser, no dummy prefix, extra white space kept,
digits split, ids pad 0, eos 1, bos 2, unk 3, mask 4, and pieces for runs of newlines and of spaces.
It writes `tokenizer.model`; `train.npy` and `held_out.npy`, uint16 [tokens], where every document begins with BOS; and
`tokens.json` with the counts.
"""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from absl import app, flags

_CORPUS_DIR = flags.DEFINE_string(
    "corpus_dir", "runs/tiny/corpus", "Folder with train.jsonl and held_out.jsonl (default runs/tiny/corpus)."
)
_OUT_DIR = flags.DEFINE_string("out_dir", "runs/tiny/tokenizer", "Folder to write to (default runs/tiny/tokenizer).")
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size",
    4096,
    "Pieces, special ones and 256 bytes among them (default 4096).",
    lower_bound=512,
    upper_bound=65536,
)

# Ids 4 and on, in Gemma's order. SentencePiece writes a space as U+2581.
USER_PIECES = (
    ["<mask>", "<start_of_turn>", "<end_of_turn>"]
    + ["\n" * count for count in (1, 2, 3, 4)]
    + ["\u2581" * count for count in (2, 4, 8)]
)
SPECIAL_PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", *USER_PIECES]
ODD_TEXTS = (
    "",
    " ",
    " leading space",
    "trailing space ",
    "  two spaces",
    "a   b     c             d",
    "\ttab\tand\t\ttabs",
    "naïve 東京 🙂",
    "line\nline\n\nparagraph\n\n\n\n\n\nfar",
    " \n \n",
    "windows\r\nline",
    "\x00\x7f",
    "12345.67",
    "<start_of_turn>user\nHi<end_of_turn>\n",
    "<pad><eos><bos><unk>",
    "e\u0301 is not \u00e9",
)


def read_documents(path: Path) -> Iterator[dict[str, str]]:
    """Yields the documents of a .jsonl file, in its order.

    Raises:
      ValueError: for a file that does not exist, or a line that lacks id, source or text.
    """
    if not path.exists():
        raise ValueError(f"no corpus at {path}; run `python -m experiments.tiny.corpus --out_dir={path.parent}` first")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            entry = json.loads(line)
            if missing := {"id", "source", "text"} - set(entry):
                raise ValueError(f"{path}, line {number}, has no {sorted(missing)}; expected id, source and text")
            yield entry


def training_lines(path: Path) -> Iterator[str]:
    """Yields the documents' lines. Newlines are pieces by themselves, so no piece goes across the end of a line."""
    for entry in read_documents(path):
        yield from (line for line in entry["text"].split("\n") if line)


def train_tokenizer(path: Path, vocab_size: int) -> bytes:
    """Trains on the documents of the .jsonl file at `path`; returns the SentencePiece model file's bytes.

    The same file gives the same bytes: nothing is sampled.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=training_lines(path),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=1_000_000,
        num_threads=2,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=USER_PIECES,
        minloglevel=1,
    )
    return model.getvalue()


def check_pieces(processor: sentencepiece.SentencePieceProcessor, vocab_size: int) -> None:
    """Checks the size, the special pieces' ids and that newlines and spaces use their pieces.

    Raises:
      ValueError: for the first piece that is not as expected.
    """
    if processor.get_piece_size() != vocab_size:
        raise ValueError(
            f"the tokenizer has {processor.get_piece_size()} pieces; expected {vocab_size}: the corpus is"
            " too small for so many, ask for fewer with --vocab_size"
        )
    first = [processor.id_to_piece(index) for index in range(len(SPECIAL_PIECES))]
    if first != SPECIAL_PIECES:
        raise ValueError(f"the first pieces are {first}; expected {SPECIAL_PIECES}: look at the trainer's options")
    for text, pieces in (("\n", ["\n"]), ("\n\n", ["\n\n"]), ("\n" * 6, ["\n" * 4, "\n" * 2]), ("  ", ["\u2581" * 2])):
        if (got := processor.encode(text, out_type=str)) != pieces:
            raise ValueError(f"{text!r} is encoded as {got}; expected {pieces}: user_defined_symbols did not take")


def check_round_trip(processor: sentencepiece.SentencePieceProcessor, name: str, text: str) -> None:
    """Raises ValueError for a text that its ids do not decode to exactly."""
    back = processor.decode(processor.encode(text))
    if back != text:
        index = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
        raise ValueError(
            f"{name} does not survive encoding: at character {index} got {back[index : index + 40]!r}, expected "
            f"{text[index : index + 40]!r}; a literal U+2581 in the text reads as a space, clean it out"
        )


def tokenize(
    processor: sentencepiece.SentencePieceProcessor, path: Path
) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """Returns the ids uint16 [tokens] of all documents, each after BOS; and documents, tokens and characters by source.

    Raises:
      ValueError: for a document that its ids do not decode to.
    """
    arrays, counts = [], {}
    for entry in read_documents(path):
        check_round_trip(processor, entry["id"], entry["text"])
        ids = np.array([processor.bos_id(), *processor.encode(entry["text"])], dtype=np.uint16)
        arrays.append(ids)
        count = counts.setdefault(entry["source"], {"documents": 0, "tokens": 0, "characters": 0})
        count["documents"] += 1
        count["tokens"] += ids.size
        count["characters"] += len(entry["text"])
    return np.concatenate(arrays), dict(sorted(counts.items()))


def table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """Returns a table of the documents, tokens and characters per token of every split and source."""
    lines = [f"{'split':<12}{'source':<14}{'documents':>10}{'tokens':>12}{'chars/token':>13}"]
    for split, of_sources in counts.items():
        total = {key: sum(count[key] for count in of_sources.values()) for key in ("documents", "tokens", "characters")}
        for name, count in [*of_sources.items(), ("all", total)]:
            ratio = count["characters"] / count["tokens"]
            lines.append(f"{split:<12}{name:<14}{count['documents']:>10,}{count['tokens']:>12,}{ratio:>13.3f}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Trains the tokenizer, checks it, writes the token streams and prints their sizes."""
    if len(argv) > 1:
        raise app.UsageError(f"got arguments {argv[1:]}; expected flags only")
    corpus, out = Path(_CORPUS_DIR.value), Path(_OUT_DIR.value)
    out.mkdir(parents=True, exist_ok=True)
    model = train_tokenizer(corpus / "train.jsonl", _VOCAB_SIZE.value)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    check_pieces(processor, _VOCAB_SIZE.value)
    for text in ODD_TEXTS:
        check_round_trip(processor, f"the text {text!r}", text)
    (out / "tokenizer.model").write_bytes(model)
    counts = {}
    for split in ("train", "held_out"):
        ids, counts[split] = tokenize(processor, corpus / f"{split}.jsonl")
        np.save(out / f"{split}.npy", ids, allow_pickle=False)
    (out / "tokens.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    print(table(counts))


if __name__ == "__main__":
    app.run(main)
