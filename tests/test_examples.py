"""The example scripts, run as they are against a local chat server."""

import json
from pathlib import Path

import pytest

from examples import check_benchmark_simulator, compare_prompts
from persona_tasks.report.runs import read_runs
from tests.chat_server import ChatServer
from tests.inspect_runs import everybody

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def server(monkeypatch):
    with ChatServer(everybody) as running:
        monkeypatch.setenv("LOCAL_BASE_URL", running.url)
        monkeypatch.setenv("INSPECT_DISPLAY", "none")
        yield running


def test_two_prompts_are_compared_on_the_same_people(server, tmp_path, capsys):
    arguments = ["--model", "openai-api/local/simulator", "--judge", "openai-api/local/judge", "--limit", "2"]
    log_dir, output = tmp_path / "logs", tmp_path / "prompts.html"
    compare_prompts.main([*arguments, "--turns", "2", "--log-dir", str(log_dir), "-o", str(output)])
    assert str(output) in capsys.readouterr().out and "Two prompts for one simulator" in output.read_text()
    reminded = compare_prompts.PROMPTS["reminded"]
    asked = [request for request in server.log if request.model == "simulator"]
    with_it = [request for request in asked if reminded in str(request.messages)]
    assert 2 * len(with_it) == len(asked) > 0
    assert not any(reminded in str(request.messages) for request in server.log if request.model == "judge")
    runs = read_runs([f"{name}={log_dir / name}" for name in compare_prompts.PROMPTS]).runs
    assert [run.name for run in runs] == ["plain", "reminded"]
    people = [{record.transcript.persona_id for record in run.records} for run in runs]
    assert people[0] == people[1] and len(people[0]) == 2


def test_the_simulated_user_of_a_benchmark_is_judged(server, tmp_path):
    arguments = [str(EXAMPLES / "agent_benchmark.json"), "--judge", "openai-api/local/judge"]
    output = tmp_path / "benchmark.html"
    check_benchmark_simulator.main([*arguments, "--log-dir", str(tmp_path / "logs"), "-o", str(output)])
    assert output.is_file()
    [log] = (tmp_path / "logs").glob("*.eval")
    records = {record.transcript.id: record for record in read_runs([log]).runs[0].records}
    assert len(records) == 3
    parcel = records["late-parcel-0"]
    assert parcel.transcript.lines[0] == "My boots are not here. Order K-2217."
    assert len(parcel.transcript.lines) == 3 and "voucher" in parcel.transcript.persona_text
    assert parcel.transcript.turns[1].partner.startswith("I see the parcel")
    assert [v.metric for v in parcel.verdicts] == ["prompt_to_line"] * 3 + ["line_to_line"] * 2
    assert not any("###" in line for record in records.values() for line in record.transcript.lines)


def test_instructions_may_be_a_text_or_have_headings():
    saved = json.loads((EXAMPLES / "agent_benchmark.json").read_text())
    told = [check_benchmark_simulator.told_to(task["user_scenario"]) for task in saved["tasks"]]
    assert told[0].startswith("Persona: You are curt") and "Known info: Your name is Aino Berg" in told[0]
    assert "Unknown info" not in told[1] and told[2].startswith("Instructions: You are Priya")
