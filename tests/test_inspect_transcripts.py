"""`persona_tasks/transcripts`: dialogues that exist already, and runs that are killed and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log

from persona_tasks.inspect_tasks.tasks import drift, transcripts
from persona_tasks.transcript import Judged, Transcript, TranscriptError, Turn, append_jsonl
from tests.chat_server import SERVER_ERROR, ChatServer, Reply, Request
from tests.inspect_runs import everybody, model_at, run, say, scores, verdict

INSPECT = str(Path(sys.executable).parent / "inspect")


def dialogues(count: int, turns: int) -> list[Transcript]:
    return [
        Transcript(
            id=f"d{n}",
            persona_id=f"p{n}",
            persona_text=f"You are person {n}.",
            turns=[Turn(partner=f"Question {t}?", line=f"Answer {n}.{t}") for t in range(turns)],
        )
        for n in range(count)
    ]


@pytest.fixture
def file(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "dialogues.jsonl"
    append_jsonl(path, [Judged(transcript=t) for t in dialogues(4, 3)])
    return str(path)


def test_a_second_run_asks_only_for_what_is_missing(file, tmp_path):
    broken = {"on": True}

    def judge(request: Request) -> str | Reply:
        return SERVER_ERROR if broken["on"] and "Answer 2." in request.last else verdict(request)

    with ChatServer(judge) as server:
        roles = {"judge": model_at(server, "judge", max_retries=0)}
        first = run(transcripts(file, metrics="prompt_to_line"), server, tmp_path, roles, model="none/none")
        asked = len(server.log)
        assert sum(request.nth == 0 for request in server.log) == 12
        assert first.samples[2].scores["prompt_to_line"].reason == "grader_failed"
        broken["on"] = False
        second = run(transcripts(file, metrics="prompt_to_line"), server, tmp_path, roles, model="none/none")
        assert len(server.log) == asked + 3
    assert all(v["outcome"] != "unparsed" for v in second.samples[2].scores["prompt_to_line"].metadata["verdicts"])


def test_openai_messages_and_the_side_that_is_simulated(tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "agent.json"
    said = [("assistant", "How can I help?"), ("user", "My order."), ("assistant", "Which?"), ("user", "The blue one.")]
    messages = [{"role": role, "content": text} for role, text in said]
    path.write_text(json.dumps([{"id": "x", "persona": "You want the blue one.", "messages": messages}]))
    with ChatServer(everybody) as server:
        log = run(transcripts(str(path), simulator_role="user"), server, tmp_path, model="none/none")
        lines = [r.last for r in server.log if "The line:" in r.last]
    assert log.status == "success" and len(lines) == 2  # put at once: they may arrive in either order
    assert sum('"My order."' in line for line in lines) == sum('"The blue one."' in line for line in lines) == 1


def test_a_drift_log_can_be_judged_again_by_another_judge(tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    with ChatServer(everybody) as server:
        log = run(drift(turns=2), server, tmp_path, limit=2)
        again = run(transcripts(log.location), server, tmp_path, model="none/none")
    assert scores(again)["prompt_to_line"] == scores(log)["prompt_to_line"]
    assert scores(again)["qa"] == scores(log)["qa"]


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"transcript": {"id": 1}}\n')
    with pytest.raises(TranscriptError, match=r"bad\.jsonl, line 1"):
        transcripts(str(path))
    with pytest.raises((TranscriptError, OSError), match="nowhere"):
        transcripts(str(tmp_path / "nowhere.jsonl"))


def start(arguments: list[str], folder: Path, server: ChatServer) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "LOCAL_API_KEY": "none",
        "LOCAL_BASE_URL": server.url,
        "INSPECT_CACHE_DIR": str(folder / "cache"),
        "INSPECT_EVAL_MODEL": "",
    }
    return subprocess.Popen([INSPECT, *arguments, "--display", "plain"], cwd=folder, env=environment)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_killed_judging_run_is_taken_up_where_it_stopped(file, tmp_path):
    arguments = ["eval", "persona_tasks/transcripts", "-T", f"file={file}", "-T", "metrics=prompt_to_line"]
    arguments += ["--model", "none/none", "--model-role", "judge=openai-api/local/judge", "--log-dir", "logs"]
    with ChatServer(lambda r: Reply(verdict(r), delay=0.3)) as server:
        slow = [*arguments, "--max-samples", "1"]
        process = start(slow, tmp_path, server)
        wait_for(lambda: len(server.log) >= 7)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(server.log)
        answered = sum(request.status == 200 for request in server.log)
        assert before < 12
        assert start(slow, tmp_path, server).wait() == 0
        # only what was in flight when the run was killed may have been asked twice
        assert len(server.log) - before <= 12 - min(answered, 6)
    log = read_eval_log(str(sorted((tmp_path / "logs").glob("*.eval"))[-1]))
    assert log.status == "success" and len(log.samples) == 4


def test_a_killed_drift_run_keeps_its_dialogues(tmp_path):
    arguments = ["eval", "persona_tasks/drift", "-T", "turns=2", "-T", "probes=none"]
    arguments += ["--limit", "3", "--max-samples", "1"]
    arguments += ["--model", "openai-api/local/simulator", "--model-role", "judge=openai-api/local/judge"]
    arguments += ["--log-dir", "logs", "--log-buffer", "1"]
    with ChatServer(lambda r: Reply(say(r) if r.model == "simulator" else verdict(r), delay=0.2)) as server:
        process = start(arguments, tmp_path, server)
        wait_for(lambda: len(server.of("simulator")) >= 4)  # the first dialogue is done and judged
        process.send_signal(signal.SIGKILL)
        process.wait()
        [log] = (tmp_path / "logs").glob("*.eval")
        kept = read_eval_log(str(log)).samples
        assert [sample.id for sample in kept] == ["chat-test-01"]
        said = len(server.of("simulator"))
        assert start(["eval-retry", str(log), "--log-dir", "logs"], tmp_path, server).wait() == 0
        assert len(server.of("simulator")) - said == 4, "the finished dialogue is not held again"
    logs = sorted((tmp_path / "logs").glob("*.eval"))
    assert len(logs) == 2 and len(read_eval_log(str(logs[-1])).samples) == 3
