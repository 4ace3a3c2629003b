"""Dialogues that were written: of people to train on, whole, and ready for methods that learn from judged ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from persona_tasks.embedded.weights import known, sha256
from persona_tasks.monitors import is_role_flip, persona_copying, self_repetition
from persona_tasks.personas import BankError, load_bank
from persona_tasks.transcript import read_jsonl
from training.written import load_written

ROOT = Path(__file__).parents[1]


def test_every_training_persona_speaks_and_nobody_else() -> None:
    records = list(load_written())
    people = {persona.id for persona in load_bank().select("all", "train")}
    assert Counter(record.transcript.persona_id for record in records) == dict.fromkeys(people, 3)
    assert len({record.transcript.id for record in records}) == len(records)
    for record in records:
        assert len(record.transcript.turns) == 8 and all(record.transcript.lines)
        assert len(record.of("prompt_to_line")) == 8 and len(record.of("line_to_line")) == 7


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
