"""Dialogues that were written rather than rolled out: what a persona of the train split would say.

python -m training.written --out runs/data/written.jsonl

``training/written/*.jsonl`` holds them, one a line: the persona (of the bank, or of `training.people`), a seed, and
turns of a partner's line and the answer. They were written by a large language model under our guideline to contradict
neither the persona nor what was said before (training/README.md). The output is what `training.data judge` would give
had a judge found just that, so that every method that learns from judged dialogues can begin with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from persona_tasks.personas import Bank, BankError, read_records
from persona_tasks.protocol.partners import Partner
from persona_tasks.protocol.play import blank
from persona_tasks.transcript import Judged, Metric, Turn, Verdict, append_jsonl
from training.people import training_bank

FOLDER = Path(__file__).parent / "written"
WRITTEN = "written"  # who is named as model and as judge


class Written(BaseModel):
    """One line of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    persona: str
    seed: int
    turns: list[tuple[str, str]] = Field(min_length=1, description="The partner's line, and the answer.")


def load_written(folder: Path = FOLDER) -> Iterator[Judged]:
    """The written dialogues, every line `consistent` by the metrics of lines.

    Raises:
        BankError: A line is not one, or its persona is not of the train split; names the file and the line.
    """
    bank = training_bank()
    for file in sorted(folder.glob("*.jsonl")):
        for where, written in read_records(file, Written):
            try:
                yield _judged(written, bank)
            except BankError as error:
                raise BankError(f"{where}: {error}") from None


def _judged(written: Written, bank: Bank) -> Judged:
    persona = bank.persona(written.persona)
    if persona.split != "train":
        raise BankError(f"{persona.id} is of the {persona.split} split, and must not be learned from")
    partner = Partner([said for said, _ in written.turns])
    transcript = blank(persona, bank.scenarios[persona.scenario], partner, written.seed)
    transcript.id, transcript.model = f"{persona.id}/{WRITTEN}/{written.seed}", WRITTEN
    transcript.turns = [Turn(partner=said, line=line) for said, line in written.turns]
    metrics: list[Metric] = ["prompt_to_line", "line_to_line"]
    verdicts = [
        Verdict(metric=metric, turn=turn, outcome="consistent", reason="written so")
        for metric in metrics
        for turn in range(1, len(written.turns) + 1)
        if metric == "prompt_to_line" or turn > 1
    ]
    return Judged(transcript=transcript, verdicts=verdicts, judge=WRITTEN)


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSONL of judged dialogues; written anew")
    out = parser.parse_args().out
    try:
        records = list(load_written())
    except BankError as error:
        raise SystemExit(f"error: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    append_jsonl(out, records)
    print(f"{len(records)} dialogues, {sum(len(record.transcript.turns) for record in records)} lines in {out}")


if __name__ == "__main__":
    main()
