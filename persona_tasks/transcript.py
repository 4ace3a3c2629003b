"""What was said and how it was judged: `Transcript`, `Verdict`, and reading and writing them as JSON lines.

A transcript carries all that judging needs (persona text, setting, questions), so a dialogue can be scored years later
without the bank it came from. Turns count from 1. A turn is the partner's line and the simulator's line in answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_tasks.personas import DriftType, Question

# `qa_without_persona` is the floor of `qa`: the same questions put to the model before it is anybody.
Metric = Literal["prompt_to_line", "line_to_line", "qa", "qa_without_persona"]
METRICS: tuple[Metric, ...] = ("prompt_to_line", "line_to_line", "qa")
Outcome = Literal["consistent", "contradicts", "unparsed"]
ProbeMode = Literal["open", "choice"]


class TranscriptError(ValueError):
    """A transcript file cannot be read. The message names the file, the line and the reason."""


class Record(BaseModel):
    """Base of what is stored: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class Turn(Record):
    """The partner's line (empty where the simulator spoke first) and the simulator's answer."""

    partner: str
    line: str


class Probe(Record):
    """A question asked on a fork of the conversation after `turn` turns, and the simulator's answer.

    With `persona` false it was asked without persona and conversation: what can be guessed.
    """

    turn: int = Field(ge=0)
    question: int = Field(ge=0, description="Index into the transcript's questions.")
    mode: ProbeMode
    answer: str
    persona: bool = True


class Transcript(Record):
    """One dialogue of one simulator as one persona."""

    id: str
    persona_id: str = Field(description="Cluster of the statistics.")
    persona_text: str = Field(description="The person as the simulator was told and as the judge reads it.")
    scenario: str = ""
    setting: str = ""
    questions: list[Question] = []
    turns: list[Turn] = []
    probes: list[Probe] = []
    ended: str | None = Field(None, description="Why the dialogue stopped before its time, if it did.")
    model: str = ""
    partner: str = ""
    seed: int | None = None
    metadata: dict[str, Any] = {}

    @property
    def lines(self) -> list[str]:
        """The simulator's lines r_1..r_T."""
        return [turn.line for turn in self.turns]


class Verdict(Record):
    """One judgement. Its place is `turn` (lines) or `probe`, an index into the probes (questions)."""

    metric: Metric
    turn: int
    outcome: Outcome
    reason: str = ""
    conflicts: list[int] = Field([], description="line_to_line: the earlier turns this line contradicts.")
    drift: DriftType | None = Field(None, description="prompt_to_line: how the line contradicts, if the judge says so.")
    probe: int | None = None
    p_contradicts: float | None = Field(None, description="The judge's probability of `contradicts`, if it gives one.")
    answer: str = Field("", description="The judge's last answer in full, kept when it could not be read.")


class Judged(Record):
    """A transcript with its verdicts: one line of our JSONL files."""

    transcript: Transcript
    verdicts: list[Verdict] = []
    judge: str = ""

    def of(self, metric: Metric) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.metric == metric]


def append_jsonl(path: str | Path, records: Iterable[Judged]) -> None:
    """Append records to a JSONL file and flush them to disk, so that none is lost if what follows fails.

    A last line that an interruption left without its end is ended if it is whole, and cut off if it is not.
    """
    _mend(Path(path))
    with Path(path).open("a", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json(exclude_defaults=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _mend(path: Path) -> None:
    written = path.read_bytes() if path.exists() else b""
    if not written or written.endswith(b"\n"):
        return
    start = written.rfind(b"\n") + 1
    try:
        json.loads(written[start:])
    except ValueError:
        os.truncate(path, start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def read_jsonl(path: str | Path) -> Iterator[Judged]:
    """Read our JSONL. A last line cut short by a crash is skipped; any other broken line is an error.

    Raises:
        TranscriptError: names the file, the line and what is wrong with it.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield Judged.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline at its end: the write was interrupted
                return
            raise TranscriptError(f"{path}, line {number}: not JSON ({error})") from None
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            raise TranscriptError(f"{path}, line {number}: {field}: {problem['msg']}") from None
