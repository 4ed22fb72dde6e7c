"""The methods of `gemma.Tokenizer` that turn a chat into token ids."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemma.tokenizer import chat, turns
from gemma.tokenizer.chat import END, START
from gemma.tokenizer.engines import Packaged, SentencePiece
from gemma.tokenizer.settings import Settings


class ChatMethods:
    """Methods of a tokenizer that arrange messages by a template.

    Attributes:
        bos: the id of BOS; negative if the vocabulary lacks it.
        eos: the id of EOS, likewise.
        pad: the id of padding, likewise.
        settings: has the templates and the special tokens.
        engine: encodes texts.
    """

    bos: int
    eos: int
    pad: int
    settings: Settings
    engine: SentencePiece | Packaged
    _expressions: dict[str, re.Pattern]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        literal: bool = False,
        template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """Returns the token ids of a chat, by the model's own template, or by Gemma's if the model has none.

        Args:
            messages: dicts or dataclasses, each with a `role` ("user", "assistant", "system", or another that the
                template knows) and a `content`.
            add_generation_prompt: whether the head of the model's next turn comes last.
            literal: whether marks that messages spell out are text, so that no message speaks for another side; by
                default they are marks, as in transformers.
            template: another Jinja template, or the name of one of the model's.
            **variables: further variables that the template may read, such as `tools`.

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
        template = self._template(template, variables)
        marks = self._marks_of(template) if literal else None
        return turns.encode(self.engine, template, messages, variables, self._tokens(), marks=marks)[0]

    def chat_turns(
        self, messages: Sequence[Mapping[str, Any]], *, template: str | None = None, **variables: Any
    ) -> tuple[list[int], list[bool]]:
        """Returns the token ids of `chat(messages, literal=True)`, and whether the model says each of them.

        The model says the contents of its messages, without the marks, the role and the white space around them.

        Args:
            messages: as for `chat`.
            template: as for `chat`.
            **variables: as for `chat`.

        Raises:
            ValueError: as `chat`, and for a template that keeps only the end of what the model says.
        """
        messages, template = chat.messages_of(messages), self._template(template, variables)
        marks = self._marks_of(template)
        return turns.encode(self.engine, template, messages, variables, self._tokens(), marks=marks, speech=True)

    def _tokens(self) -> dict[str, str]:
        """Returns the special tokens by role."""
        usual = {"pad_token": self.pad, "eos_token": self.eos, "bos_token": self.bos}
        tokens = {role: id_ for role, id_ in usual.items() if id_ >= 0} | {**self.settings.tokens}
        return {role: self.engine.piece(token) if isinstance(token, int) else token for role, token in tokens.items()}

    def _template(self, name: str | None, variables: Mapping) -> str:
        """Returns the template of a name, which may be a template itself; by default the model's, or Gemma's."""
        templates = self.settings.templates
        if name is not None:
            return templates.get(name, name)
        if variables.get("tools") and "tool_use" in templates:
            return templates["tool_use"]
        if "default" in templates:
            return templates["default"]
        if None in (self.engine.find(START), self.engine.find(END)):
            raise ValueError(
                f"this tokenizer has no {START} and {END}, and no chat template: take a model whose tokenizer has "
                "them, gemma3-270m for example, or give plain text"
            )
        return chat.GEMMA

    def _marks_of(self, template: str) -> re.Pattern:
        """Returns a pattern of special tokens and of tokens that the template writes, without those of white space."""
        if template not in self._expressions:
            tokens = self.engine.added.values()
            texts = [t.content for t in tokens if t.special or (t.content in template and not t.content.isspace())]
            expression = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
            self._expressions = {template: expression}
        return self._expressions[template]
