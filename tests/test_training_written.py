"""Dialogues that were written, or read and labelled: of people to train on, and ready to be learned from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from persona_tasks.calibration import load_items
from persona_tasks.embedded.weights import known, sha256
from persona_tasks.monitors import is_role_flip, persona_copying, self_repetition
from persona_tasks.personas import BankError, load_bank
from persona_tasks.transcript import read_jsonl
from training import signed
from training.labelled import Set, load_better, load_corrected, load_labelled
from training.offline import read_dialogues
from training.people import training_bank
from training.recipe import load_recipe
from training.written import load_written

ROOT = Path(__file__).parents[1]


def test_every_training_persona_speaks_and_nobody_else() -> None:
    records = list(load_written())
    people = {persona.id for persona in load_bank().select("all", "train")}
    more = {persona.id for persona in training_bank().personas} - {persona.id for persona in load_bank().personas}
    found = Counter(record.transcript.persona_id for record in records)
    assert found == dict.fromkeys(people, 3) | dict.fromkeys(more, 2) and (len(people), len(more)) == (96, 180)
    assert len({record.transcript.id for record in records}) == len(records)
    for record in records:
        assert len(record.transcript.turns) == 8 and all(record.transcript.lines)
        assert len(record.of("prompt_to_line")) == 8 and len(record.of("line_to_line")) == 7


def test_the_further_people_are_nobody_of_the_bank() -> None:
    ours, everybody = load_bank(), training_bank()
    more = [persona for persona in everybody.personas if persona not in ours.personas]
    assert {persona.split for persona in more} == {"train"}
    assert not {persona.name for persona in more} & {persona.name for persona in ours.personas}
    assert Counter(persona.scenario for persona in more) == dict.fromkeys(ours.scenarios, 45)
    for persona in more:
        assert len(persona.facts) >= 7 and len(persona.traits) == 4, persona.id


def test_they_show_none_of_the_faults_that_monitors_see() -> None:
    transcripts = [record.transcript for record in load_written()]
    assert sum(map(self_repetition, transcripts)) / len(transcripts) < 0.02
    assert sum(map(persona_copying, transcripts)) / len(transcripts) < 0.15
    assert not [line for transcript in transcripts for line in transcript.lines if is_role_flip(line)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"persona": "chat-test-01", "seed": 1, "turns": [["a", "b"]]}, "must not be learned from"),
        ({"persona": "nobody", "seed": 1, "turns": [["a", "b"]]}, "nobody"),
        ({"persona": "chat-train-01", "seed": 1, "turns": []}, "at least 1"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: object, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(BankError, match=rf"x\.jsonl, line 1: .*(?s:.*){message}"):
        list(load_written(tmp_path))


def test_the_command_writes_what_training_reads(tmp_path: Path) -> None:
    out = tmp_path / "data" / "written.jsonl"
    command = [sys.executable, "-m", "training.written", "--out", str(out)]
    for _ in range(2):  # the second time anew
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    records = list(read_jsonl(out))
    assert f"{len(records)} dialogues" in done.stdout and records == list(load_written())
    shipped = known("sim-135m")
    assert shipped is not None and shipped.training is not None
    assert sha256(out) == shipped.training.data_sha256  # it learned from what is here now


def test_lines_that_were_read_have_the_labels_of_the_calibration_set() -> None:
    records = list(load_labelled())
    people = {persona.id for persona in load_bank().select("all", "train")}
    assert {record.transcript.persona_id for record in records} == people and len(records) == len(people)
    counted = Counter((v.metric, v.outcome) for record in records for v in record.verdicts if v.outcome != "unparsed")
    items = load_items(["trained"], "train")
    assert counted == Counter((item.metric, item.label) for item in items) and len(counted) == 4
    unclear = [v for record in records for v in record.of("prompt_to_line") if v.outcome == "unparsed"]
    assert len(unclear) == 8 * 96 - counted["prompt_to_line", "consistent"] - counted["prompt_to_line", "contradicts"]
    assert {record.judge for record in records} == {"read"} and all(v.reason for v in unclear)


def test_methods_learn_from_lines_that_were_read(tmp_path: Path) -> None:
    out = tmp_path / "labelled.jsonl"
    command = [sys.executable, "-m", "training.labelled", "--set", "read", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "96 dialogues, 768 lines" in done.stdout
    recipe = load_recipe(signed.Recipe, ROOT / "training" / "recipes" / "signed_read.yaml", [f"data=[{out}]"])
    assert read_dialogues(recipe) == list(load_labelled("read"))


def test_a_consistent_line_that_is_no_answer_is_not_learned_from() -> None:
    found = Counter(v.outcome for record in load_labelled("read") for v in record.of("prompt_to_line"))
    assert found == {"consistent": 325, "contradicts": 261, "unparsed": 166 + 16}
    assert {record.transcript.persona_id for record in load_labelled("read")} == {
        persona.id for persona in load_bank().select("all", "train")
    }


def test_a_label_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.labelled.HERE", tmp_path)
    turn = {"partner": "a", "line": "b", "label": "good", "why": ""}
    dialogue = {"id": "x", "persona": "chat-train-01", "model": "m", "turns": [turn]}
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "x.jsonl").write_text(json.dumps(dialogue) + "\n")
    with pytest.raises(BankError, match=r"x\.jsonl, line 1: (?s:.*)label"):
        list(load_labelled("read"))


@pytest.mark.parametrize(("held", "corrections"), [("trained", "corrected"), ("read_again", "corrected_again")])
def test_every_wrong_line_has_a_correction_that_can_be_compared_with_it(held: Set, corrections: Set) -> None:
    parents = {record.transcript.id: record for record in load_labelled(held)}
    corrected = list(load_labelled(corrections))
    places = Counter((record.transcript.metadata["parent"], len(record.transcript.turns)) for record in corrected)
    wrong = {
        (name, verdict.turn)
        for name, record in parents.items()
        for verdict in record.verdicts
        if verdict.outcome == "contradicts" or (verdict.metric == "prompt_to_line" and verdict.outcome == "unparsed")
    }
    assert places == dict.fromkeys(wrong, 1)
    for record in corrected:
        said, turn = record.transcript, len(record.transcript.turns)
        parent = parents[said.metadata["parent"]].transcript
        assert said.turns[:-1] == parent.turns[: turn - 1] and said.turns[-1].partner == parent.turns[turn - 1].partner
        assert said.lines[-1] and said.lines[-1] != parent.lines[turn - 1] and not is_role_flip(said.lines[-1])
        assert {v.outcome for v in record.verdicts if v.turn == turn} == {"consistent"}


def test_everybody_who_is_trained_with_was_read_again() -> None:
    read = list(load_labelled("read_again"))
    assert {record.transcript.persona_id for record in read} == {
        persona.id for persona in training_bank().select("all", "train")
    }
    found = Counter(v.outcome for record in read for v in record.of("prompt_to_line"))
    assert found == {"consistent": 1090, "contradicts": 719, "unparsed": 370 + 29}


def test_a_better_line_beside_one_that_is_right_is_named(tmp_path: Path) -> None:
    turn = {"partner": "a", "line": "b", "label": "consistent", "answers": True, "better": "c", "why": ""}
    dialogue = {"id": "x", "persona": "chat-train-01", "model": "m", "turns": [turn]}
    (tmp_path / "x.jsonl").write_text(json.dumps(dialogue) + "\n")
    with pytest.raises(BankError, match=r"x\.jsonl, line 1: turn 1 has a better line, and is not wrong"):
        list(load_better(tmp_path))


def test_a_correction_of_what_is_right_is_named(tmp_path: Path) -> None:
    right = next(record for record in load_labelled() if record.of("prompt_to_line")[0].outcome == "consistent")
    (tmp_path / "x.jsonl").write_text(json.dumps({"dialogue": right.transcript.id, "turn": 1, "line": "No."}) + "\n")
    with pytest.raises(BankError, match=r"x\.jsonl, line 1: .* has no wrong line in turn 1"):
        list(load_corrected(tmp_path))
