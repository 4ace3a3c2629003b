"""The labelled sets: complete, in the splits of the personas, and what the second passes agree on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from sklearn.metrics import cohen_kappa_score

from persona_tasks.calibration import (
    CONTRAST,
    FOLDER,
    HELD,
    REWRITTEN,
    SETS,
    load_dialogues,
    load_injections,
    load_items,
)
from persona_tasks.personas import SPLITS, BankError, load_bank
from persona_tasks.protocol.verdicts import LINE_DRIFTS

SCENARIOS = ("chat", "education", "service", "therapy")
GUIDELINE = Path(__file__).parents[1] / "docs" / "labelling.md"
DOCS = Path(__file__).parents[1] / "docs" / "calibration.md"


def test_every_persona_has_its_lines_and_pairs() -> None:
    items = load_items(["calibration"], "all")
    cells = Counter((item.transcript.persona_id, item.metric, item.label) for item in items)
    assert len(load_bank().personas) == 160
    for persona in load_bank().personas:
        assert cells[persona.id, "prompt_to_line", "consistent"] == 4
        assert cells[persona.id, "prompt_to_line", "contradicts"] == 4
        assert cells[persona.id, "line_to_line", "consistent"] == 2
        assert cells[persona.id, "line_to_line", "contradicts"] == 2


def test_contrast_pairs_are_for_training_alone_and_differ_in_their_label_not_their_length() -> None:
    items = load_items([CONTRAST], "all", metric="prompt_to_line")
    assert len(items) == 2304 and len({item.transcript.lines[0] for item in items}) == 2304
    cells = Counter((item.transcript.persona_id, item.label) for item in items)
    train = [persona.id for persona in load_bank().select("all", "train")]
    assert cells == {(persona, label): 12 for persona in train for label in ("consistent", "contradicts")}
    drifts = set(re.findall(r"^\| `(\w+)`", GUIDELINE.read_text(encoding="utf-8"), re.MULTILINE))
    assert {item.kind for item in items} <= drifts
    words = {label: sum(len(i.transcript.lines[0].split()) for i in items if i.label == label) for _, label in cells}
    assert words["contradicts"] == pytest.approx(words["consistent"], rel=0.05)
    assert load_items([CONTRAST], "test") == []


def test_contrast_lines_after_earlier_ones_are_told_apart_by_these_only() -> None:
    items = load_items([CONTRAST], "all", metric="line_to_line")
    cells = Counter((item.transcript.persona_id, item.label) for item in items)
    train = [persona.id for persona in load_bank().select("all", "train")]
    assert cells == {(persona, label): 6 for persona in train for label in ("consistent", "contradicts")}
    words = {label: sum(len(i.transcript.lines[-1].split()) for i in items if i.label == label) for _, label in cells}
    assert words["contradicts"] == pytest.approx(words["consistent"], rel=0.02)
    for item in items:
        assert bool(item.conflicts) == (item.label == "contradicts")
        assert all(1 <= earlier < item.turn for earlier in item.conflicts)
    both = Counter(item.transcript.lines[-1] for item in items)
    assert sum(count > 1 for count in both.values()) == 192  # the same words under both labels


def test_rewritten_lines_turn_the_label_of_the_line_that_was_said() -> None:
    items = load_items([REWRITTEN], "all")
    assert len(items) == 1758 and load_items([REWRITTEN], "test") == []
    said = {d.id: d for scenario in SCENARIOS for d in load_dialogues(scenario, "train")}
    drifts = set(re.findall(r"^\| `(\w+)`", GUIDELINE.read_text(encoding="utf-8"), re.MULTILINE))
    for item in items:
        dialogue, turn = item.id.removesuffix("/rewritten").rsplit("/", 1)
        was = said[dialogue].turns[int(turn) - 1]
        assert {was.label, item.label} == {"consistent", "contradicts"}, item.id
        assert was.line != item.transcript.lines[0] and was.partner == item.transcript.turns[0].partner
        assert (item.kind in drifts) == (item.label == "contradicts")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("split", SPLITS)
def test_items_are_in_the_split_of_their_persona(name: str, split: str) -> None:
    personas = {load_bank().persona(item.transcript.persona_id) for item in load_items([name], split)}
    assert {persona.split for persona in personas} == {split}


def test_the_on_policy_set_has_a_label_for_each_line() -> None:
    dialogues = [d for scenario in SCENARIOS for split in SPLITS for d in load_dialogues(scenario, split)]
    drifts = set(re.findall(r"^\| `(\w+)`", GUIDELINE.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(drifts) == 12
    assert len({d.persona for d in dialogues}) == 160
    assert len({d.id for d in dialogues}) == len(dialogues) == 160 + 2 * 96
    assert sum(len(d.turns) for d in dialogues if d.id.endswith("/0")) == 1600
    further = [d for d in dialogues if not d.id.endswith("/0")]
    assert {load_bank().persona(d.persona).split for d in further} == {"train"}
    assert sum(len(d.turns) for d in further) == 1536
    for dialogue in dialogues:
        for number, turn in enumerate(dialogue.turns, start=1):
            assert (turn.drift in drifts) == (turn.label == "contradicts"), (dialogue.id, number)
            assert all(1 <= earlier < number for earlier in turn.conflicts), (dialogue.id, number)
            assert turn.why


def test_the_trained_set_has_a_label_for_each_line() -> None:
    dialogues = [d for scenario in SCENARIOS for split in SPLITS for d in load_dialogues(scenario, split, "trained")]
    assert Counter(d.persona for d in dialogues) == {persona.id: 1 for persona in load_bank().personas}
    assert {len(d.turns) for d in dialogues} == {8} and {d.model for d in dialogues} == {"persona/sim-135m"}
    for dialogue in dialogues:
        for number, turn in enumerate(dialogue.turns, start=1):
            assert (turn.drift in LINE_DRIFTS) == (turn.label == "contradicts"), (dialogue.id, number)
            assert all(1 <= earlier < number for earlier in turn.conflicts), (dialogue.id, number)
            assert turn.why


def test_unclear_lines_are_no_items_and_conflicts_are_kept() -> None:
    items = load_items(["on_policy"], "test")
    dialogues = [d for scenario in SCENARIOS for d in load_dialogues(scenario, "test")]
    clear = sum(turn.label != "unclear" and turn.line != "" for d in dialogues for turn in d.turns)
    assert sum(item.metric == "prompt_to_line" for item in items) == clear < 400
    pairs = [item for item in items if item.metric == "line_to_line"]
    assert all(len(item.transcript.turns) == item.turn >= 2 for item in pairs)
    assert {item.label for item in pairs if item.conflicts} == {"contradicts"}


def test_injections_are_said_in_every_scenario() -> None:
    items = load_injections()
    assert Counter(item.scenario for item in items) == dict.fromkeys(SCENARIOS, 20)
    assert {item.label for item in items} == {"contradicts"}


@pytest.mark.parametrize(
    "arguments", [(["nonsense"],), (("calibration",), "nonsense"), (("calibration",), "test", "x")]
)
def test_a_name_that_does_not_exist_is_named(arguments: tuple[str, ...]) -> None:
    with pytest.raises(BankError, match="is none of"):
        load_items(*arguments)


def labels_of(held: str) -> dict[tuple[str, int], tuple[str, bool]]:
    return {
        (dialogue.id, number): (turn.label, bool(turn.conflicts))
        for scenario in SCENARIOS
        for split in SPLITS
        for dialogue in load_dialogues(scenario, split, held)
        for number, turn in enumerate(dialogue.turns, start=1)
    }


@pytest.mark.parametrize(("held", "count", "row"), [("on_policy", 240, ""), ("trained", 192, "trained, ")])
def test_agreement_of_the_second_pass_is_what_the_docs_say(held: str, count: int, row: str) -> None:
    file = FOLDER / f"second_pass.{HELD[held]}.jsonl"
    second = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({(entry["id"], entry["turn"]) for entry in second}) == count  # 15 % of 1,600 and of 1,280
    first = labels_of(held)
    labels = [(first[entry["id"], entry["turn"]][0], entry["label"]) for entry in second]
    clear = [pair for pair in labels if "unclear" not in pair]
    pairs = [(first[entry["id"], entry["turn"]][1], bool(entry["conflicts"])) for entry in second if entry["turn"] > 1]
    for name, found in (("three labels", labels), ("two labels", clear), ("conflicts", pairs)):
        kappa, agreed = cohen_kappa_score(*zip(*found, strict=True)), sum(a == b for a, b in found)
        assert f"| {row}{name} | {agreed} of {len(found)} | {kappa:.2f} |" in DOCS.read_text(encoding="utf-8")


def test_agreement_of_the_second_pass_on_further_and_rewritten_lines_is_what_the_docs_say() -> None:
    file = FOLDER / "second_pass.further.jsonl"
    second = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    first = labels_of("on_policy")
    turned = {item.id: item.label for item in load_items([REWRITTEN], "train")}
    further = [(first[e["id"], e["turn"]][0], e["label"]) for e in second if not e["rewritten"]]
    clear = [pair for pair in further if "unclear" not in pair]
    rewritten = [(turned[f"{e['id']}/{e['turn']}/rewritten"], e["label"]) for e in second if e["rewritten"]]
    rows = {"further lines, three labels": further, "further lines, two labels": clear}
    for name, found in (rows | {"rewritten lines, three labels": rewritten}).items():
        kappa, agreed = cohen_kappa_score(*zip(*found, strict=True)), sum(a == b for a, b in found)
        assert f"| {name} | {agreed} of {len(found)} | {kappa:.2f} |" in DOCS.read_text(encoding="utf-8")


def test_agreement_of_the_second_pass_on_composed_lines_is_what_the_docs_say() -> None:
    second = yaml.safe_load((FOLDER / "second_pass.yaml").read_text(encoding="utf-8"))
    first = {item.id: item for item in load_items(["calibration"], "all")}
    labels = [(first[entry["item"]].label, entry["label"]) for entry in second["lines"]]
    assert len(labels) == 128
    text = DOCS.read_text(encoding="utf-8")
    kappa, agreed = cohen_kappa_score(*zip(*labels, strict=True)), sum(a == b for a, b in labels)
    assert f"| composed lines | {agreed} of {len(labels)} | {kappa:.2f} |" in text
    pairs = [(first[entry["item"]].conflicts, tuple(entry["conflicts"])) for entry in second["pairs"]]
    agreed = sum(a == b for a, b in pairs)
    kappa = cohen_kappa_score([bool(a) for a, _ in pairs], [bool(b) for _, b in pairs])
    assert f"| composed pairs | {agreed} of {len(pairs)} | {kappa:.2f} |" in text
