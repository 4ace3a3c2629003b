"""From dialogues to numbers in lm-eval: judging, what is withheld, ranks, caches, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from persona_tasks.lm_eval_tasks import TASKS
from persona_tasks.lm_eval_tasks.samples import is_samples_file, judge_samples, read_samples, write_judged
from persona_tasks.lm_eval_tasks.scores import drift_metrics
from persona_tasks.metrics import dialogue_score, drift_slope, outcome_grid
from persona_tasks.monitors import MONITORS
from persona_tasks.transcript import Judged, TranscriptError, read_jsonl
from tests.chat_server import BAD_REQUEST, ChatServer, Reply, Request
from tests.inspect_runs import everybody, verdict
from tests.lm_eval_runs import NO_JUDGE, ChatLM, evaluate, judged, judged_run, samples, scores, strict_json, transcripts
from tests.tiny import tiny_model_folder

NAMES = {"prompt_to_line", "line_to_line", "qa", "qa_without_persona", "drift_slope", "unparsed", *MONITORS}
SCENARIOS = ("chat", "education", "therapy", "service")


def test_every_metric_is_the_mean_over_dialogues_of_our_own() -> None:
    results = judged_run(ChatLM(), settings={"turns": 4}, limit=5)
    found, records = scores(results), judged(results)
    assert set(found) == NAMES
    for metric in ("prompt_to_line", "line_to_line", "qa"):
        assert found[metric] == pytest.approx(fmean(dialogue_score(record.of(metric)) for record in records), abs=1e-12)
    slopes = [drift_slope(outcome_grid([record], "prompt_to_line", 4)) for record in records]
    assert found["drift_slope"] == pytest.approx(fmean(slope for slope in slopes if slope is not None), abs=1e-12)
    verdicts = [[v.outcome for v in r.verdicts if v.metric != "qa_without_persona"] for r in records]
    shares = [outcomes.count("unparsed") / len(outcomes) for outcomes in verdicts]
    assert found["unparsed"] == pytest.approx(fmean(shares), abs=1e-12)
    assert 0 < found["prompt_to_line"] < 1
    assert results["results"]["persona_drift_chat"]["prompt_to_line_stderr,none"] > 0
    assert results["versions"]["persona_drift_chat"] == 1.0


def test_the_group_is_the_mean_over_its_four_scenarios() -> None:
    results = judged_run(ChatLM(), "persona_drift", {"turns": 2, "probes": "none"}, limit=3)
    group = scores(results, "persona_drift")
    assert results["group_subtasks"]["persona_drift"] == [f"persona_drift_{name}" for name in SCENARIOS]
    parts = [scores(results, f"persona_drift_{name}") for name in SCENARIOS]
    assert group["prompt_to_line"] == pytest.approx(fmean(part["prompt_to_line"] for part in parts), abs=1e-12)
    assert set(group) == NAMES - {"qa", "qa_without_persona"}
    assert results["results"]["persona_drift"]["sample_len"] == 12


def unreadable_for(word: str) -> Any:
    """A judge that is unreadable wherever the material holds a word."""
    return lambda request: "hm" if word in str(request.messages) else everybody(request)


def test_what_cannot_be_read_is_neither_consistent_nor_contradicts_and_too_little_is_withheld(tmp_path: Path) -> None:
    """Turn 1 of dialogue 0 is unreadable, and most of dialogue 1."""
    lines = iter(f"word{number}" for number in range(100))
    lm = ChatLM(lambda prompt: next(lines))  # two dialogues, turn by turn: word0 and word1, word2 and word3, ...

    def judge(request: Request) -> str:
        bad = any(f'"word{number}"' in request.messages[1]["content"] for number in (0, 1, 3, 5))
        return "hm" if bad and "New line" not in request.messages[1]["content"] else everybody(request)

    results = judged_run(lm, settings={"turns": 4, "probes": "none"}, judge=judge)
    first, second = judged(results)
    assert [v.outcome for v in first.of("prompt_to_line")].count("unparsed") == 1
    assert [v.outcome for v in second.of("prompt_to_line")].count("unparsed") == 3
    one, two = samples(results)
    assert "prompt_to_line" in one and "prompt_to_line" not in two
    assert two["unparsed"] == pytest.approx(3 / 7)
    assert scores(results)["prompt_to_line"] == dialogue_score(first.of("prompt_to_line"))
    assert "drift_slope" not in two
    assert first.of("prompt_to_line")[0].answer == "hm"


def test_a_metric_that_nobody_has_is_missing_and_never_nan(tmp_path: Path) -> None:
    with ChatServer(lambda request: "no verdict") as server:
        files = command_line(
            tmp_path, "--model", "dummy", "--log_samples", judge=f"openai:judge@{server.url}", turns=2, probes="none"
        )
    results = strict_json(files["results"])
    assert set(scores(results, "persona_drift_chat")) == {"unparsed", *MONITORS}
    assert scores(results, "persona_drift_chat")["unparsed"] == 1
    for line in files["samples"].read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)


def command_line(folder: Path, *arguments: str, env: dict[str, str] | None = None, **settings: Any) -> dict[str, Path]:
    """Run the real command; the files it leaves."""
    command = [sys.executable, "-m", "lm_eval", "--tasks", "persona_drift_chat", "--include_path", str(TASKS)]
    command += ["--limit", "2", "--output_path", str(folder / "out"), "--metadata", json.dumps(settings), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    [results] = (folder / "out").rglob("results_*.json")
    (folder / "printed").write_text(run.stdout + run.stderr)
    [saved] = (folder / "out").rglob("samples_persona_drift_chat_*.jsonl")
    return {"results": results, "samples": saved, "printed": folder / "printed"}


def test_no_key_reaches_results_samples_or_the_screen(tmp_path: Path) -> None:
    """Not even a key in --model_args, which lm-eval itself copies into each task's configuration."""
    with ChatServer(lambda request: BAD_REQUEST if request.model == "judge" else "Hello.") as server:
        model = {"model": "simulator", "base_url": f"{server.url}/chat/completions", "auth_token": "sk-argument"}
        files = command_line(
            tmp_path,
            *("--model", "local-chat-completions", "--log_samples", "--apply_chat_template"),
            *("--model_args", json.dumps(model)),
            env={
                "OPENAI_API_KEY": "sk-main",
                "PERSONA_JUDGE_API_KEY": "sk-judge",
                "PERSONA_PARTNER_API_KEY": "sk-partner",
            },
            judge=f"openai:judge@{server.url}",
            partner=f"openai:partner@{server.url}",
            turns=2,
            probes="none",
        )
    assert {request.key for request in server.of("judge")} == {"sk-judge"}
    assert {request.key for request in server.of("partner")} == {"sk-partner"}
    metadata = strict_json(files["results"])["configs"]["persona_drift_chat"]["metadata"]
    assert metadata["judge"] == f"openai:judge@{server.url}"
    assert not {"auth_token", "base_url", "model"} & set(metadata)
    for name in ("samples", "printed"):
        assert "sk-judge" not in files[name].read_text() and "sk-partner" not in files[name].read_text()
    assert "sk-judge" not in files["results"].read_text() and "sk-partner" not in files["results"].read_text()


def test_predict_only_asks_no_judge_and_its_samples_can_be_judged_later(tmp_path: Path) -> None:
    with ChatServer(everybody) as server:
        judge = f"openai:judge@{server.url}"
        files = command_line(tmp_path, "--model", "dummy", "--predict_only", judge=judge, turns=3)
        assert server.log == []
        assert is_samples_file(files["samples"]) and not is_samples_file(files["results"])
        assert all(not record.verdicts for record in read_samples(files["samples"]))
        later = judge_samples([files["samples"]], judge)
        asked = len(server.log)
        assert judge_samples([files["samples"]], judge) == later
        assert len(server.log) == 2 * asked
    at_once = judged_run("dummy", settings={"turns": 3})
    assert [record.verdicts for record in later] == [record.verdicts for record in judged(at_once)]
    assert fmean(drift_metrics(record)["qa"] for record in later) == scores(at_once)["qa"]
    write_judged(tmp_path / "judged.jsonl", later)
    assert list(read_jsonl(tmp_path / "judged.jsonl")) == later


def test_saved_verdicts_are_kept_unless_they_shall_be_made_again(tmp_path: Path) -> None:
    with ChatServer(everybody) as server:
        judge = f"openai:judge@{server.url}"
        files = command_line(tmp_path, "--model", "dummy", "--log_samples", judge=judge, turns=2, probes="none")
        before = len(server.log)
        kept = judge_samples([files["samples"]], judge)
        assert len(server.log) == before and all(record.verdicts for record in kept)
        judge_samples([files["samples"]], judge, again=True)
        assert len(server.log) == 2 * before


def test_files_that_are_no_samples_of_ours_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text('{"filtered_resps": [[0.1, false]], "doc": {}}\n')
    with pytest.raises(TranscriptError, match="line 1: no sample of persona_drift"):
        read_samples(file)


def test_the_response_cache_saves_every_call_and_mixes_no_settings(tmp_path: Path) -> None:
    def run(turns: int) -> tuple[int, list[Any]]:
        lm = ChatLM()
        settings = {"turns": turns, "probes": "none"}
        results = evaluate(lm, settings=settings, use_cache=str(tmp_path / "cache"), **NO_JUDGE)
        return sum(map(len, lm.calls)), [transcript.lines for transcript in transcripts(results)]

    calls, lines = run(3)
    assert calls == 6
    assert run(3) == (0, lines)
    more, longer = run(5)
    assert more == 4
    assert [line[:3] for line in longer] == lines


def test_a_run_that_broke_off_is_taken_up_by_the_response_cache(tmp_path: Path) -> None:
    class BreakingChat(ChatLM):
        def generate_until(self, requests: Any) -> list[str]:
            if len(self.calls) == 2:
                raise ConnectionError("gone")
            return super().generate_until(requests)

    settings = {"turns": 4, "probes": "none"}
    with pytest.raises(ConnectionError):
        evaluate(BreakingChat(), settings=settings, use_cache=str(tmp_path / "cache"), **NO_JUDGE)
    lm = ChatLM()
    evaluate(lm, settings=settings, use_cache=str(tmp_path / "cache"), **NO_JUDGE)
    assert len(lm.calls) == 2


def test_the_request_cache_is_not_used_for_it_ignores_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
    for turns in (2, 4):
        lm = ChatLM()
        evaluate(lm, settings={"turns": turns, "probes": "none"}, cache_requests=True, **NO_JUDGE)
        assert len(lm.calls) == turns
    assert list(tmp_path.iterdir()) == []


def test_chosen_samples_are_those_personas() -> None:
    results = evaluate(
        ChatLM(),
        settings={"turns": 1, "probes": "none"},
        limit=None,
        samples={"persona_drift_chat": [1, 4]},
        **NO_JUDGE,
    )
    assert [(sample["doc_id"], sample["doc"]["persona_id"]) for sample in samples(results)] == [
        (1, "chat-test-02"),
        (4, "chat-test-05"),
    ]


def test_the_harness_seeds_do_not_change_a_greedy_run_and_ours_changes_the_partner() -> None:
    def partner_lines(settings: dict[str, Any], **options: Any) -> list[str]:
        run = evaluate(ChatLM(), settings={"turns": 3, "probes": "none", **settings}, limit=1, **options, **NO_JUDGE)
        return [turn.partner for turn in transcripts(run)[0].turns]

    usual = partner_lines({})
    assert partner_lines({}, random_seed=9, numpy_random_seed=9, torch_random_seed=9) == usual
    assert partner_lines({"seed": 1}) != usual


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"turns": 0}, "turns=0: Input should be greater than or equal to 1"),
        ({"probes": "1,9"}, "must lie between 1 and 8"),
        ({"split": "tset"}, "split 'tset' does not exist"),
        ({"judge": "gpt-4o"}, "judge='gpt-4o': give persona/smollm2-135m, openai:MODEL@"),
        ({"judge": "openai:m@https://user:pw@host/v1"}, "judge: its address holds a user name"),
        ({"judge": "openai:m@https://host/v1?key=1"}, "keys belong into the environment"),
        ({"partner": "model"}, "partner='model'"),
        ({"personas": "/no/such/folder"}, "personas: /no/such/folder: not a folder"),
        ({"turn": 3}, "turn: there is no such setting; turns?"),
        ({"probe_mode": "both"}, "probe_mode='both'"),
    ],
)
def test_settings_that_cannot_be_used_are_named_before_anything_runs(setting: dict[str, Any], message: str) -> None:
    lm = ChatLM()
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        evaluate(lm, settings=setting)
    assert lm.calls == []


def test_a_judge_that_is_not_there_shows_before_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    lm = ChatLM()
    with pytest.raises(ValueError, match="set PERSONA_JUDGE_API_KEY or OPENAI_API_KEY"):
        evaluate(lm, settings={"judge": "openai:gpt-4o"})
    with pytest.raises(Exception, match="no model 'smollm3'"):
        evaluate(lm, settings={"judge": "persona/smollm3"})
    assert lm.calls == []
    evaluate(lm, settings={"judge": "persona/smollm3", "turns": 1}, **NO_JUDGE)


def test_a_folder_as_judge(tmp_path: Path) -> None:
    results = evaluate(
        ChatLM(), settings={"judge": str(tiny_model_folder(tmp_path)), "turns": 1, "probes": "none"}, limit=1
    )
    [record] = judged(results)
    assert record.judge == f"persona/{next(tmp_path.iterdir())}"
    assert record.verdicts


def test_the_judge_may_see_what_a_line_answers() -> None:
    for context in (False, True):
        with ChatServer(verdict) as server:
            settings = {"judge": f"openai:judge@{server.url}", "context": context, "turns": 1, "probes": "none"}
            evaluate(ChatLM(), settings=settings, limit=1)
        assert ("The person was answering" in server.log[0].last) is context


RANKS = """
import json, os, sys
import torch
torch.set_num_threads(1)
from lm_eval.models.huggingface import HFLM
from tests.lm_eval_runs import evaluate, scores
lm = HFLM(pretrained=sys.argv[1], device="cpu", batch_size=4)
lm._rank, lm._world_size = lm.accelerator.process_index, lm.accelerator.num_processes  # lm-eval: for GPUs only
assert lm.world_size == 2
calls, generate = [], lm.generate_until
lm.generate_until = lambda requests: calls.append(len(requests)) or generate(requests, disable_tqdm=True)
settings = {"turns": 2, "probes": "none", "judge": sys.argv[2]}
results = evaluate(lm, settings=settings, limit=int(sys.argv[3]), gen_kwargs={"max_gen_toks": 8})
assert calls == [(int(sys.argv[3]) + 1) // 2] * 2, calls
if lm.rank == 0:
    found = results["results"]["persona_drift_chat"]
    ids = [sample["doc_id"] for sample in results["samples"]["persona_drift_chat"]]
    print("FOUND", json.dumps({"scores": scores(results), "stderr": found["prompt_to_line_stderr,none"], "ids": ids}))
lm.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # without finalisation, in which gloo's threads may abort a process that is done (pytorch/pytorch#179291)
"""


def on_two_ranks(folder: Path, judge: str, dialogues: int) -> dict[str, Any]:
    script = folder / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    model = tiny_model_folder(folder)
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **paths, "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(
        [*command, str(model), judge, str(dialogues)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr
    [found] = [line for line in run.stdout.splitlines() if line.startswith("FOUND")]
    result: dict[str, Any] = json.loads(found.removeprefix("FOUND "))
    return result


def test_two_ranks_with_an_uneven_number_of_dialogues(tmp_path: Path) -> None:
    with ChatServer(everybody) as server:
        judge = f"openai:judge@{server.url}"
        found = on_two_ranks(tmp_path, judge, 5)
        assert sorted(found["ids"]) == [0, 1, 2, 3, 4]
        model = {"pretrained": str(next(path for path in tmp_path.iterdir() if path.is_dir()))}
        settings = {"turns": 2, "probes": "none", "judge": judge}
        alone = evaluate("hf", settings=settings, limit=5, gen_kwargs={"max_gen_toks": 8}, model_args=model)
    assert found["scores"] == pytest.approx(scores(alone), abs=1e-12)
    assert found["stderr"] > 0


def test_two_ranks_of_which_one_has_nothing_to_score(tmp_path: Path) -> None:
    """lm-eval merges by the names that rank 0 has, and fails where another rank lacks one."""
    third = "chat-test-02"  # the only dialogue of rank 1

    def judge(request: Request) -> str | Reply:
        from persona_tasks.personas import load_bank

        name = load_bank().persona(third).description[:40]
        return "hm" if name in str(request.messages) else everybody(request)

    with ChatServer(judge) as server:
        found = on_two_ranks(tmp_path, f"openai:judge@{server.url}", 3)
    assert {"prompt_to_line", "line_to_line"} <= set(found["scores"])
    assert found["stderr"] == "N/A"


def test_tensor_parallel_processes_judge_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with ChatServer(everybody) as server:
        evaluate(ChatLM(), settings={"judge": f"openai:judge@{server.url}", "turns": 1}, limit=1)
    assert server.log == []


def test_all_tasks_load_and_say_their_version() -> None:
    """A YAML file that cannot be parsed is left out by lm-eval without a word."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    depths = [f"persona_qa_depth{turns}" for turns in (0, 4, 8)]
    assert manager.all_tasks == sorted(
        ["persona_drift", *(f"persona_drift_{s}" for s in SCENARIOS), "persona_qa", *depths]
    )
    loaded = manager.load(["persona_drift", "persona_qa"])
    assert {task.VERSION for task in loaded["tasks"].values()} == {1.0}
    assert {group.version for group in loaded["groups"].values()} == {"1.0"}
    assert all(len(loaded["tasks"][f"persona_drift_{name}"].eval_docs) == 10 for name in SCENARIOS)


def test_a_dialogue_that_never_began_has_no_monitors() -> None:
    from persona_tasks.transcript import Transcript

    assert drift_metrics(Judged(transcript=Transcript(id="x", persona_id="p", persona_text="You."))) == {}
