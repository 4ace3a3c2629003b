"""Short persons for training judges: in halves, and in pairs, so that a line alone tells nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from persona_tasks.personas import BankError
from persona_tasks.protocol.verdicts import LINE_DRIFTS
from training.judge_data import set_name, training_items
from training.short import FOLDER, HELD_OUT, load_short

SPLITS: tuple[Literal["train", "dev"], ...] = ("train", "dev")


def test_neither_the_line_nor_the_person_tells_the_label() -> None:
    items = [item for split in SPLITS for item in load_short(split=split)]
    lines: dict[tuple[str, str], list[str]] = {}
    persons: dict[tuple[str, str], list[str]] = {}
    for item in items:
        lines.setdefault((item.cluster, item.transcript.lines[0]), []).append(item.label)
        persons.setdefault((item.cluster, item.transcript.persona_text), []).append(item.label)
        assert (item.kind in LINE_DRIFTS) == (item.label == "contradicts"), item.id
    assert {tuple(sorted(labels)) for labels in lines.values()} == {("consistent", "contradicts")}
    assert {tuple(sorted(labels)) for labels in persons.values()} == {("consistent",) * 2 + ("contradicts",) * 2}
    pairs = {item.cluster for item in items}
    assert len(lines) == 4 * len(pairs) and len(persons) == 2 * len(pairs)
    assert len({item.transcript.persona_text for item in items}) == 2 * len(pairs)


def test_pairs_for_validation_are_not_learned_from() -> None:
    train, dev = ({item.cluster for item in load_short(split=split)} for split in SPLITS)
    assert not train & dev and len(dev) == HELD_OUT * len(list(FOLDER.glob("*.jsonl")))


def test_halves_share_no_person_and_come_only_when_named() -> None:
    even, odd = ({item.cluster for item in load_short(half)} for half in ("even", "odd"))
    assert even and odd and not even & odd
    named = {"rewritten/prompt_to_line": 0.0, "short/prompt_to_line": 1.0}
    assert "short/prompt_to_line" not in {set_name(item) for item, _ in training_items("even", 0, 0)}
    found = [item for item, _ in training_items("even", 0, 0, named) if set_name(item) == "short/prompt_to_line"]
    assert {item.cluster for item in found} == even


def test_a_line_that_is_no_person_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"form": "a", "a": "I sail.", "b": "I fly.", "lines": []}) + "\n")
    with pytest.raises(BankError, match=r"x\.jsonl, line 1: (?s:.*)lines"):
        load_short(folder=tmp_path)
