"""`persona_tasks/drift` against a real HTTP server: one protocol, names, roles, forks, faults, rescoring."""

import math

import pytest
from inspect_ai import Task, score
from inspect_ai.dataset import Sample

from persona_tasks.inspect_tasks.dialogue import recorded_dialogue, simulated_dialogue
from persona_tasks.inspect_tasks.scorers import line_to_line, prompt_to_line, qa
from persona_tasks.inspect_tasks.tasks import drift, metric_names
from persona_tasks.metrics import dialogue_score
from persona_tasks.personas import load_bank
from persona_tasks.protocol.asks import Ask
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.limits import PROBE_TOKENS
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.play import play
from persona_tasks.protocol.probes import probe_turns
from persona_tasks.transcript import METRICS, Transcript, Verdict
from tests.chat_server import RATE_LIMIT, SERVER_ERROR, ChatServer, Reply, Request, failing_first
from tests.inspect_runs import TEST_IDS, everybody, model_at, run, scores, verdict, with_judge


def transcript_of(sample) -> Transcript:
    return Transcript.model_validate(sample.store["DriftRecord:transcript"])


def verdicts_of(sample, metric) -> list[Verdict]:
    return [Verdict.model_validate(v) for v in sample.scores[metric].metadata["verdicts"]]


def is_model_call(item) -> bool:
    return getattr(getattr(item, "event", None), "event", "") == "model"


@pytest.mark.parametrize("partner", ["scripted", "model"])
def test_inspect_and_lockstep_give_the_same_transcripts_and_scores(tmp_path, partner):
    with ChatServer(everybody) as server:
        log = run(drift(turns=3, partner=partner), server, tmp_path, limit=4)
    assert log.status == "success", log.error

    def answer(asks: list[Ask]) -> list[str]:
        bodies = [[{"role": m.role, "content": m.content} for m in ask.messages] for ask in asks]
        return [
            everybody(Request(0, 0, "", {"model": ask.role, "messages": body}, {}))
            for ask, body in zip(asks, bodies, strict=True)
        ]

    bank = load_bank()
    personas = bank.select()[:4]
    dialogues = []
    for persona in personas:
        setting = bank.scenarios[persona.scenario]
        other = make_partner(persona, setting, bank.scripts[setting.id], 3, 0, partner)
        dialogues.append(play(persona, setting, other, 3))
    transcripts = lockstep(dialogues, answer)
    judged = lockstep([judge(transcript) for transcript in transcripts], answer)

    by_id = {sample.id: sample for sample in log.samples}
    for persona, expected, verdicts in zip(personas, transcripts, judged, strict=True):
        sample = by_id[persona.id]
        seen = transcript_of(sample)
        assert (seen.turns, seen.probes, seen.persona_text) == (expected.turns, expected.probes, expected.persona_text)
        for metric in METRICS:
            theirs = [v for v in verdicts_of(sample, metric) if v.metric == metric]
            assert theirs == [v for v in verdicts if v.metric == metric]
            expected_score = dialogue_score([v for v in verdicts if v.metric == metric])
            value = sample.scores[metric].value
            assert (value["qa"] if metric == "qa" else value) == pytest.approx(expected_score, abs=1e-9)


def test_forks_leave_no_trace_and_are_drawn_as_branches(tmp_path):
    with ChatServer(everybody) as server:
        log = run(drift(turns=4, partner="model"), server, tmp_path, limit=1)
        probes = [request for request in server.of("simulator") if PROBE_TOKENS in request.body.values()]
    [sample] = log.samples
    assert [m.role for m in sample.messages] == ["system"] + ["user", "assistant"] * 4
    assert len(probes) == 4 * 8 and sample.turn_count == 4
    [timeline] = sample.timelines
    branches = [[item for item in branch.content if is_model_call(item)] for branch in timeline.root.branches]
    assert [len(calls) for calls in branches] == [8, 8, 8, 8]


def test_verdicts_link_to_the_lines_and_say_who_judged(tmp_path):
    with ChatServer(everybody) as server:
        log = run(drift(turns=2, probes="none"), server, tmp_path, limit=1)
    [sample] = log.samples
    found = sample.scores["prompt_to_line"]
    assert found.metadata["judge"] == "openai-api/local/judge" and "[M3]" in found.explanation
    assert [r["id"] for r in found.metadata["scanner_references"]] == [sample.messages[2].id, sample.messages[4].id]
    assert "qa" not in sample.scores and set(sample.scores["monitors"].value) >= {"distinct_2", "role_flips"}


def test_floors_stand_beside_qa(tmp_path):
    with ChatServer(everybody) as server:
        log = run(drift(turns=1), server, tmp_path, limit=2)
    assert {"qa", "qa_without_persona", "qa_chance"} <= set(scores(log)) and scores(log)["qa_chance"] == 0.2


def test_the_name_resolves_in_a_folder_that_has_one_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "persona_tasks" / "drift").mkdir(parents=True)
    (tmp_path / "persona_tasks" / "drift" / "other.py").write_text(
        "from inspect_ai import Task, task\n@task\ndef other(): return Task()\n"
    )
    monkeypatch.chdir(tmp_path)
    with ChatServer(everybody) as server:
        log = run("persona_tasks/drift", server, tmp_path / "logs", task_args={"turns": 1, "probes": "none"}, limit=1)
    assert log.status == "success" and log.eval.task_registry_name == "persona_tasks/drift"


GARBAGE = ["", "It depends on the person.", '{"reason": "cut off', "<html>502</html>"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_judge_that_cannot_be_read_gives_no_score(tmp_path, garbage):
    with ChatServer(with_judge(lambda request: garbage)) as server:
        log = run(drift(turns=2, probes="none"), server, tmp_path, limit=1)
    [sample] = log.samples
    assert log.status == "success" and len(transcript_of(sample).turns) == 2
    for metric in ("prompt_to_line", "line_to_line"):
        assert math.isnan(sample.scores[metric].value) and sample.scores[metric].reason == "grader_failed"
        assert {v.outcome for v in verdicts_of(sample, metric)} == {"unparsed"}


def test_a_judge_that_recovers_when_told_what_was_wrong(tmp_path):
    judge_once = with_judge(lambda request: verdict(request) if len(request.messages) > 2 else "Well…")
    with ChatServer(judge_once) as server:
        log = run(drift(turns=2, probes="none"), server, tmp_path, limit=1)
    assert all(v.outcome != "unparsed" for v in verdicts_of(log.samples[0], "prompt_to_line"))


def test_a_refusal_is_unparsed(tmp_path):
    refusal = Reply(text=None, finish="content_filter")
    with ChatServer(with_judge(lambda request: refusal)) as server:
        log = run(drift(turns=1, probes="none"), server, tmp_path, limit=1)
    assert verdicts_of(log.samples[0], "prompt_to_line")[0].outcome == "unparsed"


@pytest.mark.parametrize("fault", [RATE_LIMIT, SERVER_ERROR], ids=["429", "500"])
def test_passing_faults_of_every_role_cost_nothing(tmp_path, fault):
    with ChatServer(everybody) as server:
        calm = run(drift(turns=2, partner="model", probes="none"), server, tmp_path, limit=2)
    with ChatServer(failing_first(everybody, fault)) as server:
        stormy = run(drift(turns=2, partner="model", probes="none"), server, tmp_path, limit=2)
        assert len(server.log) > 0
    for a, b in zip(calm.samples, stormy.samples, strict=True):
        assert transcript_of(a).turns == transcript_of(b).turns
    assert scores(calm) == scores(stormy)


@pytest.mark.parametrize("fault", [SERVER_ERROR, Reply(delay=30)], ids=["500", "hangs"])
def test_a_judge_that_is_gone_for_good_loses_no_dialogue_and_no_other_verdict(tmp_path, fault):
    broken = with_judge(lambda request: fault if "New line:" in request.last else verdict(request))
    with ChatServer(broken) as server:
        roles = {"judge": model_at(server, "judge", max_retries=0, timeout=2, attempt_timeout=1)}
        log = run(drift(turns=2, probes="none"), server, tmp_path, roles, limit=1)
    [sample] = log.samples
    assert log.status == "success" and len(transcript_of(sample).turns) == 2
    [gone] = verdicts_of(sample, "line_to_line")
    assert gone.outcome == "unparsed" and gone.reason.startswith("judge failed")
    assert all(v.outcome != "unparsed" for v in verdicts_of(sample, "prompt_to_line"))


def test_a_full_context_ends_the_dialogue_and_scores_what_was_said(tmp_path):
    def simulator(request: Request) -> str | Reply:
        if len(request.messages) > 4 and request.model == "simulator":
            return Reply(
                status=400,
                body=b'{"error": {"message": "This model\'s maximum context length is 100 tokens. Please reduce the '
                b'length of the messages.", "type": "invalid_request_error", "code": "context_length_exceeded"}}',
            )
        return everybody(request)

    with ChatServer(simulator) as server:
        log = run(drift(turns=4, probes="none"), server, tmp_path, limit=1)
    [sample] = log.samples
    transcript = transcript_of(sample)
    assert len(transcript.turns) == 2 and transcript.ended == "simulator, turn 3: the context window is full"
    assert sample.metadata["ended"] == transcript.ended
    assert [m.role for m in sample.messages].count("assistant") == 2, "nothing was said in turn 3"
    assert not math.isnan(sample.scores["prompt_to_line"].value)


def test_a_turn_limit_scores_what_was_said(tmp_path):
    with ChatServer(everybody) as server:
        log = run(drift(turns=4, partner="model"), server, tmp_path, limit=1, turn_limit=2)
    [sample] = log.samples
    assert sample.limit.type == "turn" and len(transcript_of(sample).turns) == 2
    assert len(verdicts_of(sample, "prompt_to_line")) == 2


@pytest.mark.parametrize("line", ["", "<think>only thoughts</think>", "word " * 10_000, "🙂 שלום ‮ab\x07"])
def test_odd_lines_survive(tmp_path, line):
    with ChatServer(lambda r: verdict(r) if r.model == "judge" else line) as server:
        log = run(drift(turns=2, probes="none"), server, tmp_path, limit=1)
    [sample] = log.samples
    assert log.status == "success"
    assert len(transcript_of(sample).turns) == 2
    silent = not transcript_of(sample).lines[0]
    assert {v.outcome == "unparsed" for v in verdicts_of(sample, "prompt_to_line")} == {silent}


def test_a_partner_model_must_be_named_before_anything_is_said(tmp_path):
    with ChatServer(everybody) as server:
        log = run(drift(turns=1, partner="model"), server, tmp_path, {"judge": model_at(server, "judge")}, limit=1)
        assert server.log == []
    assert log.status == "error" and "partner" in log.error.message


def test_two_judges_in_one_role_are_refused(tmp_path):
    with ChatServer(everybody) as server:
        roles = {"judge": [model_at(server, "judge"), model_at(server, "other")]}
        log = run(drift(turns=1, probes="none"), server, tmp_path, roles, limit=1)
    assert log.status == "error" and "bind one model" in log.error.message


def test_epochs_take_further_seeds(tmp_path):
    with ChatServer(everybody) as server:
        log = run(drift(turns=2, probes="none", seed=5), server, tmp_path, limit=1, epochs=2)
    found = [transcript_of(sample) for sample in log.samples]
    assert [t.seed for t in found] == [5, 6] and found[0].turns != found[1].turns


def test_a_log_is_rescored_without_the_simulator(tmp_path):
    with ChatServer(everybody) as server:
        log = run(drift(turns=2), server, tmp_path, limit=2, score=False)
        said = len(server.of("simulator"))
        judge_model = model_at(server, "judge")
        scorers = [prompt_to_line(), line_to_line(), qa()]
        scored = score(log, scorers, model="none", model_roles={"judge": judge_model}, display="none")
        assert len(server.of("simulator")) == said
    assert all(s.scored_samples == 2 for s in scored.results.scores if s.name in METRICS)


def test_limit_twelve_sees_every_scenario():
    assert {name.split("-")[0] for name in TEST_IDS[:4]} == {"chat", "education", "therapy", "service"}
    assert len(TEST_IDS) == 40


def test_bad_parameters_say_what_to_do():
    assert probe_turns("default", 8) is None and probe_turns("none", 8) == [] and probe_turns(["1", "4"], 8) == [1, 4]
    for bad in ("9", "0", "x", "1,,2"):
        with pytest.raises(ValueError, match="probes="):
            probe_turns(bad, 8)
    with pytest.raises(ValueError, match="scenario 'x' does not exist"):
        drift(scenario="x")
    with pytest.raises(ValueError, match="turns must be at least 1"):
        drift(turns=0)
    with pytest.raises(ValueError, match="'x' is none of"):
        metric_names("qa,x")


def test_the_solvers_serve_tasks_of_other_people(tmp_path):
    """A task of one's own, made of our solvers and scorers."""
    persona = load_bank().persona("chat-test-01")
    held = Task(
        dataset=[Sample(id="mine", input="-", metadata={"persona_id": persona.id})],
        solver=simulated_dialogue(turns=2, probes=[]),
        scorer=prompt_to_line(),
    )
    with ChatServer(everybody) as server:
        log = run(held, server, tmp_path)
        transcript = transcript_of(log.samples[0])
        taken_up = Task(
            dataset=[
                Sample(id="again", input="-", metadata={"transcript": transcript.model_dump(), "persona_id": "x"})
            ],
            solver=recorded_dialogue(),
            scorer=prompt_to_line(),
        )
        again = run(taken_up, server, tmp_path, model="none/none")
    assert len(transcript.turns) == 2 and not transcript.probes
    assert scores(again) == scores(log)
