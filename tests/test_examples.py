"""The example scripts, run as they are against a local chat server."""

import json
import re
from pathlib import Path

import pytest
import yaml

from examples import check_benchmark_simulator, compare_prompts, train_own_people
from persona_tasks.report.runs import read_runs
from tests.chat_server import ChatServer
from tests.inspect_runs import everybody, verdict
from tests.tiny import tiny_model_folder

BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
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


def test_a_simulator_is_trained_on_own_people_and_compared_on_others(tmp_path, monkeypatch):
    """GRPO and the comparison in processes of their own, on a tiny model; a second call does nothing again."""
    [bank] = BLOCK.findall((EXAMPLES.parent / "docs" / "own-personas.md").read_text())
    people = yaml.safe_load(bank)
    for split in ("train", "test"):
        folk = [{**person, "id": f"{split}-{n}"} for n in (1, 2) for person in people["personas"]]
        folder = tmp_path / "bank"
        folder.mkdir(exist_ok=True)
        (folder / f"{split}.yaml").write_text(yaml.safe_dump({**people, "split": split, "personas": folk}))
    base = tiny_model_folder(tmp_path, max_position_embeddings=8192)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    smaller = ["dialogues=4", "group=2", "batch=2", "turns=2", "line_tokens=8", "steps=1", "first_layer=0"]
    with ChatServer(verdict) as rewards, ChatServer(verdict) as reports:
        arguments = [str(tmp_path / "bank"), "--base", str(base), "--out", str(tmp_path / "out"), "--turns", "2"]
        judges = ["--reward", f"openai:a@{rewards.url}", "--report", f"openai:b@{reports.url}"]
        train_own_people.main([*arguments, *judges, "--set", *smaller])
        asked = len(rewards.log), len(reports.log)
        assert all(asked)
        train_own_people.main([*arguments, *judges, "--set", *smaller])
        assert (len(rewards.log), len(reports.log)) == asked
    judged = [
        json.loads(line) for line in (tmp_path / "out/compared/judged/main/trained.jsonl").read_text().splitlines()
    ]
    assert {record["transcript"]["persona_id"] for record in judged} == {"test-1", "test-2"}
    assert "GRPO turn" in (tmp_path / "out/compared/results.md").read_text()
