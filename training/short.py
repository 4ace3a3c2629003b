"""Short persons with lines that can and cannot be theirs: what a judge needs to compare a fact with a line.

``training/short/*.jsonl`` holds them, one person a line, in many styles: first, second and third person, lists, moods.
Each has two lines that contradict and two that do not, written by a large language model so that the line alone does
not tell. They belong to no scenario, and are for training judges only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_tasks.calibration import Item
from persona_tasks.personas import BankError
from persona_tasks.transcript import Outcome, Transcript, Turn

FOLDER = Path(__file__).parent / "short"
SHORT = "short"


class Line(BaseModel):
    """What might be said."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    line: str = Field(min_length=1)
    label: Literal["consistent", "contradicts"]
    drift: str = Field(description="Its name; empty for a consistent line.")


class Person(BaseModel):
    """One line of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    form: Literal["a", "b", "c", "d", "e"] = Field(description="First, second, third person, list, or manner only.")
    persona: str = Field(min_length=1)
    lines: tuple[Line, Line, Line, Line]


def load_short(half: str = "all", folder: Path = FOLDER) -> list[Item]:
    """Items of every other person ("even" or "odd" places in a file), or of "all".

    Raises:
        BankError: A line is not a person; names the file and the line.
    """
    return [item for place, item in _items(folder) if half == "all" or place % 2 == (half == "odd")]


def _items(folder: Path) -> Iterator[tuple[int, Item]]:
    for file in sorted(folder.glob("*.jsonl")):
        for place, text in enumerate(file.read_text(encoding="utf-8").splitlines()):
            try:
                person = Person.model_validate_json(text)
            except ValidationError as error:
                raise BankError(f"{file}, line {place + 1}: {error}") from None
            for number, said in enumerate(person.lines):
                cluster = f"{SHORT}/{file.stem}/{place}"
                transcript = Transcript(
                    id=f"{cluster}/{number}",
                    persona_id=cluster,
                    persona_text=person.persona,
                    turns=[Turn(partner="", line=said.line)],
                )
                label: Outcome = said.label
                yield place, Item(transcript.id, SHORT, "prompt_to_line", "", transcript, 1, label, said.drift)
