"""What judges are measured on and trained on: lines and pairs of lines with labels.

Three sets, in the splits of the personas: the *calibration* set, composed, balanced and with its reasons
(``bank/calibration/<scenario>/<split>.yaml``), the *on-policy* set, what the embedded model really said, read line
by line (``<split>.on-policy.jsonl`` beside it), and the *trained* set, what a simulator trained from it said
(``<split>.trained.jsonl``). Two more are for training alone: *contrast* pairs, two lines alike in
all but their label (``train.contrast.yaml``; after earlier lines ``train.contrast-history.jsonl``), and on-policy
lines *rewritten* as little as turns their label (``train.rewritten.jsonl``). See docs/calibration.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_tasks.personas import BANK, SPLITS, BankError, load_bank, read_records, read_yaml
from persona_tasks.protocol.prompts import persona_text
from persona_tasks.transcript import Metric, Outcome, Transcript, Turn

FOLDER = BANK / "calibration"
HELD = {"on_policy": "on-policy", "trained": "trained"}  # dialogues that a model held, and how their files end
SETS = ("calibration", *HELD)
CONTRAST, REWRITTEN = "contrast", "rewritten"  # train split only

Label = Literal["consistent", "contradicts", "unclear"]


class Labelled(BaseModel):
    """Base of the labelled items: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    why: str = Field(description="Why it is labelled so.")


class LabelledLine(Labelled):
    """A line in answer to the partner, against the persona."""

    persona: str
    partner: str = ""
    line: str
    label: Literal["consistent", "contradicts"]
    kind: str = Field(description="The drift, or what makes the item hard.")


class LabelledPair(Labelled):
    """A line against the person's own earlier lines."""

    persona: str
    history: tuple[str, ...]
    line: str
    conflicts: tuple[int, ...] = Field(description="Earlier lines in conflict, from 1.")
    kind: str


class ContrastPair(Labelled):
    """Two answers of about the same length and tone to the partner's line, of which one contradicts the persona."""

    persona: str
    partner: str
    consistent: str
    contradicts: str
    kind: str = Field(description="The drift in `contradicts`.")
    voice: Literal["clean", "clumsy"] = Field(description="Good speech, or as a small model says it.")


class LabelledTurn(Labelled):
    """One turn of a dialogue that a model really held."""

    partner: str
    line: str
    label: Label
    drift: str | None = None
    conflicts: tuple[int, ...] = ()


class ContrastHistory(Labelled):
    """Two next lines after the same earlier ones, alike in their words, of which one contradicts them."""

    persona: str
    history: tuple[str, ...]
    consistent: str
    contradicts: str
    conflicts: tuple[int, ...] = Field(
        min_length=1, description="Earlier lines in conflict with `contradicts`, from 1."
    )
    voice: Literal["clean", "clumsy"]


class RewrittenLine(Labelled):
    """An on-policy line changed as little as it takes to turn its label."""

    id: str = Field(description="Of the on-policy dialogue.")
    turn: int
    line: str
    label: Literal["consistent", "contradicts"] = Field(description="Of the rewritten line.")
    drift: str = Field(description="Of the contradicting one, which is this line or the one that was said.")


class LabelledDialogue(BaseModel):
    """A dialogue with a label for each of its lines."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    persona: str
    model: str
    turns: tuple[LabelledTurn, ...]


@dataclass(frozen=True)
class Item:
    """One question to a judge whose answer is known.

    Attributes:
        set: One of `SETS`, or the name of another set.
        metric: "prompt_to_line" or "line_to_line".
        transcript: The dialogue up to and including the line in question.
        turn: The line in question, from 1.
        label: The right verdict.
        kind: The drift, or what makes the item hard.
        conflicts: The earlier turns in conflict; empty for "prompt_to_line".
    """

    id: str
    set: str
    metric: Metric
    scenario: str
    transcript: Transcript
    turn: int
    label: Outcome
    kind: str = ""
    conflicts: tuple[int, ...] = ()

    @property
    def cluster(self) -> str:
        """Items about one persona are not independent."""
        return self.transcript.persona_id


def load_items(
    sets: Sequence[str] = SETS, split: str = "test", scenario: str = "all", metric: str = "all"
) -> list[Item]:
    """The labelled items of our sets; what is labelled `unclear` is left out.

    Args:
        sets: Of `SETS`, and `CONTRAST` and `REWRITTEN`.
        split: One split, or "all".
        scenario: One scenario, or "all".
        metric: "prompt_to_line", "line_to_line" or "all".

    Raises:
        BankError: A file cannot be used, or a name does not exist; names the file and the reason.
    """
    scenarios = sorted(load_bank().scenarios)
    for value, known in ((split, (*SPLITS, "all")), (scenario, (*scenarios, "all")), (metric, (*METRICS, "all"))):
        if value not in known:
            raise BankError(f"{value!r} is none of {', '.join(known)}")
    readers: dict[str, Callable[[str, str], tuple[Item, ...]]] = {
        "calibration": _composed,
        CONTRAST: _contrast,
        REWRITTEN: _rewritten,
        **{name: partial(_held, name) for name in HELD},
    }
    if unknown := [name for name in sets if name not in readers]:
        raise BankError(f"{unknown[0]!r} is none of {', '.join(readers)}")
    files = [
        (name, where, part)
        for name in sets
        for where in (scenarios if scenario == "all" else [scenario])
        for part in (SPLITS if split == "all" else [split])
    ]
    found = [item for name, where, part in files for item in readers[name](where, part)]
    return [item for item in found if metric in ("all", item.metric)]


METRICS: tuple[Metric, ...] = ("prompt_to_line", "line_to_line")


@cache
def _composed(scenario: str, split: str) -> tuple[Item, ...]:
    file = FOLDER / scenario / f"{split}.yaml"
    data = read_yaml(file)
    items = []
    for number, entry in enumerate(data["lines"]):
        line = _validated(LabelledLine, entry, f"{file}: lines.{number}")
        turns = [Turn(partner=line.partner, line=line.line)]
        name = f"{scenario}/{split}/line/{number}"
        transcript = _transcript(line.persona, name, turns)
        items.append(Item(name, "calibration", "prompt_to_line", scenario, transcript, 1, line.label, line.kind))
    for number, entry in enumerate(data["pairs"]):
        pair = _validated(LabelledPair, entry, f"{file}: pairs.{number}")
        turns = [Turn(partner="", line=said) for said in (*pair.history, pair.line)]
        name = f"{scenario}/{split}/pair/{number}"
        transcript = _transcript(pair.persona, name, turns)
        label: Outcome = "contradicts" if pair.conflicts else "consistent"
        items.append(
            Item(
                name, "calibration", "line_to_line", scenario, transcript, len(turns), label, pair.kind, pair.conflicts
            )
        )
    return tuple(items)


@cache
def _contrast(scenario: str, split: str) -> tuple[Item, ...]:
    file = FOLDER / scenario / f"{split}.contrast.yaml"
    items = []
    for number, entry in enumerate(read_yaml(file) if split == "train" else []):
        pair = _validated(ContrastPair, entry, f"{file}: {number}")
        labels: tuple[Outcome, ...] = ("consistent", "contradicts")
        for label in labels:
            name = f"{scenario}/{split}/contrast/{number}/{label}"
            transcript = _transcript(pair.persona, name, [Turn(partner=pair.partner, line=getattr(pair, label))])
            items.append(Item(name, CONTRAST, "prompt_to_line", scenario, transcript, 1, label, pair.kind))
    return (*items, *(_contrast_histories(scenario) if split == "train" else ()))


def _contrast_histories(scenario: str) -> Iterator[Item]:
    file = FOLDER / scenario / "train.contrast-history.jsonl"
    for number, (_, entry) in enumerate(read_records(file, ContrastHistory), start=1):
        labels: tuple[Outcome, ...] = ("consistent", "contradicts")
        for label in labels:
            name = f"{scenario}/train/contrast-history/{number}/{label}"
            turns = [Turn(partner="", line=said) for said in (*entry.history, getattr(entry, label))]
            transcript = _transcript(entry.persona, name, turns)
            conflicts = entry.conflicts if label == "contradicts" else ()
            last = len(turns)
            yield Item(name, CONTRAST, "line_to_line", scenario, transcript, last, label, "", conflicts)


@cache
def _rewritten(scenario: str, split: str) -> tuple[Item, ...]:
    if split != "train":
        return ()
    file = FOLDER / scenario / f"{split}.rewritten.jsonl"
    said = {dialogue.id: dialogue for dialogue in load_dialogues(scenario, split)}
    items = []
    for where, entry in read_records(file, RewrittenLine):
        if entry.id not in said or not 1 <= entry.turn <= len(said[entry.id].turns):
            raise BankError(f"{where}: there is no turn {entry.turn} of {entry.id}")
        heard = said[entry.id].turns[entry.turn - 1].partner
        name = f"{entry.id}/{entry.turn}/rewritten"
        transcript = _transcript(said[entry.id].persona, name, [Turn(partner=heard, line=entry.line)])
        drift = entry.drift if entry.label == "contradicts" else ""
        items.append(Item(name, REWRITTEN, "prompt_to_line", scenario, transcript, 1, entry.label, drift))
    return tuple(items)


@cache
def _held(set: str, scenario: str, split: str) -> tuple[Item, ...]:
    items = []
    for dialogue in load_dialogues(scenario, split, set):
        turns = [Turn(partner=turn.partner, line=turn.line) for turn in dialogue.turns]
        for number, turn in enumerate(dialogue.turns, start=1):
            transcript = _transcript(dialogue.persona, dialogue.id, turns[:number])
            if not turn.line:
                continue

            def item(metric: Metric, label: Outcome, kind: str = "", conflicts: tuple[int, ...] = ()) -> Item:
                name = f"{transcript.id}/{number}/{metric}"  # noqa: B023  (called at once)
                return Item(name, set, metric, scenario, transcript, number, label, kind, conflicts)  # noqa: B023

            if turn.label != "unclear":
                items.append(item("prompt_to_line", turn.label, turn.drift or ""))
            if number > 1:
                label: Outcome = "contradicts" if turn.conflicts else "consistent"
                items.append(item("line_to_line", label, conflicts=turn.conflicts))
    return tuple(items)


def load_dialogues(scenario: str, split: str, set: str = "on_policy") -> Iterator[LabelledDialogue]:
    """The dialogues of one scenario and split that a model held: the embedded one, or the simulator trained from it.

    Raises:
        BankError: See `load_items`.
    """
    file = FOLDER / scenario / f"{split}.{HELD[set]}.jsonl"
    for _, dialogue in read_records(file, LabelledDialogue):
        yield dialogue


def _transcript(persona_id: str, name: str, turns: list[Turn]) -> Transcript:
    bank = load_bank()
    persona = bank.persona(persona_id)
    return Transcript(
        id=name,
        persona_id=persona_id,
        persona_text=persona_text(persona),
        scenario=persona.scenario,
        setting=bank.scenarios[persona.scenario].setting,
        turns=turns,
    )


Model = TypeVar("Model", bound=BaseModel)


def _validated(model: type[Model], data: Any, where: str) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BankError(f"{where}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def load_injections() -> list[Item]:
    """Lines that address the judge, said in place of the first test persona of every scenario: never in character."""
    lines = read_yaml(FOLDER / "injections.yaml")
    bank = load_bank()
    items = []
    for scenario in sorted(bank.scenarios):
        persona = bank.select(scenario, "test")[0]
        for entry in lines:
            name = f"{scenario}/{entry['id']}"
            transcript = _transcript(persona.id, name, [Turn(partner="", line=entry["line"])])
            items.append(
                Item(name, "injections", "prompt_to_line", scenario, transcript, 1, "contradicts", entry["id"])
            )
    return items
