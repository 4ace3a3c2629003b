"""What a judge is asked to reply, and reading its reply without ever reading the material instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, create_model, model_validator

from persona_tasks.personas import DriftType, Question

LINE_DRIFTS = tuple(name for name in get_args(DriftType) if name != "self_contradiction")  # what one line can show
NO_DRIFT = "none"
DriftName = Annotated[str, WithJsonSchema({"type": "string", "enum": [NO_DRIFT, *LINE_DRIFTS]})]


class Reply(BaseModel):
    """The reason comes first, so that a judge thinks before it decides."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(description="One sentence.")


class LineReply(Reply):
    """prompt_to_line: does the line contradict the persona, and how?"""

    verdict: Literal["consistent", "contradicts"]
    drift: DriftName = Field(description="How it contradicts; none if it is consistent.")

    @model_validator(mode="before")
    @classmethod
    def _a_verdict_counts_without_its_drift(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("drift") not in LINE_DRIFTS:
            return {**value, "drift": NO_DRIFT}
        return value


class ConflictReply(Reply):
    """line_to_line: which earlier lines does the line contradict?"""

    conflicts: list[int] = Field(description="Numbers of the earlier lines in conflict; empty if none.")


class OptionReply(Reply):
    """qa: which of the five options does the answer say?"""

    option: Literal[0, 1, 2, 3, 4, 5] = Field(description="Number of the option, 0 for none.")


@cache
def conflict_reply(earlier: int) -> type[ConflictReply]:
    """The schema of a `ConflictReply` about lines 1 to `earlier`, for judges that are held to a schema."""
    # spelled out, since the schema of a Literal with one value is a `const`, which Inspect does not pass on
    numbers = WithJsonSchema({"type": "integer", "enum": list(range(1, earlier + 1))})
    field = (
        list[Annotated[int, numbers]],
        Field(description="Numbers of the earlier lines in conflict; empty if none."),
    )
    return create_model("ConflictReply", __base__=ConflictReply, conflicts=field)


AnyReply = TypeVar("AnyReply", bound=Reply)


class Unreadable(ValueError):
    """The judge's answer holds no reply of the form asked for."""


def read_reply(text: str, form: type[AnyReply], material: Iterable[str] = ()) -> AnyReply:
    """Read the last valid reply in a judge's answer.

    Only outermost JSON objects count: one inside another (a line quoted in the reason, say) does not. An object that
    stands word for word in the judged material is a repetition of it, not a verdict.

    Args:
        text: The judge's whole answer.
        form: The reply asked for.
        material: The texts that were judged.

    Raises:
        Unreadable: There is no such reply.
    """
    haystack = "\0".join(_squeezed(piece) for piece in material)
    found: AnyReply | None = None
    problem = "there is no JSON object in it"
    for piece, value in _objects(text):
        if _squeezed(piece) in haystack:
            problem = "it only repeats the material"
            continue
        try:
            found = form.model_validate(value, strict=True)
        except ValidationError as error:
            detail = error.errors()[0]
            problem = f"{'.'.join(map(str, detail['loc'])) or 'object'}: {detail['msg']}"
    if found is None:
        raise Unreadable(problem)
    return found


def _objects(text: str) -> Iterable[tuple[str, object]]:
    """Outermost JSON objects of a text, in order."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            yield text[start:end], value
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


NEGATION = re.compile(r"\b(not|no|never|none|neither|nor|isn|wasn|don|didn|won|but|or|except|used to)\b|n['’]t\b", re.I)
LETTER = re.compile(r"^\W*(?i:(?:the\s+)?answer(?:\s+is)?\W+)?\(?([A-E])(?:\)|\.|:|\W*$)")


def match_text(answer: str, question: Question) -> int | None:
    """Index of the one option that an answer certainly says, by its words alone; None where that is not certain.

    Certain means: the answer is the option, or it holds one option's words in their order, no other's, and no negation.
    """
    said = _normal(answer)
    options = [_normal(option) for option in question.options]
    exact = [i for i, option in enumerate(options) if option == said]
    if exact:
        return exact[0] if len(exact) == 1 else None
    held = [i for i, option in enumerate(options) if option and f" {option} " in f" {said} "]
    if len(held) == 1 and not NEGATION.search(answer):
        return held[0]
    return None


def match_letter(answer: str, question: Question) -> int | None:
    """Index of the option whose letter, or text, an answer to a lettered question gives."""
    letter = LETTER.match(answer.strip())
    return "ABCDE".index(letter[1]) if letter else match_text(answer, question)


def _normal(text: str) -> str:
    words = re.findall(r"\w+", text.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the"))
