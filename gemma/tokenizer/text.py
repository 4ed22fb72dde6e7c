"""A model's tokenizer: texts and chats to token ids and back."""

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma.tokenizer import chat
from gemma.tokenizer.added import AddedToken
from gemma.tokenizer.engines import GONE, Packaged, SentencePiece
from gemma.tokenizer.pieces import SPACE
from gemma.tokenizer.settings import Settings

_ROLES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
START, END = "<start_of_turn>", "<end_of_turn>"


class Tokenizer:
    """Text to token ids and back, the ids being those of transformers' tokenizer for the same files.

    Args:
      model_proto: a SentencePiece model's bytes, what `tokenizer.model` holds.
      settings: what stands beside it.
      engine: what encodes, if not that model.
      json: tokenizer.json, where the model was made from that.

    Attributes:
      bos, eos, pad: ids of the special tokens; bos_id, eos_id and pad_id are the same.
      special_ids: these and `<eos>`; what they mark is no text.
      model_proto: the SentencePiece model's bytes; None where the vocabulary is of another kind.
      settings: what stands beside the vocabulary.
      engine: what encodes.
      sha256: of what decides about ids, to tell tokenizers apart.

    Example:
      >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
      >>> tokenizer.decode(tokenizer.encode("The sea"))
      'The sea'
    """

    def __init__(
        self,
        model_proto: bytes | None,
        settings: Settings | None = None,
        *,
        engine: SentencePiece | Packaged | None = None,
        json: bytes | None = None,
    ):
        self.model_proto, self.json = model_proto, json
        self.settings = settings = Settings() if settings is None else settings
        # pyrefly: ignore[bad-argument-type]  one of the two is there
        self.engine = SentencePiece(model_proto, settings.added) if engine is None else engine
        self.pad, self.eos, self.bos = (self._special(role) for role in _ROLES)
        plain_eos = self.find("<eos>")
        ids = (self.pad, self.eos, self.bos, self.eos if plain_eos is None else plain_eos)
        self.special_ids = tuple(dict.fromkeys(ids))
        # pyrefly: ignore[bad-argument-type]  one of the two is there
        sha256 = hashlib.sha256(json or model_proto)
        # Of a tokenizer.model alone it is the file's, so that what older versions wrote stays valid.
        odd = {role: id_ for role, id_, usual in zip(_ROLES, ids, (0, 1, 2), strict=False) if id_ != usual}
        if settings.added or odd:
            sha256.update(repr((settings.added, odd)).encode())
        self.sha256 = sha256.hexdigest()
        self._expressions: dict[str, re.Pattern] = {}

    def _special(self, role: str) -> int:
        """The id of a special token; -1 where there is none."""
        token = self.settings.tokens.get(role, _ROLES[role])
        if isinstance(token, int):
            return token
        id_ = self.find(token)
        return -1 if id_ is None else id_

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """A tokenizer from `tokenizer.model` or `tokenizer.json`, with what stands beside it in its folder.

        Raises:
          ValueError: for a file that is no tokenizer, or that lacks one of Gemma's special tokens.
        """
        from gemma.checkpoints import places
        from gemma.tokenizer import files

        return files.read(places.path(path))

    def with_settings(self, settings: Settings) -> "Tokenizer":
        """The same vocabulary with other settings, but for added tokens."""
        return Tokenizer(self.model_proto, settings, engine=self.engine, json=self.json)

    bos_id = property(lambda self: self.bos)
    eos_id = property(lambda self: self.eos)
    pad_id = property(lambda self: self.pad)

    def __len__(self) -> int:
        """The number of pieces, V, with added tokens."""
        return len(self.engine)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self):,} pieces)"

    def find(self, piece: str) -> int | None:
        """The id of a piece, as it stands in the vocabulary; None where it is none."""
        return self.engine.find(piece)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def encode(self, text: str, *, add_bos: bool | None = None, marks: bool | None = None) -> list[int]:
        """Token ids of a text.

        Args:
          text: any text.
          add_bos: whether BOS comes first. By default what the tokenizer's settings say (which may have EOS last), and
            with Gemma's BOS comes first.
          marks: whether a mark that the text spells out, such as `<end_of_turn>` or `<bos>`, is that mark, as in
            transformers; else it is text like any other. By default what the tokenizer's settings say, and True.

        Raises:
          ValueError: for a text with a lone surrogate, which UTF-8 does not have.

        Example:
          >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
          >>> tokenizer.encode("The sea")
          [2, 392, 1788]
        """
        settings = self.settings
        marks = not settings.marks_are_text if marks is None else marks
        try:
            ids = self.engine.encode(text) if marks else self._encode_apart(text)
        except (RuntimeError, UnicodeEncodeError, TypeError) as error:
            raise _why_not(text, error) from error
        if self.adds_bos if add_bos is None else add_bos:
            ids = [self.bos, *ids]
        if add_bos is None and settings.add_eos:
            ids = [*ids, self.eos]
        return ids

    def _encode_apart(self, text: str) -> list[int]:
        """Token ids, with marks as text: each by itself, so that no piece spans it and the text around it."""
        ids = self.engine.encode(text)
        if self._special_marks.isdisjoint(ids):
            return ids
        spelled = [self.engine.piece(id_) for id_ in self._special_marks.intersection(ids)]
        expression = "(" + "|".join(map(re.escape, sorted(spelled, key=len, reverse=True))) + ")"
        parts = enumerate(re.split(expression, text))
        return [i for k, part in parts for i in (self.engine.encode_plain if k % 2 else self._encode_apart)(part)]

    @functools.cached_property
    def _special_marks(self) -> frozenset[int]:
        return frozenset(token.id for token in self.engine.added.values() if token.special)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids.

        Padding at both ends, a BOS before the text and an EOS after it vanish; within it they are shown, like other
        marks. Broken UTF-8, and an id without a piece, is the replacement character.
        """
        numbers = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).tolist()
        return self.decode_part(numbers, first=True)

    def decode_part(self, ids: list[int], *, first: bool) -> str:
        """The text of some ids, as `decode` has it; where they are not the first ones, padding and BOS before them
        are shown."""
        start, end = 0, len(ids)
        while first and start < end and ids[start] == self.pad:
            start += 1
        if first and start < end and ids[start] == self.bos:
            start += 1
        while start < end and ids[end - 1] in self.special_ids and ids[end - 1] != self.bos:
            end -= 1
        return self.engine.decode(ids[start:end])

    def may_change(self, id_: int) -> bool:
        """Whether the text of a token depends on those after it: a byte's does, and an EOS or padding vanishes last."""
        return not self.engine.joins or id_ in self.special_ids or self.engine.is_byte(id_)

    def byte(self, id_: int) -> int | None:
        """The byte that a token stands for; None where it is a piece of text, a mark, or nothing.

        Example:
          >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
          >>> [tokenizer.byte(id_) for id_ in tokenizer.encode("\U0001f469", add_bos=False)]
          [240, 159, 145, 169]
        """
        return int(self.engine.piece(int(id_))[3:5], 16) if self.engine.is_byte(int(id_)) else None

    def piece(self, id_: int) -> str:
        """One token as a person reads it: a space for SentencePiece's lower one-eighth block; a byte of its own as the
        character that it is in ASCII, as <0x..> elsewhere; the replacement character for an id without a piece."""
        piece = self.engine.piece(int(id_))
        if self.engine.is_byte(int(id_)):
            character = chr(int(piece[3:5], 16))
            return character if character.isascii() and character.isprintable() else piece
        return piece.replace(SPACE, " ")

    def raw_piece(self, id_: int) -> str:
        """One token as the vocabulary has it; for an id without one, a text of its own."""
        piece = self.engine.piece(id_)
        return f"{piece}{id_}" if piece == GONE else piece

    @property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        """The tokens that are taken out of a text before all else, marks among them."""
        return tuple(self.engine.added.values())

    @property
    def adds_bos(self) -> bool:
        """Whether a text gets BOS where its caller does not say."""
        return self.settings.add_bos is not False

    def misfit(self, vocab_size: int) -> str | None:
        """Why this is no tokenizer of a model with so many embeddings; None where it is one.

        Marks past the last embedding do no harm: Gemma 3's tokenizer has one for images, which its text models lack.
        """
        if all(not self.engine.from_text(id_) for id_ in range(vocab_size, len(self))):
            return None
        return f"{len(self)} pieces, but the model only {vocab_size} embeddings"

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        literal: bool = False,
        template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a chat, by the model's own template; by Gemma's where the model has none.

        Args:
          messages: each with a `role` ("user", "assistant", "system", or what else the template knows) and a
            `content`: dicts or dataclasses.
          add_generation_prompt: whether the head of the model's next turn comes last.
          literal: whether marks that messages spell out are text, so that no message speaks for another side; by
            default they are marks, as in transformers.
          template: another Jinja template, or the name of one of the model's.
          **variables: what else the template may read, such as `tools`.

        Raises:
          ValueError: for a tokenizer without turn marks and without a template, messages that the template complains
            about, and a template that does more than arrange messages.

        Example:
          >>> tokenizer = gemma.load("gemma2-tiny").tokenizer
          >>> tokenizer.decode(tokenizer.chat([{"role": "user", "content": "Hi!"}], add_generation_prompt=True))
          '<start_of_turn>user\\nHi!<end_of_turn>\\n<start_of_turn>model\\n'
        """
        messages = chat.messages_of(messages)
        variables = {"add_generation_prompt": add_generation_prompt, **variables}
        return self._chat(messages, template, variables, literal, said=False)[0]

    def chat_turns(
        self, messages: Sequence[Mapping[str, Any]], *, template: str | None = None, **variables: Any
    ) -> tuple[list[int], list[bool]]:
        """A chat's token ids as `chat(messages, literal=True)` has them, and which are what the model says.

        What the model says are the contents of its messages, without marks, role and white space around them.

        Raises:
          ValueError: as `chat`; and for a template that keeps only the end of what the model said.
        """
        return self._chat(chat.messages_of(messages), template, variables, literal=True, said=True)

    def _chat(
        self, messages: list[dict], template: str | None, variables: dict, literal: bool, said: bool
    ) -> tuple[list[int], list[bool]]:
        template = self._template(template, variables)
        opening, closing, begin, end = _unused_characters(template, repr((messages, variables)))
        if said:
            messages = [_said(message, begin, end) for message in messages]
        apart = re.compile(f"[{opening}{closing}]")
        if literal:
            marks = self._marks_of(template)
            apart = re.compile(f"{opening}({marks.pattern}){closing}|{apart.pattern}")
            change = lambda text: marks.sub(lambda match: f"{opening}{match[0]}{closing}", text)  # noqa: E731
            messages, variables = chat.map_texts(messages, change), chat.map_texts(variables, change)
        tokens = {role: self.engine.piece(t) if isinstance(t, int) else t for role, t in self._tokens().items()}
        try:
            from gemma.tokenizer import sandbox  # with Jinja, which chats alone need
        except ModuleNotFoundError as error:
            if error.name != "jinja2":
                raise
            raise ValueError("chats need the package jinja2: pip install jinja2 (the extra `chat`)") from None
        rendered = sandbox.render(template, messages, tokens | variables)
        ids, mask, inside = [], [], False
        for number, part in enumerate(apart.split(rendered) if literal else [rendered]):
            if not part:
                continue
            text, spans, inside = _without_marks(part, begin, end, inside)
            if number % 2:  # a mark that a message spells out
                ids_of_part, places = self.engine.encode_plain(text), None
            elif said:
                ids_of_part, places = self.engine.encode_with_places(text)
            else:
                ids_of_part, places = self.engine.encode(text), None
            ids += ids_of_part
            if said:
                mask += [any(start <= p < stop for start, stop in spans) for p in places or [0] * len(ids_of_part)]
        return ids, mask

    def _tokens(self) -> dict[str, str | int]:
        usual = {role: id_ for role, id_ in zip(_ROLES, (self.pad, self.eos, self.bos), strict=True) if id_ >= 0}
        return {**usual, **self.settings.tokens}

    def _template(self, name: str | None, variables: Mapping) -> str:
        templates = self.settings.templates
        if name is not None:
            return templates.get(name, name)
        if variables.get("tools") and "tool_use" in templates:
            return templates["tool_use"]
        if "default" in templates:
            return templates["default"]
        if None in (self.find(START), self.find(END)):
            raise ValueError(
                f"this tokenizer has no {START} and {END}, and no chat template: take a model whose tokenizer has "
                "them, gemma3-270m for example, or give plain text"
            )
        return chat.GEMMA

    def _marks_of(self, template: str) -> re.Pattern:
        """What a message must not say: special tokens, and those that the template writes, but for white space."""
        if template not in self._expressions:
            tokens = self.engine.added.values()
            texts = [t.content for t in tokens if t.special or (t.content in template and not t.content.isspace())]
            expression = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
            self._expressions = {template: expression}
        return self._expressions[template]


def _why_not(text: object, error: Exception) -> Exception:
    """Why a text has no tokens."""
    if not isinstance(text, str):
        return TypeError(f"a text must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as wrong:
        character = text[wrong.start]
        return ValueError(
            f"character {wrong.start} of the text is the lone surrogate {character!a}, which UTF-8 does not have: "
            "read the text with errors='replace'"
        )
    return error


def _unused_characters(*texts: str) -> list[str]:
    """Four characters for private use that no text has; `repr` escapes them."""
    every = "".join(texts)
    unused = (c for c in map(chr, range(0xE000, 0xF8FF)) if c not in every and f"\\u{ord(c):x}" not in every)
    return list(itertools.islice(unused, 4))


def _said(message: dict, begin: str, end: str) -> dict:
    """A message with marks around what the model says, but for white space, which templates strip."""
    content = message.get("content")
    if message.get("role") not in ("assistant", "model") or not isinstance(content, str):
        return message
    inner = content.strip()
    lead, tail = content[: len(content) - len(content.lstrip())], content[len(content.rstrip()) :] if inner else ""
    return {**message, "content": lead + begin + inner + end + tail}


def _without_marks(text: str, begin: str, end: str, inside: bool) -> tuple[str, list[tuple[int, int]], bool]:
    """A text without the marks around what the model says, the spans of that, and whether it goes on."""
    parts, spans, length = [], [], 0
    for part in re.split(f"([{begin}{end}])", text):
        if part in (begin, end):
            if inside == (part == begin):
                raise ValueError(
                    "the chat template takes what the model says apart, so it is unclear which tokens it says"
                )
            inside = part == begin
            continue
        if inside:
            spans.append((length, length + len(part)))
        parts.append(part)
        length += len(part)
    return "".join(parts), spans, inside
