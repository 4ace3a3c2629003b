"""The benchmark as a data set: what `datasets` loads and Inspect runs from the Hub, in other processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from persona_tasks.cli import app
from persona_tasks.hub.benchmark import DEPTHS, all_tables, eval_yaml
from persona_tasks.hub.client import client
from persona_tasks.hub.submissions import read_submissions
from persona_tasks.personas import load_bank
from tests.chat_server import ChatServer, Request
from tests.conftest import hub_environment
from tests.hub_server import HubServer
from tests.hub_world import ADAPTER, World

NAME = "org/persona-drift"


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_tables_hold_the_whole_bank() -> None:
    tables = all_tables()
    assert {split: len(tables["personas", split]) for split in ("train", "dev", "test")} == {
        "train": 96,
        "dev": 24,
        "test": 40,
    }
    assert sum(len(rows) for (config, _), rows in tables.items() if config == "lines") == 1280
    assert sum(len(rows) for (config, _), rows in tables.items() if config == "pairs") == 640
    dialogues = [row for (config, _), rows in tables.items() if config == "on_policy" for row in rows]
    assert sum(len(row["turns"]) for row in dialogues) == 1600 + 1536
    assert sum(len(row["turns"]) for (config, _), rows in tables.items() if config == "trained" for row in rows) == 1280
    questions = sum(len(persona.questions) for persona in load_bank().select())
    for depth in DEPTHS:
        rows = tables[f"probes_depth{depth}", "test"]
        assert len(rows) == questions
        assert all(len(row["messages"]) == 2 * depth + 2 for row in rows)
        assert [m["role"] for m in rows[0]["messages"][-1:]] == ["user"]


def test_the_probes_are_those_of_our_lm_eval_task() -> None:
    """The same questions, personas and written turns, so that the two can be compared."""
    from tests.lm_eval_runs import TASKS, TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    task = manager.load_task_or_group("persona_qa_depth4")["persona_qa_depth4"]
    for row, doc in zip(all_tables()["probes_depth4", "test"], task.test_docs(), strict=True):
        assert row["choices"] == doc["choices"] and row["answer"] == doc["answer"]
        assert row["messages"][0]["content"] == doc["system"]
        heard = [message["content"] for message in row["messages"] if message["role"] == "user"]
        assert heard == [*(turn[0] for turn in doc["turns"]), doc["question"]]


def test_eval_yaml_is_what_inspects_reader_accepts(world: World) -> None:
    from inspect_ai._eval.task.hf import HFTask  # private: the reader of `inspect eval hf/...` has no other name

    for task in eval_yaml(world.registry)["tasks"]:
        assert HFTask.model_validate(task).id == task["id"]


LOADS = """
import json, sys
from datasets import get_dataset_config_names, load_dataset
name = sys.argv[1]
configs = get_dataset_config_names(name)
counts = {c: {s: len(d) for s, d in load_dataset(name, c).items()} for c in configs}
print(json.dumps([counts, load_dataset(name, "probes_depth4", split="test")[0]["messages"][0]["role"]]))
"""


def answers(request: Request) -> str:
    """Picks the option B, or, in a few conversations, none."""
    return "Well." if len(request.last) % 7 == 0 else "ANSWER: B"


def test_it_is_published_loaded_and_run(hub: HubServer, world: World, tmp_path: Path) -> None:
    result = call("publish-benchmark")
    assert result.exit_code == 0, result.output
    first, registry = len(hub.log), world.file.read_bytes()
    assert call("publish-benchmark").exit_code == 0
    assert hub.writes(first) == [] and world.file.read_bytes() == registry
    repo = hub.repo(NAME, "dataset")
    assert len(repo.history()) == 2 and repo.refs["refs/tags/v1.0"] == repo.refs["refs/heads/main"]
    published = world.registry.benchmark.published
    assert published is not None and published.revision == repo.refs["refs/heads/main"]

    environment = hub_environment(hub, world, tmp_path / "empty")
    command = [sys.executable, "-c", LOADS, NAME]
    shown = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr[-2000:]
    counts, role = json.loads(shown.stdout.splitlines()[-1])
    assert counts["personas"] == {"train": 96, "dev": 24, "test": 40} and role == "system"
    assert counts["on_policy"]["test"] == len(all_tables()["on_policy", "test"])
    assert counts["probes_depth8"] == {"test": 320}

    with ChatServer(answers) as server:
        asked = {**environment, "LOCAL_API_KEY": "none", "LOCAL_BASE_URL": server.url}
        inspect = [sys.executable, "-c", "from inspect_ai._cli.main import main; main()", "eval"]
        task = f"hf/{NAME}/probes_depth4@{published.revision}"
        options = ["--model", "openai-api/local/simulator", "--display", "none"]
        logs = ["--log-dir", str(tmp_path / "logs")]
        run = subprocess.run(
            [*inspect, task, *options, *logs], env=asked, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
        conversation = server.log[0].messages
    assert [message["role"] for message in conversation] == ["system", *["user", "assistant"] * 4, "user"]
    from inspect_ai.log import read_eval_log, write_eval_log

    [file] = (tmp_path / "logs").glob("*.eval")
    log = read_eval_log(str(file))
    assert log.status == "success" and log.results is not None
    rows = all_tables()["probes_depth4", "test"]
    assert log.results.total_samples == len(rows)

    shown = call("submit", str(file), "--by", "somebody", "-o", str(world.root / "submissions"))
    assert shown.exit_code == 0, shown.output
    [submission] = read_submissions(world.registry, world.root)
    score = submission.score
    value = score.value("accuracy")
    assert value is not None and (value.n, value.personas) == (320, 40) and value.interval is not None
    assert value.value == pytest.approx(log.results.scores[0].metrics["accuracy"].value, abs=1e-4)
    assert value.unparsed is not None and 0 < value.unparsed < 0.5
    assert (score.task, score.judge) == ("probes_depth4", None)

    ours = file.with_name("ours.eval")
    log.eval.model = f"hf/{ADAPTER}"
    write_eval_log(log, str(ours))
    assert call("registry", "add-score", str(ours)).exit_code == 0
    assert call("registry", "update").exit_code == 0
    assert call("publish", "tiny-sim").exit_code == 0
    info = client().model_info(ADAPTER, expand=["evalResults"])
    [row] = info.eval_results or []
    assert (row.dataset_id, row.task_id, row.value) == (NAME, "probes_depth4", value.value)
    assert row.dataset_revision == published.revision and row.notes and "n=320" in row.notes

    assert log.samples
    log.samples[0].target = "A" if log.samples[0].target != "A" else "B"
    write_eval_log(log, str(ours))
    assert "not those of this version" in call("registry", "add-score", str(ours)).output
    log.samples = log.samples[1:]
    write_eval_log(log, str(ours))
    assert "319 of 320 questions" in call("registry", "add-score", str(ours)).output
