"""The two words the conversation and its drivers exchange: an `Ask`, and the answer to it.

`play` and `judge` are generators that yield lists of asks and are sent as many answers. They know no harness, no
network and no tokenizer. An answer is the text, or a `Failure` where there will never be one.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
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


class Chosen(str):
    """An answer that was chosen among a few, with the probability of each.

    Attributes:
        weights: The possible answers and their probabilities, which add up to 1. Answers that fell out together stand
            as one of them.
    """

    weights: Mapping[str, float]

    def __new__(cls, text: str, weights: Mapping[str, float]) -> Chosen:
        made = super().__new__(cls, text)
        made.weights = weights
        return made


Answer: TypeAlias = str | Failure
Result = TypeVar("Result")
Dialogue: TypeAlias = Generator[list[Ask], list[Answer], Result]
