"""Messages to what the evaluated model's `generate_until` takes: a chat, a templated prompt, or plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from typing import Any, Literal

from persona_tasks.embedded.chat import fold_system
from persona_tasks.protocol.asks import Message

logger = getLogger("lm_eval.persona_tasks")  # shown, formatted and filtered like the harness's own

# The plain form, for models without a chat template. A line ends where the line does.
SPEAKERS = {"system": "", "user": "Partner: ", "assistant": "You: "}
PLAIN_STOPS = ["\n", "Partner:"]


def plain(messages: Sequence[Message]) -> str:
    """The conversation as text, up to where the simulator speaks.

    >>> print(plain([Message("system", "You are Mina."), Message("user", "Hi!")]))
    You are Mina.
    <BLANKLINE>
    Partner: Hi!
    You:
    """
    gap = {"system": "\n\n", "user": "\n", "assistant": "\n"}
    return "".join(SPEAKERS[role] + content + gap[role] for role, content in messages) + "You:"


class Chat:
    """Renders by a model's chat template and makes sure that the system message, the persona, is in the result.

    Templates without a system role raise (lm-eval then drops the message with a warning) or leave it out silently.
    In both cases it moves to the head of the first user message.
    """

    def __init__(self, template: Callable[[list[dict[str, str]]], Any]):
        self.template = template
        self.folds = False

    def __call__(self, messages: Sequence[Message]) -> Any:
        """The prompt: text, or for chat APIs lm-eval's own wrapping of the messages.

        Raises:
            ValueError: The system message does not arrive in any form.
        """
        chat = [message._asdict() for message in messages]
        told = [message.content.strip() for message in messages if message.role == "system"]
        if not self.folds:
            prompt = self.template(chat)
            if not isinstance(prompt, str) or all(text in prompt for text in told):
                return prompt
            self.folds = True
            logger.warning("the chat template has no system role: the persona goes into the first user message")
        prompt = self.template(fold_system(chat))
        if not all(text in prompt for text in told):
            raise ValueError("the model's chat template leaves the persona out of the prompt")
        return prompt


class Renderer:
    """Renders for one evaluated model.

    Attributes:
        form: "chat" or "plain".
        stops: Texts that end a line, besides those the user gave.
    """

    def __init__(self, lm: Any, form: Literal["auto", "chat", "plain"]):
        self.lm = getattr(lm, "lm", lm)  # under lm-eval's response cache
        self.form = ("chat" if has_chat(self.lm) else "plain") if form == "auto" else form
        self.render = Chat(self.lm.apply_chat_template) if self.form == "chat" else plain
        self.stops = PLAIN_STOPS if self.form == "plain" else []

    @property
    def folds(self) -> bool:
        """Whether the persona had to go into the first user message."""
        return isinstance(self.render, Chat) and self.render.folds

    def fits(self, prompt: Any, new_tokens: int) -> bool:
        """Whether prompt and answer fit the context window. If not, lm-eval would cut the persona off, silently."""
        limit = getattr(self.lm, "max_length", None)
        # `isinstance` first: an API's chat is checked by its server, and DummyLM's tokenizer is a download.
        if not isinstance(prompt, str) or not limit or getattr(self.lm, "tokenizer", None) is None:
            return True
        return bool(len(self.lm.tok_encode(prompt)) + new_tokens <= limit)


def has_chat(lm: Any) -> bool:
    """Whether the model is made for chat: a chat API, or a tokenizer with a chat template."""
    if "chat" in type(lm).__name__.lower():  # LocalChatCompletion, OpenAIChatCompletion, LiteLLMChatCompletion, ...
        return True
    try:
        return getattr(getattr(lm, "tokenizer", None), "chat_template", None) is not None
    except Exception:  # DummyLM's tokenizer is a download
        return False
