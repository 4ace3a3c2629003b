"""Messages to token ids, by the model's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from jinja2.exceptions import TemplateError

SENTINEL = "persona-8b1f"


class ChatTemplateError(ValueError):
    """The messages cannot be rendered for this model."""


class Chat:
    """Renders chat messages for one tokenizer.

    Templates differ in what they do with a system message: most print it, some raise, some leave it out without a
    word, and then the persona would be lost. `system` says which it is, and where there is no system role the
    system message is put before the first user message.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._lock = Lock()  # fast tokenizers are not safe to call from two threads at once
        self.system = False
        if tokenizer.chat_template is not None:
            probe = [{"role": "system", "content": SENTINEL}, {"role": "user", "content": "Hello"}]
            try:
                self.system = SENTINEL in self._template(probe)
            except TemplateError:
                self.system = False

    def text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt as text, up to where the assistant begins to speak.

        Raises:
            ChatTemplateError: The model has no chat template, or its template rejects the messages.
        """
        if self.tokenizer.chat_template is None:
            name = getattr(self.tokenizer, "name_or_path", "") or "this model"
            raise ChatTemplateError(f"{name} has no chat template: it is a base model, not one made for conversation")
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            return self._template(plain if self.system else fold_system(plain))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in plain)
            raise ChatTemplateError(f"the model's chat template rejects the roles {roles}: {error}") from error

    def ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt as token ids. The template writes the special tokens, so the tokenizer adds none.

        Raises:
            ChatTemplateError: See `text`.
        """
        with self._lock:
            return list(self.tokenizer(self.text(messages), add_special_tokens=False)["input_ids"])

    def _template(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put the leading system messages at the head of the first user message, or in one of their own before it.

    >>> fold_system([{"role": "system", "content": "You are Mina."}, {"role": "user", "content": "Hi"}])
    [{'role': 'user', 'content': 'You are Mina.\\n\\nHi'}]
    """
    count = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    if not count:
        return messages
    persona = [message["content"] for message in messages[:count]]
    rest = messages[count:]
    if rest and rest[0]["role"] == "user":
        persona.append(rest[0]["content"])
        rest = rest[1:]
    return [{"role": "user", "content": "\n\n".join(persona)}, *rest]
