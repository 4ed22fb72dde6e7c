"""Reads tokenizer.json as a SentencePiece model if it says the same as one, and writes it from one.

transformers makes this file from `tokenizer.model`: a BPE vocabulary with byte fallback whose merges are all the ways
in which two pieces make a third, the lower id first. Such a file, or SentencePiece's unigram kind, needs no package but
`sentencepiece`.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence

from gemma.tokenizer import pieces
from gemma.tokenizer.added import AddedToken, from_fields
from gemma.tokenizer.pieces import SPACE

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_DECODER = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


class OtherKindError(ValueError):
    """The error of a file that is no SentencePiece model of Gemma's kind."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The content of a tokenizer.json.

    Attributes:
        added: the tokens that are taken out of a text first.
        begins: the tokens that a text gets before it.
        ends: the tokens that a text gets after it.
        model: the bytes of a SentencePiece model that says the same; None if no model does.
        bare: pieces that no text gives.
        reason: why no model says the same.
    """

    added: tuple[AddedToken, ...]
    begins: tuple[str, ...]
    ends: tuple[str, ...]
    model: bytes | None = None
    bare: frozenset[bytes] = frozenset()
    reason: str = ""


def read(contents: bytes) -> Vocabulary:
    """Reads a tokenizer.json.

    Args:
        contents: the content of the file.

    Raises:
        ValueError: for a file that is no tokenizer.json.
    """
    values = json.loads(contents)
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict) or not values["model"].get("vocab"):
        raise ValueError('it has no vocabulary: expected an object with "model" and in it "vocab"')
    added = tuple(from_fields(fields, int(fields["id"])) for fields in values.get("added_tokens") or ())
    begins, ends = _around(values.get("post_processor"))
    try:
        model, bare = _sentencepiece(values, added)
    except OtherKindError as error:
        return Vocabulary(added, begins, ends, reason=str(error))
    return Vocabulary(added, begins, ends, model, bare)


def _around(processor: Mapping | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the special tokens that a text gets before and after it."""
    parts = (processor or {}).get("processors") or [processor or {}]
    for part in parts:
        if part.get("type") == "TemplateProcessing":
            single = [next(iter(one.items())) for one in part["single"]]
            place = next((i for i, (kind, _) in enumerate(single) if kind == "Sequence"), len(single))
            names = [value["id"] for _, value in single]
            return tuple(names[:place]), tuple(names[place + 1 :])
    return (), ()


def _sentencepiece(values: Mapping, added: Sequence[AddedToken]) -> tuple[bytes, frozenset[bytes]]:
    """Returns the bytes of a SentencePiece model that says the same, and its pieces that no text gives."""
    model = values["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    _check_pipeline(values)
    if kind not in ("BPE", "Unigram"):
        raise OtherKindError(f"its vocabulary is of the kind {kind}")
    if not model.get("byte_fallback"):
        raise OtherKindError("it has no byte fallback")
    if kind == "BPE":
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
            if model.get(name):
                raise OtherKindError(f"it has {name} = {model[name]!r}")
        ids, scores, dead = _merged(model)
        unknown = model.get("unk_token")
    else:
        ids = {piece: i for i, (piece, _) in enumerate(model["vocab"])}
        scores, dead = {piece: score for piece, score in model["vocab"]}, set()
        unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
    texts = sorted(ids, key=ids.__getitem__)
    if [ids[text] for text in texts] != list(range(len(texts))):
        raise OtherKindError("its ids are not 0, 1, 2, ... without gaps")
    if unknown not in ids:
        raise OtherKindError("it has no token for unknown text")
    types = _types(ids, added, dead, unknown)
    specials = [ids.get(name, ids[unknown]) for name in ("<pad>", "<eos>", "<bos>")]
    proto = pieces.model_from_pieces(
        [text.encode() for text in texts],
        [scores.get(text, 0.0) for text in texts],
        [types[text] for text in texts],
        **dict(zip(("pad", "eos", "bos"), specials, strict=True)),
        unk=ids[unknown],
        kind=pieces.BPE if kind == "BPE" else pieces.UNIGRAM,
    )
    return proto, frozenset(text.encode() for text in dead - {token.content for token in added})


def _types(ids: Mapping[str, int], added: Sequence[AddedToken], dead: set[str], unknown: str) -> dict[str, int]:
    types = dict.fromkeys(ids, pieces.NORMAL)
    types |= dict.fromkeys(dead, pieces.CONTROL)
    types |= {text: pieces.BYTE for text in ids if _BYTE.fullmatch(text)}
    for token in added:
        # A token with a U+2581 matches where the text has one; elsewhere it is a piece like any other.
        if token.content in types and (token.normalized or SPACE not in token.content):
            types[token.content] = pieces.CONTROL if token.special else pieces.USER_DEFINED
    return types | {unknown: pieces.UNKNOWN}


def _check_pipeline(values: Mapping) -> None:
    """Raises OtherKindError unless the only change of a text, before and after the vocabulary, is spaces to U+2581."""
    normalizer = values.get("normalizer") or {}
    if normalizer.get("type") == "Sequence" and len(normalizer["normalizers"]) == 1:
        normalizer = normalizer["normalizers"][0]
    before = values.get("pre_tokenizer")
    metaspace = before is not None and before.get("type") == "Metaspace" and before.get("replacement") == SPACE
    whole = (
        before is not None and metaspace and before.get("prepend_scheme") == "never" and before.get("split") is False
    )
    if normalizer != _REPLACE and not (whole and not normalizer):
        raise OtherKindError(f"its normalizer is {json.dumps(normalizer)[:200]}")
    if not (before is None or before == _SPLIT or whole):
        raise OtherKindError(f"its pre-tokenizer is {json.dumps(before)[:200]}")
    decoder = values.get("decoder") or {}
    steps = (decoder.get("decoders") or []) if decoder.get("type") == "Sequence" else [decoder]
    if metaspace and steps and steps[0].get("type") == "Metaspace":
        steps = _DECODER[:1] + steps[1:]
    if not all(step in _DECODER for step in steps) or _DECODER[0] not in steps:
        raise OtherKindError(f"its decoder is {json.dumps(decoder)[:200]}")


def _merged(model: Mapping) -> tuple[dict[str, int], dict[str, float], set[str]]:
    """Returns the ids, scores that make SentencePiece merge in the same order, and the pieces that no merge makes."""
    ids = model["vocab"]
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges") or ()]
    wholes = [left + right for left, right in pairs]
    order = [whole for whole, _ in itertools.groupby(wholes)]
    scores = {whole: -float(rank) for rank, whole in enumerate(order)}
    if len(scores) != len(order):
        raise OtherKindError("its merges are not ordered by the piece that they make")
    # SentencePiece merges whatever two pieces make a third.
    given, formed = set(pairs), scores.keys() | {text for text in ids if len(text) == 1}
    for whole in order:
        for place in range(1, len(whole)):
            pair = whole[:place], whole[place:]
            if pair not in given and pair[0] in formed and pair[1] in formed:
                raise OtherKindError(f"it does not merge {pair[0]!r} and {pair[1]!r} to {whole!r}, which it has")
    dead = {text for text in ids if len(text) > 1 and text not in scores and not _BYTE.fullmatch(text)}
    return ids, scores, dead


def write(
    texts: Sequence[str], added: Sequence[AddedToken], unknown: str, begins: Sequence[tuple[str, int]], merged: int
) -> bytes:
    """Returns a tokenizer.json as transformers makes it from `tokenizer.model`.

    Args:
        texts: the pieces in the order of their ids.
        added: the tokens that are taken out of a text first.
        unknown: the piece for unknown text.
        begins: the (text, id) of tokens that a text gets before it.
        merged: how many of the pieces, from the first on, are made by merging.
    """
    ids = {text: id_ for id_, text in enumerate(texts)}
    single = [{"SpecialToken": {"id": text, "type_id": 0}} for text, _ in begins]
    single.append({"Sequence": {"id": "A", "type_id": 0}})
    processor = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *({next(iter(one)): {**next(iter(one.values())), "type_id": 1}} for one in single[:-1])]
        + [{"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [id_], "tokens": [text]} for text, id_ in begins},
    }
    fields = [
        {
            "id": token.id,
            "content": token.content,
            "single_word": token.single_word,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "special": token.special,
        }
        for token in sorted(added, key=lambda token: token.id)
    ]
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": fields,
        "normalizer": _REPLACE,
        "pre_tokenizer": _SPLIT,
        "post_processor": processor,
        "decoder": {"type": "Sequence", "decoders": _DECODER},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges(texts[:merged]),
        },
    }
    return json.dumps(values, ensure_ascii=False).encode()


def _merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns all ways in which two pieces make a third: by its id, then by the length of the left part."""
    vocabulary = set(texts)
    return [
        (text[:place], text[place:])
        for text in texts
        for place in range(1, len(text))
        if text[:place] in vocabulary and text[place:] in vocabulary
    ]
