"""Blind reading: does a person (or whoever reads) find the drop of contradictions that a judge claims?

python -m training.reading draw --before base.jsonl --after trained.jsonl --lines 200 --out sheet.jsonl --key key.json
python -m training.reading score --sheet labelled.jsonl --key key.json --out reading.json

`draw` takes the same personas and turns from the dialogues of two models and shuffles all lines under opaque ids, so
that the reader cannot know who said what; the key is a file of its own. The reader fills in `label` (and `drift`) as
docs/labelling.md says. `score` computes, over the lines of one side with a clear label,

    share = contradicts / (contradicts + consistent)      reduction = 1 - share_after / share_before

with 95 % bootstrap intervals that draw personas, the same for both sides. Beside it stands what the judge whose
verdicts were in the two files claims on these very lines, and how far that exceeds the reading.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_tasks.agreement import Row, Statistic, confusion, kappa
from persona_tasks.calibration import Label
from persona_tasks.embedded.weights import sha256
from persona_tasks.metrics import RESAMPLES, Array, bootstrap_weights
from persona_tasks.personas import DriftType
from persona_tasks.tables import interval_text, number_text
from persona_tasks.transcript import Judged, Outcome, TranscriptError, Turn, Verdict, read_jsonl
from training.compare_page import percent
from training.compare_table import ratio, statistic

Side = Literal["before", "after"]
MUCH = 0.1  # a claim that exceeds the reading by more than ten points is said first


class ReadingError(ValueError):
    """A sheet cannot be drawn or scored. The message names the file, the line and the reason."""


class Strict(BaseModel):
    """Base of what is stored: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class Item(Strict):
    """One line of the sheet. The reader fills in `label` and, for a contradiction, `drift`."""

    id: str
    scenario: str
    persona: str = Field(description="The whole persona text.")
    earlier: list[Turn] = Field(description="The dialogue so far.")
    partner: str = Field(description="What was just said to the person.")
    line: str = Field(description="What is to be labelled.")
    label: Label | None = None
    drift: DriftType | None = None


class Place(Strict):
    """Where an item comes from: never shown to the reader."""

    side: Side
    dialogue: str
    persona_id: str
    scenario: str
    turn: int
    verdict: Outcome | None = Field(None, description="The judge's, prompt to line; None if there is none.")


class Key(Strict):
    """Who said what."""

    seed: int
    files: dict[Side, str] = Field(description="sha256 of the two files.")
    models: dict[Side, str]
    judge: str = Field(description="Whose verdicts the places hold; empty for nobody's, or for two different judges'.")
    places: dict[str, Place]


class Share(Strict):
    """Lines of one side. `share` is that of contradictions among those with a clear label."""

    contradicts: int
    consistent: int
    unclear: int
    share: Statistic


class Result(Strict):
    """The reading, and the judge's claim on the same lines."""

    before: Share
    after: Share
    reduction: Statistic
    personas: int
    judge: str
    judge_reduction: Statistic | None = None
    excess: Statistic | None = Field(None, description="judge_reduction - reduction, in the same resamples.")
    judge_kappa: dict[Side, Statistic] = Field({}, description="Of the judge with the reading, on each side.")

    @property
    def overclaimed(self) -> bool:
        """Whether the judge claims much more than the reading finds."""
        return self.excess is not None and self.excess.value is not None and self.excess.value > MUCH


# ------------------------------------------------------------------------------------------------------------ draw


def draw(before: Path, after: Path, lines: int, seed: int) -> tuple[list[Item], Key]:
    """Draw `lines` places that both sides have, the personas taking turns: two items for each, in random order.

    Raises:
        ReadingError: Both files together have fewer such places, or a file has one dialogue twice.
    """
    files: dict[Side, Path] = {"before": before, "after": after}
    records = {side: _by_dialogue(file) for side, file in files.items()}
    rng = random.Random(seed)
    places = _shared_places(records["before"], records["after"], rng)
    if len(places) < lines:
        raise ReadingError(f"{before} and {after} share {len(places)} lines (same dialogue, same turn); not {lines}")
    drawn = [(side, dialogue, turn) for dialogue, turn in places[:lines] for side in files]
    rng.shuffle(drawn)
    items: list[Item] = []
    key: dict[str, Place] = {}
    for side, dialogue, turn in drawn:
        record, name = records[side][dialogue], f"{rng.getrandbits(48):012x}"
        items.append(_item(name, record, turn))
        key[name] = _place(side, record, turn)
    judges = {record.judge for side in files for record in records[side].values() if record.verdicts}
    return items, Key(
        seed=seed,
        files={side: sha256(file) for side, file in files.items()},
        models={side: _model(records[side].values()) for side in files},
        judge=judges.pop() if len(judges) == 1 else "",
        places=key,
    )


def _by_dialogue(file: Path) -> dict[str, Judged]:
    if not file.is_file():
        raise ReadingError(f"{file}: there is no such file")
    found: dict[str, Judged] = {}
    for record in read_jsonl(file):
        if record.transcript.id in found:
            raise ReadingError(f"{file}: dialogue {record.transcript.id} is in it twice")
        found[record.transcript.id] = record
    return found


def _shared_places(before: dict[str, Judged], after: dict[str, Judged], rng: random.Random) -> list[tuple[str, int]]:
    """(dialogue, turn) of all lines that both sides have, so ordered that any first n are spread over the personas."""
    by_persona: dict[str, list[tuple[str, int]]] = {}
    for dialogue in sorted(before.keys() & after.keys()):
        first, second = before[dialogue].transcript, after[dialogue].transcript
        both = enumerate(zip(first.lines, second.lines, strict=False), start=1)
        shared = [(dialogue, turn) for turn, (one, other) in both if one and other]
        by_persona.setdefault(first.persona_id, []).extend(shared)
    personas = list(by_persona)
    rng.shuffle(personas)
    for places in by_persona.values():
        rng.shuffle(places)
    rounds = max((len(places) for places in by_persona.values()), default=0)
    return [by_persona[name][n] for n in range(rounds) for name in personas if n < len(by_persona[name])]


def _item(name: str, record: Judged, turn: int) -> Item:
    said = record.transcript
    *earlier, last = said.turns[:turn]
    return Item(
        id=name,
        scenario=said.scenario,
        persona=said.persona_text,
        earlier=earlier,
        partner=last.partner,
        line=last.line,
    )


def _place(side: Side, record: Judged, turn: int) -> Place:
    said = record.transcript
    verdict = next((v.outcome for v in record.of("prompt_to_line") if v.turn == turn), None)
    return Place(
        side=side,
        dialogue=said.id,
        persona_id=said.persona_id,
        scenario=said.scenario,
        turn=turn,
        verdict=verdict,
    )


def _model(records: Iterable[Judged]) -> str:
    return ", ".join(sorted({record.transcript.model for record in records}))


# ----------------------------------------------------------------------------------------------------------- score


def read_sheet(file: Path, key: Key) -> dict[str, Label]:
    """The labels of a sheet, by id.

    Raises:
        ReadingError: An item is not labelled, has a label that does not exist, is there twice, is not in the key, or
            is missing; names the line.
    """
    labels: dict[str, Label] = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{file}, line {number}"
        try:
            item = Item.model_validate(json.loads(text))
        except json.JSONDecodeError as error:
            raise ReadingError(f"{where}: not JSON ({error})") from None
        except ValidationError as error:
            problem = error.errors()[0]
            raise ReadingError(f"{where}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
        if item.id not in key.places:
            raise ReadingError(f"{where}: id {item.id} is not in the key")
        if item.id in labels:
            raise ReadingError(f"{where}: id {item.id} is there twice")
        if item.label is None:
            raise ReadingError(f"{where}: id {item.id} has no label; give consistent, contradicts or unclear")
        labels[item.id] = item.label
    if missing := sorted(key.places.keys() - labels.keys()):
        raise ReadingError(f"{file}: {len(missing)} of {len(key.places)} items are missing, {missing[0]} for example")
    return labels


def score(labels: dict[str, Label], key: Key, resamples: int = RESAMPLES, seed: int = 0) -> Result:
    """Shares of contradictions before and after, the reduction, and the judge's claim on the same lines."""
    ids = list(key.places)
    places = [key.places[name] for name in ids]
    personas = [place.persona_id for place in places]
    weights = np.vstack([np.ones(len(ids)), bootstrap_weights(personas, resamples, seed)])
    clear = [labels[name] if labels[name] != "unclear" else None for name in ids]
    read = {side: _share_of(clear, places, side, weights) for side in ("before", "after")}
    reduction = _reduction(read["before"], read["after"])

    judged: list[str | None] = [
        place.verdict if label and place.verdict != "unparsed" else None
        for place, label in zip(places, clear, strict=True)
    ]
    claim = None
    if key.judge and any(judged):
        claim = _reduction(*(_share_of(judged, places, side, weights) for side in ("before", "after")))
    return Result(
        before=_counted(labels, key, "before", read["before"]),
        after=_counted(labels, key, "after", read["after"]),
        reduction=statistic(reduction),
        personas=len(set(personas)),
        judge=key.judge,
        judge_reduction=None if claim is None else statistic(claim),
        excess=None if claim is None else statistic(claim - reduction),
        judge_kappa={} if claim is None else _kappas(labels, key),
    )


def _share_of(outcomes: Sequence[str | None], places: Sequence[Place], side: str, weights: Array) -> Array:
    """(R,) share of contradictions among the outcomes of one side; None leaves the denominator."""
    own = [outcome if place.side == side else None for outcome, place in zip(outcomes, places, strict=True)]
    contradicts = weights @ np.array([float(outcome == "contradicts") for outcome in own])
    return ratio(contradicts, weights @ np.array([float(outcome is not None) for outcome in own]))


def _reduction(before: Array, after: Array) -> Array:
    """1 - after / before; NaN where `before` is 0."""
    return 1 - ratio(after, before)


def _counted(labels: dict[str, Label], key: Key, side: Side, share: Array) -> Share:
    own = [labels[name] for name, place in key.places.items() if place.side == side]
    return Share(
        contradicts=own.count("contradicts"),
        consistent=own.count("consistent"),
        unclear=own.count("unclear"),
        share=statistic(share),
    )


def _kappas(labels: dict[str, Label], key: Key) -> dict[Side, Statistic]:
    """Agreement of the judge with the reading. A judge that was played agrees less on the lines trained for it."""
    sides: dict[Side, list[Row]] = {"before": [], "after": []}
    for name, place in key.places.items():
        label = labels[name]
        if label == "unclear" or place.verdict in (None, "unparsed"):
            continue
        verdict = Verdict(metric="prompt_to_line", turn=place.turn, outcome=place.verdict)
        row = Row(name, "reading", "prompt_to_line", place.scenario, "", place.persona_id, label, (), verdict)
        sides[place.side].append(row)
    return {side: _kappa(rows) for side, rows in sides.items() if rows}


def _kappa(rows: Sequence[Row]) -> Statistic:
    drawn = bootstrap_weights([row.cluster for row in rows])
    return statistic(kappa(confusion(rows, np.vstack([np.ones(len(rows)), drawn]))))


def report(result: Result) -> str:
    """The result in words; if the judge claims much more than the reading, that comes first."""
    before, after = result.before, result.after
    found = f"{percent(before.share)} of the lines before and {percent(after.share)} after contradict the persona"
    lines = [f"By reading, {found}: {percent(result.reduction)} fewer (95 % interval over {result.personas} personas)."]
    if result.judge_reduction is not None and result.excess is not None:
        claim = f"{result.judge} claims {percent(result.judge_reduction)} fewer on the same lines"
        if result.overclaimed:
            lines.insert(0, f"The judge claims much more than the reading finds: {claim}; {_points(result.excess)}.")
        else:
            lines.append(f"{claim}; {_points(result.excess)}.")
        told = [f"{number_text(k.value, 2)} {interval_text(k.interval, '.2f')}" for k in result.judge_kappa.values()]
        lines.append(f"Its kappa with the reading: {' on the lines before, '.join(told)} on those after.")
    else:
        lines.append("No judge's verdicts were with these lines.")
    lines.append(f"Left out as unclear: {before.unclear} before, {after.unclear} after.")
    return "\n".join(lines)


def _points(excess: Statistic) -> str:
    if excess.value is None:
        return "not comparable"
    return f"{percent(excess).replace(' %', '')} points more" if excess.value >= 0 else "not more than the reading"


def main() -> None:
    """Parse the command line; draw or score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="a sheet to read, and its key")
    drawing.add_argument("--before", type=Path, required=True, help="dialogues of the base (our JSONL)")
    drawing.add_argument("--after", type=Path, required=True, help="of the trained model, with the same partner lines")
    drawing.add_argument("--lines", type=int, default=200, help="of each")
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--out", type=Path, required=True, help="the sheet")
    drawing.add_argument("--key", type=Path, required=True, help="who said what; keep it from the reader")
    scoring = commands.add_parser("score", help="what the labels say")
    scoring.add_argument("--sheet", type=Path, required=True, help="the sheet with its labels filled in")
    scoring.add_argument("--key", type=Path, required=True)
    scoring.add_argument("--out", type=Path, help="the numbers as JSON")
    options = parser.parse_args()
    try:
        _draw(options) if options.command == "draw" else _score(options)
    except (ReadingError, TranscriptError) as error:
        raise SystemExit(str(error)) from None


def _draw(options: argparse.Namespace) -> None:
    if options.out.exists():
        raise ReadingError(f"{options.out} is there already, perhaps with labels; choose another name")
    items, key = draw(options.before, options.after, options.lines, options.seed)
    _write(options.out, "".join(item.model_dump_json() + "\n" for item in items))
    _write(options.key, key.model_dump_json(indent=1) + "\n")


def _score(options: argparse.Namespace) -> None:
    key = Key.model_validate_json(options.key.read_text(encoding="utf-8"))
    result = score(read_sheet(options.sheet, key), key)
    if options.out:
        _write(options.out, result.model_dump_json(indent=2) + "\n")
    print(report(result))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
