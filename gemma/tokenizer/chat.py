"""Gemma's chat template, and the messages that templates get.

A chat template is a Jinja template that turns messages into one text, as in `apply_chat_template` of transformers. It
is a program that comes with a checkpoint, so it runs in Jinja's sandbox (`sandbox.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

START, END = "<start_of_turn>", "<end_of_turn>"

# Gemma 3's template (https://ai.google.dev/gemma/docs/core/prompt-structure), with errors that say which turn is wrong.
# The system's words stand before the first user's.
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set prefix = (system if system is string else system[0]['text']) + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- if not turns -%}
    {{ raise_exception("a chat needs a user's message") }}
{%- endif -%}
{%- for message in turns -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {%- set expected = 'model' if loop.index0 % 2 else 'user' -%}
    {%- if role != expected -%}
        {{ raise_exception("turn " ~ loop.index ~ " is of '" ~ role ~ "', expected '" ~ expected ~ "': user and model \
(or assistant) take turns, beginning with the user, after a system message at most") }}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {{ '<start_of_image>' if item['type'] == 'image' else item['text'] | trim }}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def messages_of(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns messages as a template gets them: dicts of plain values, without those that are None.

    Args:
        messages: mappings, dataclasses or named tuples.

    Raises:
        ValueError: for no messages, and for a message of another type.
    """
    if isinstance(messages, str | Mapping) or not messages:
        raise ValueError(f"a chat is a list of messages with a role and a content, got {messages!r}"[:300])
    plain = []
    for message in messages:
        if dataclasses.is_dataclass(message) and not isinstance(message, type):
            message = dataclasses.asdict(message)
        elif hasattr(message, "_asdict"):
            message = message._asdict()
        if not isinstance(message, Mapping):
            raise ValueError(f"a message is a dict with a role and a content, got {message!r}"[:300])
        plain.append({key: _plain(value) for key, value in message.items() if value is not None})
    return plain


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Returns a value with its texts changed, but for the keys of dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_texts(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(one, change) for one in value]
    return value


def _plain(value: Any) -> Any:
    """Returns a value as one of JSON's types, so that a template cannot reach the methods of other objects."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None
