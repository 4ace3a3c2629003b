"""Dialogues whose lines were labelled by reading, as training data: rewards that no judge gave.

python -m training.labelled --out runs/data/labelled.jsonl
python -m training.labelled --set on_policy --out runs/data/labelled-base.jsonl
python -m training.labelled --set corrected --out runs/data/corrected.jsonl
python -m training.labelled --set read --out runs/data/read.jsonl
python -m training.labelled --set read_again --out runs/data/read-again.jsonl
python -m training.labelled --set corrected_again --out runs/data/corrected-again.jsonl

They are the train part of the calibration set's dialogues (docs/calibration.md): ``trained``, what persona/sim-135m
v1.0 said, or ``on_policy``, what its base said. ``read`` is what the model after ``sft_written.yaml`` said
(``training/read``), where readers also noted which lines take up what the partner said, and ``read_again`` what
persona/sim-135m v1.1 said (``training/read_again``). The output is what `training.data judge` would give had a judge
found just that. A line whose label is `unclear` has no verdict to learn from, nor has a consistent one that is no
answer: they count as unparsed.

``corrected`` holds, for each line of ``trained`` that is wrong or unclear, what the person would have said at that
point (``training/corrected``, training/README.md), and ``corrected_again`` the same for ``read_again``: branches of one
turn, as `training.data branch` makes them. SFT and the signed policy gradient learn the new line only; line level DPO,
given both files, compares it with the old one where that has a verdict, which unclear lines have not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from persona_tasks.calibration import LabelledDialogue, LabelledTurn, load_dialogues
from persona_tasks.personas import BankError, load_bank, read_records
from persona_tasks.protocol.partners import Partner
from persona_tasks.protocol.play import blank
from persona_tasks.transcript import Judged, Outcome, Turn, Verdict, append_jsonl
from training.people import training_bank

Set = Literal["trained", "on_policy", "corrected", "read", "read_again", "corrected_again"]
HERE = Path(__file__).parent
FOLDER = HERE / "corrected"
AGAIN = HERE / "read_again"
READ = "read"  # who is named as judge


class ReadTurn(LabelledTurn):
    """One turn, whether its line takes up what the partner said, and if it is wrong what should have been said."""

    answers: bool = True
    better: str = ""


class ReadDialogue(LabelledDialogue):
    """One line of a file: a dialogue that was read, with a label for each of its lines."""

    turns: tuple[ReadTurn, ...]


class Corrected(BaseModel):
    """One line of a file: what should have been said in a labelled dialogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dialogue: str
    turn: int
    line: str


Record = TypeVar("Record", bound=BaseModel)


def load_labelled(set: Set = "trained") -> Iterator[Judged]:
    """The dialogues of the training personas, with a verdict for each line.

    Raises:
        BankError: A file is broken; names its line.
    """
    if set == "corrected":
        yield from load_corrected()
    elif set == "corrected_again":
        yield from load_better()
    elif set in ("read", "read_again"):
        yield from (_judged(dialogue) for _, dialogue in _records(HERE / set, ReadDialogue))
    else:
        for scenario in load_bank().scenarios:
            yield from map(_judged, load_dialogues(scenario, "train", set))


def _records(folder: Path, kind: type[Record]) -> Iterator[tuple[str, Record]]:
    """What the files hold, each with the place where it stands."""
    for file in sorted(folder.glob("*.jsonl")):
        yield from read_records(file, kind)


def _judged(labelled: LabelledDialogue) -> Judged:
    bank = training_bank()
    persona = bank.persona(labelled.persona)
    partner = Partner([turn.partner for turn in labelled.turns])
    transcript = blank(persona, bank.scenarios[persona.scenario], partner, 0)
    transcript.id, transcript.model = labelled.id, labelled.model
    transcript.turns = [Turn(partner=turn.partner, line=turn.line) for turn in labelled.turns]
    verdicts = []
    for number, turn in enumerate(labelled.turns, start=1):
        no_answer = turn.label == "consistent" and isinstance(turn, ReadTurn) and not turn.answers
        outcome: Outcome = "unparsed" if turn.label == "unclear" or no_answer else turn.label
        verdicts.append(Verdict(metric="prompt_to_line", turn=number, outcome=outcome, reason=turn.why))
        if number > 1:
            outcome = "contradicts" if turn.conflicts else "consistent"
            found = Verdict(metric="line_to_line", turn=number, outcome=outcome, conflicts=list(turn.conflicts))
            verdicts.append(found)
    return Judged(transcript=transcript, verdicts=verdicts, judge=READ)


def load_corrected(folder: Path = FOLDER) -> Iterator[Judged]:
    """The corrections, each a branch of its dialogue that ends with the new line.

    Raises:
        BankError: A line is none, or of no labelled dialogue, or of a turn that needs no correction; names the line.
    """
    parents = {record.transcript.id: record for record in load_labelled()}
    for where, corrected in _records(folder, Corrected):
        parent = parents.get(corrected.dialogue)
        if parent is None or corrected.turn not in _wrong(parent):
            raise BankError(f"{where}: {corrected.dialogue} has no wrong line in turn {corrected.turn}")
        yield _branch(parent, corrected.turn, corrected.line)


def load_better(folder: Path = AGAIN) -> Iterator[Judged]:
    """The better lines that stand beside wrong ones, each a branch of its dialogue that ends with it.

    Raises:
        BankError: A line is none, or a better line stands where none is needed; names the line.
    """
    for where, dialogue in _records(folder, ReadDialogue):
        parent = _judged(dialogue)
        wrong = _wrong(parent)
        for number, turn in enumerate(dialogue.turns, start=1):
            if turn.better and number not in wrong:
                raise BankError(f"{where}: turn {number} has a better line, and is not wrong")
            if turn.better:
                yield _branch(parent, number, turn.better)


def _wrong(record: Judged) -> set[int]:
    """Turns whose line is not consistent, or contradicts an earlier one."""
    return {
        verdict.turn
        for verdict in record.verdicts
        if verdict.outcome == "contradicts" or (verdict.metric == "prompt_to_line" and verdict.outcome == "unparsed")
    }


def _branch(parent: Judged, turn: int, line: str) -> Judged:
    said = parent.transcript
    turns = [*said.turns[: turn - 1], said.turns[turn - 1].model_copy(update={"line": line})]
    metadata = {"parent": said.id, "branch": turn, "segment": 1}
    name = f"{said.id}/corrected/{turn}"
    new = said.model_copy(update={"id": name, "model": "written", "turns": turns, "metadata": metadata})
    before = [verdict for verdict in parent.verdicts if verdict.turn < turn]
    own = [Verdict(metric="prompt_to_line", turn=turn, outcome="consistent", reason="written so")]
    if turn > 1:
        own.append(Verdict(metric="line_to_line", turn=turn, outcome="consistent", reason="written so"))
    return Judged(transcript=new, verdicts=[*before, *own], judge=READ)


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=Set.__args__, default="trained", help="whose lines they are")  # type: ignore[attr-defined]
    parser.add_argument("--out", type=Path, required=True, help="JSONL of judged dialogues; written anew")
    options = parser.parse_args()
    try:
        records = list(load_labelled(options.set))
    except BankError as error:
        raise SystemExit(f"error: {error}") from None
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.unlink(missing_ok=True)
    append_jsonl(options.out, records)
    print(f"{len(records)} dialogues, {sum(len(record.transcript.turns) for record in records)} lines in {options.out}")


if __name__ == "__main__":
    main()
