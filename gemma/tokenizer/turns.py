"""From a chat to token ids: renders the chat, and finds the marks that messages spell out and what the model says.

Characters for private use that the chat lacks go through the template around both, and are cut out of its text again.
"""

import itertools
import re
from collections.abc import Mapping

from gemma.tokenizer import chat
from gemma.tokenizer.engines import Packaged, SentencePiece


def encode(
    engine: SentencePiece | Packaged,
    template: str,
    messages: list[dict],
    variables: Mapping,
    tokens: Mapping[str, str],
    *,
    marks: re.Pattern | None = None,
    speech: bool = False,
) -> tuple[list[int], list[bool]]:
    """Returns the token ids of a chat, and whether the model says each of them.

    Args:
        engine: encodes texts.
        template: the chat's Jinja template.
        messages: the messages, as `chat.messages_of` returns them.
        variables: further variables that the template may read.
        tokens: the special tokens by role, which the template may read.
        marks: a pattern of the marks that are text where a message spells them out; None if they are marks there, too.
        speech: whether to find the tokens that the model says; else the second list is empty.

    Raises:
        ValueError: for a chat that cannot be rendered, and for a template that keeps only a part of the model's words.
    """
    opening, closing, begin, end = _unused_characters(template, repr((messages, variables)))
    if speech:
        messages = [_with_speech(message, begin, end) for message in messages]
    apart = re.compile(f"[{opening}{closing}]")
    if marks is not None:
        apart = re.compile(f"{opening}({marks.pattern}){closing}|{apart.pattern}")
        change = lambda text: marks.sub(lambda match: f"{opening}{match[0]}{closing}", text)  # noqa: E731
        messages, variables = chat.map_texts(messages, change), chat.map_texts(variables, change)
    rendered = _render(template, messages, {**tokens, **variables})
    ids, mask, inside = [], [], False
    for number, part in enumerate([rendered] if marks is None else apart.split(rendered)):
        if not part:
            continue
        text, spans, inside = _without_speech(part, begin, end, inside)
        if number % 2:  # a mark that a message spells out
            ids_of_part, places = engine.encode_plain(text), None
        elif speech:
            ids_of_part, places = engine.encode_with_places(text)
        else:
            ids_of_part, places = engine.encode(text), None
        ids += ids_of_part
        if speech:
            mask += [any(start <= p < stop for start, stop in spans) for p in places or [0] * len(ids_of_part)]
    return ids, mask


def _render(template: str, messages: list[dict], variables: Mapping) -> str:
    try:
        from gemma.tokenizer import sandbox  # with Jinja, which chats alone need
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        raise ValueError("chats need the package jinja2: pip install jinja2 (the extra `chat`)") from None
    return sandbox.render(template, messages, variables)


def _unused_characters(*texts: str) -> list[str]:
    """Returns four characters for private use that no text has; `repr` escapes them."""
    every = "".join(texts)
    unused = (c for c in map(chr, range(0xE000, 0xF8FF)) if c not in every and f"\\u{ord(c):x}" not in every)
    return list(itertools.islice(unused, 4))


def _with_speech(message: dict, begin: str, end: str) -> dict:
    """Returns a message with characters around what the model says, without white space, which templates strip."""
    content = message.get("content")
    if message.get("role") not in ("assistant", "model") or not isinstance(content, str):
        return message
    inner = content.strip()
    lead, tail = content[: len(content) - len(content.lstrip())], content[len(content.rstrip()) :] if inner else ""
    return {**message, "content": lead + begin + inner + end + tail}


def _without_speech(text: str, begin: str, end: str, inside: bool) -> tuple[str, list[tuple[int, int]], bool]:
    """Returns a text without those characters, the spans of what the model says, and whether its speech goes on."""
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
