"""The command line, in processes of its own where start-up counts and in this one elsewhere."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from persona_tasks.cli import app
from persona_tasks.transcript import Judged, Transcript, Turn, Verdict, append_jsonl

HEAVY = ("torch", "transformers", "inspect_ai", "lm_eval", "matplotlib", "scipy", "numpy", "pydantic")


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("module", ["persona_tasks", "persona_tasks.cli"])
def test_nothing_heavy_is_imported_before_it_is_needed(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_has_examples():
    for command in ("personas", "score"):
        assert f"persona-tasks {command}" in call(command, "--help").output


def test_personas_lists_and_shows():
    listed = call("personas", "--scenario", "therapy", "--split", "test")
    assert listed.exit_code == 0 and listed.output.count("therapy-test-") == 10
    shown = call("personas", "chat-test-01", "--json")
    assert json.loads(shown.output)["id"] == "chat-test-01"


def test_a_user_error_is_one_line_and_exit_code_2(tmp_path):
    for arguments in (["personas", "nobody"], ["score", str(tmp_path / "none.jsonl")], ["personas", "--bank", "/none"]):
        result = call(*arguments)
        assert result.exit_code == 2 and result.output.startswith("persona-tasks: ")
        assert len(result.output.strip().splitlines()) == 1


def test_score_reads_stored_verdicts(tmp_path):
    file = tmp_path / "dialogues.jsonl"
    transcript = Transcript(id="a", persona_id="a", persona_text="You.", turns=[Turn(partner="x", line="y")] * 4)
    outcomes = ("consistent", "contradicts", "consistent", "unparsed")
    verdicts = [Verdict(metric="prompt_to_line", turn=t, outcome=o) for t, o in enumerate(outcomes, start=1)]
    append_jsonl(file, [Judged(transcript=transcript, verdicts=verdicts, judge="hand")])
    result = call("score", str(file), "--json")
    found = json.loads(result.output)["overall"]["metrics"]["prompt_to_line"]
    assert found["score"] == pytest.approx(2 / 3) and found["unparsed"] == pytest.approx(1 / 4)
    assert "0.667" in call("score", str(file)).output
