"""Jinja's sandbox, in which chat templates run.

Templates see the messages and a few filters, and nothing of Python, of files or of this process. Only chats import this
file, so a model without chats needs no Jinja.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """Returns the text of a chat.

    Args:
        template: a Jinja template.
        messages: the messages.
        variables: further variables of the template.

    Raises:
        ValueError: with the template's own complaint about the chat, and for a template that is no Jinja, or that does
            more than arrange messages.
    """
    try:
        return _compiled(template).render(messages=messages, **variables)
    except _Complaint as error:
        raise ValueError(str(error)) from None
    except jinja2.sandbox.SecurityError as error:
        raise ValueError(f"the chat template does more than arrange messages, and is refused: {error}") from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"the chat template cannot arrange these messages: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"the chat template does more than arrange messages, and is refused: {error}") from error


class _Complaint(jinja2.TemplateError):
    """The complaint of a template by `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which templates mark the model's words for training: here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  as the base declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _complain(message: str) -> None:
    raise _Complaint(message)


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Returns a value as JSON: Jinja's own filter would write HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which shows nothing in the place of a forbidden attribute; this one raises an error."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise jinja2.sandbox.SecurityError(f"{attribute!r} of a {type(obj).__name__} is out of reach")


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    # pyrefly: ignore[bad-assignment]  Jinja declares the globals that it has itself
    environment.globals |= {
        "raise_exception": _complain,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return environment.from_string(template)
