"""Dialogues whose lines were labelled by reading, as training data: rewards that no judge gave.

python -m training.labelled --out runs/data/labelled.jsonl
python -m training.labelled --set on_policy --out runs/data/labelled-base.jsonl

They are the train part of the calibration set's dialogues (docs/calibration.md): ``trained``, what persona/sim-135m
v1.0 said, or ``on_policy``, what its base said. The output is what `training.data judge` would give had a judge found
just that. A line whose label is `unclear` has no verdict to learn from, and counts as unparsed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from persona_tasks.calibration import LabelledDialogue, load_dialogues
from persona_tasks.personas import load_bank
from persona_tasks.protocol.partners import Partner
from persona_tasks.protocol.play import blank
from persona_tasks.transcript import Judged, Outcome, Turn, Verdict, append_jsonl

Set = Literal["trained", "on_policy"]
READ = "read"  # who is named as judge


def load_labelled(set: Set = "trained") -> Iterator[Judged]:
    """The dialogues of the training personas, with a verdict for each line.

    Raises:
        BankError: A file of the calibration set is broken; names its line.
    """
    for scenario in load_bank().scenarios:
        yield from map(_judged, load_dialogues(scenario, "train", set))


def _judged(labelled: LabelledDialogue) -> Judged:
    bank = load_bank()
    persona = bank.persona(labelled.persona)
    partner = Partner([turn.partner for turn in labelled.turns])
    transcript = blank(persona, bank.scenarios[persona.scenario], partner, 0)
    transcript.id, transcript.model = labelled.id, labelled.model
    transcript.turns = [Turn(partner=turn.partner, line=turn.line) for turn in labelled.turns]
    verdicts = []
    for number, turn in enumerate(labelled.turns, start=1):
        outcome: Outcome = "unparsed" if turn.label == "unclear" else turn.label
        verdicts.append(Verdict(metric="prompt_to_line", turn=number, outcome=outcome, reason=turn.why))
        if number > 1:
            outcome = "contradicts" if turn.conflicts else "consistent"
            found = Verdict(metric="line_to_line", turn=number, outcome=outcome, conflicts=list(turn.conflicts))
            verdicts.append(found)
    return Judged(transcript=transcript, verdicts=verdicts, judge=READ)


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["trained", "on_policy"], default="trained", help="whose lines they are")
    parser.add_argument("--out", type=Path, required=True, help="JSONL of judged dialogues; written anew")
    options = parser.parse_args()
    records = list(load_labelled(options.set))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.unlink(missing_ok=True)
    append_jsonl(options.out, records)
    print(f"{len(records)} dialogues, {sum(len(record.transcript.turns) for record in records)} lines in {options.out}")


if __name__ == "__main__":
    main()
