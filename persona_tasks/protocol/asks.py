"""The two words the conversation and its drivers exchange: an `Ask`, and the answer to it.

`play` and `judge` are generators that yield lists of asks and are sent as many answers. They know no harness, no
network and no tokenizer. An answer is the text, or a `Failure` where there will never be one.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel

Role = Literal["simulator", "partner", "judge"]
Purpose = Literal["line", "probe", "reply", "verdict"]


class Message(NamedTuple):
    """One chat message, as every chat API knows it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Ask:
    """A request for one completion of `messages`.

    Attributes:
        role: Who is asked.
        messages: The conversation so far as that role sees it: its own lines are `assistant` messages.
        purpose: "line" and "reply" continue the dialogue; "probe" is a fork that leaves no trace; "verdict" judges.
        turn: The turn (from 1) that the answer belongs to.
        schema: The JSON object a verdict is asked for, for judges that support structured output.
    """

    role: Role
    messages: tuple[Message, ...]
    purpose: Purpose
    turn: int = 0
    schema: type[BaseModel] | None = None


@dataclass(frozen=True)
class Failure:
    """There is no answer and asking again will not help, for example because the context window is full."""

    reason: str


Answer: TypeAlias = str | Failure
Result = TypeVar("Result")
Dialogue: TypeAlias = Generator[list[Ask], list[Answer], Result]
