"""Short persons for training judges: whole, balanced, in halves, and not to be guessed from the line's length."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from persona_tasks.personas import BankError
from persona_tasks.protocol.verdicts import LINE_DRIFTS
from training.judge_data import set_name, training_items
from training.short import load_short


def test_each_person_has_two_lines_of_each_label() -> None:
    items = load_short()
    labels: dict[str, list[str]] = {}
    for item in items:
        labels.setdefault(item.cluster, []).append(item.label)
        assert (item.kind in LINE_DRIFTS) == (item.label == "contradicts"), item.id
    assert len(labels) == 800
    assert {tuple(sorted(found)) for found in labels.values()} == {("consistent",) * 2 + ("contradicts",) * 2}
    assert len({item.transcript.persona_text for item in items}) == 800
    assert len({item.transcript.lines[0] for item in items}) > 3190


def test_length_and_negation_do_not_tell_the_label() -> None:
    words: dict[str, list[int]] = {"consistent": [], "contradicts": []}
    negated: Counter[str] = Counter()
    for item in load_short():
        [line] = item.transcript.lines
        words[item.label].append(len(line.split()))
        negated[item.label] += any(word in f" {line.lower()} " for word in (" not ", "n't ", " never ", " no "))
    means = {label: sum(counts) / len(counts) for label, counts in words.items()}
    assert abs(means["consistent"] - means["contradicts"]) < 1.5
    assert abs(negated["consistent"] - negated["contradicts"]) < 0.1 * 1600


def test_halves_share_no_person_and_come_only_when_named() -> None:
    even, odd = ({item.cluster for item in load_short(half)} for half in ("even", "odd"))
    assert len(even) == len(odd) == 400 and not even & odd
    named = {"rewritten/prompt_to_line": 0.0, "short/prompt_to_line": 1.0}
    assert "short/prompt_to_line" not in {set_name(item) for item, _ in training_items("even", 0, 0)}
    found = [item for item, _ in training_items("even", 0, 0, named) if set_name(item) == "short/prompt_to_line"]
    assert {item.cluster for item in found} == even


def test_a_line_that_is_no_person_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"form": "a", "persona": "I sail.", "lines": []}) + "\n")
    with pytest.raises(BankError, match=r"x\.jsonl, line 1: (?s:.*)lines"):
        load_short(folder=tmp_path)
