"""Short persons in pairs, and lines that fit one and not the other: what a judge needs to compare a fact with a line.

``training/short/*.jsonl`` holds them, one pair of persons a line, in many styles: first, second and third person,
lists, moods. Of their four lines two fit the first person and contradict the second, and two the other way round. So
each line, and each person, occurs equally often under both labels: neither tells anything without the other. They
belong to no scenario, and are for training judges only. The last few pairs of a file are for validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from persona_tasks.calibration import Item
from persona_tasks.personas import read_records
from persona_tasks.transcript import Outcome, Transcript, Turn

FOLDER = Path(__file__).parent / "short"
SHORT = "short"
HELD_OUT = 5  # pairs at the end of a file


class Line(BaseModel):
    """What might be said."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    line: str = Field(min_length=1)
    fits: Literal["a", "b"] = Field(description="Whom it does not contradict.")
    drift: str = Field(min_length=1, description="Its name, if the other one says it.")


class Pair(BaseModel):
    """One line of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    form: Literal["a", "b", "c", "d", "e"] = Field(description="First, second, third person, list, or manner only.")
    a: str = Field(min_length=1)
    b: str = Field(min_length=1)
    lines: tuple[Line, Line, Line, Line]


def load_short(half: str = "all", split: Literal["train", "dev"] = "train", folder: Path = FOLDER) -> list[Item]:
    """Items of every other pair ("even" or "odd" places in a file), or of "all".

    Raises:
        BankError: A line is not a pair; names the file and the line.
    """
    return [item for place, item in _items(folder, split) if half == "all" or place % 2 == (half == "odd")]


def _items(folder: Path, split: str) -> Iterator[tuple[int, Item]]:
    for file in sorted(folder.glob("*.jsonl")):
        pairs = list(enumerate(pair for _, pair in read_records(file, Pair)))
        for place, pair in pairs[:-HELD_OUT] if split == "train" else pairs[-HELD_OUT:]:
            for who, persona in (("a", pair.a), ("b", pair.b)):
                for number, said in enumerate(pair.lines):
                    yield place, _item(f"{SHORT}/{file.stem}/{place}", who, persona, number, said)


def _item(pair: str, who: str, persona: str, number: int, said: Line) -> Item:
    transcript = Transcript(
        id=f"{pair}/{who}/{number}", persona_id=pair, persona_text=persona, turns=[Turn(partner="", line=said.line)]
    )
    label: Outcome = "consistent" if said.fits == who else "contradicts"
    drift = "" if label == "consistent" else said.drift
    return Item(transcript.id, SHORT, "prompt_to_line", "", transcript, 1, label, drift)
