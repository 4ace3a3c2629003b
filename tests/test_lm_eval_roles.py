"""Judges and partners behind an endpoint, a real local HTTP server: order, concurrency, faults, keys."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from persona_tasks.lm_eval_tasks.roles import GARBLED_RETRIES, RETRIES, open_role
from persona_tasks.personas import load_bank
from persona_tasks.protocol.asks import Answer, Ask, Failure, Message
from persona_tasks.protocol.limits import REPLY_TOKENS, VERDICT_TOKENS
from persona_tasks.protocol.verdicts import LineReply
from tests.chat_server import (
    CUT,
    GARBAGE,
    HANG,
    NO_CHOICES,
    RATE_LIMIT,
    SERVER_ERROR,
    Behaviour,
    ChatServer,
    Reply,
    Request,
    failing,
    failing_first,
)
from tests.inspect_runs import everybody, hashed
from tests.lm_eval_runs import evaluate, judged, scores, transcripts
from tests.tiny import tiny_model_folder


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for milliseconds between tries, not for seconds."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr("persona_tasks.lm_eval_tasks.roles.GARBLED_WAIT", 0.01)


def asks(count: int, form: Any = None) -> list[Ask]:
    return [
        Ask("judge", (Message("system", "s"), Message("user", f"question {n}")), "verdict", 1, form)
        for n in range(count)
    ]


def said(request: Request) -> str:
    return f"answer to {request.last}"


def ask(
    behaviour: Behaviour, count: int = 4, connections: int = 16, timeout: float = 5.0
) -> tuple[list[Answer], ChatServer]:
    with ChatServer(behaviour) as server:
        role = open_role(f"openai:m@{server.url}", "judge", connections, timeout)
        return role.answer(asks(count)), server


RIGHT = [f"answer to question {n}" for n in range(4)]


@pytest.mark.parametrize("fault", [RATE_LIMIT, SERVER_ERROR, CUT, HANG, GARBAGE, NO_CHOICES, Reply("busy", status=503)])
def test_a_fault_that_passes_costs_nothing_but_another_request(fault: Reply) -> None:
    answers, server = ask(failing_first(said, fault), timeout=0.3)
    assert answers == RIGHT
    assert len(server.log) == 8


def test_faults_of_all_kinds_at_once() -> None:
    faults = {0: RATE_LIMIT, 1: SERVER_ERROR, 2: HANG, 3: GARBAGE, 5: CUT, 7: RATE_LIMIT, 9: SERVER_ERROR}
    answers, server = ask(failing(said, faults), count=10, timeout=0.3)
    assert answers == [f"answer to question {n}" for n in range(10)]
    assert len(server.log) == 17


@pytest.mark.parametrize(
    ("fault", "tries", "reason"),
    [
        (SERVER_ERROR, 1 + RETRIES, "InternalServerError"),
        (GARBAGE, 1 + GARBLED_RETRIES, "Garbled: no JSON"),
        (NO_CHOICES, 1 + GARBLED_RETRIES, "Garbled: no chat completion"),
        (Reply("who are you", status=401), 1, "AuthenticationError"),
    ],
)
def test_a_fault_that_stays_is_a_failure_of_that_one_question(fault: Reply, tries: int, reason: str) -> None:
    answers, server = ask(lambda request: fault if "question 2" in request.last else said(request))
    failure = answers[2]
    assert isinstance(failure, Failure) and failure.reason.startswith(reason)
    assert [answers[n] for n in (0, 1, 3)] == [RIGHT[n] for n in (0, 1, 3)]
    assert len([request for request in server.log if "question 2" in request.last]) == tries


def test_a_server_that_is_not_there_is_a_failure_of_every_question() -> None:
    with ChatServer(said) as server:
        role = open_role(f"openai:m@{server.url}", "judge")
    answers = role.answer(asks(2))
    assert all(isinstance(answer, Failure) and "Connection error" in answer.reason for answer in answers)


def test_requests_run_side_by_side_up_to_the_limit_and_answers_keep_their_order() -> None:
    def slow(request: Request) -> Reply:
        return Reply(said(request), delay=0.15 - 0.01 * int(request.last.split()[-1]))

    answers, server = ask(slow, count=12, connections=5)
    assert answers == [f"answer to question {n}" for n in range(12)]
    assert server.peak == 5


def test_what_is_sent() -> None:
    with ChatServer(said) as server:
        open_role(f"openai:meta/llama-3@{server.url}", "judge").answer(asks(1, LineReply))
        open_role(f"openai:meta/llama-3@{server.url}/chat/completions", "partner").answer(asks(1))
    verdict, reply = server.log
    assert verdict.model == "meta/llama-3" and verdict.path == reply.path == "/v1/chat/completions"
    assert verdict.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "question 0"}]
    assert (verdict.body["max_tokens"], verdict.body["temperature"]) == (VERDICT_TOKENS, 0)
    form = verdict.body["response_format"]["json_schema"]
    assert form["name"] == "LineReply" and form["schema"]["additionalProperties"] is False
    assert (reply.body["max_tokens"], "response_format" in reply.body) == (REPLY_TOKENS, False)


@pytest.mark.parametrize(
    ("refused", "message", "instead"),
    [
        ("response_format", "json_schema is not supported", None),
        ("temperature", "Unsupported value: 'temperature' does not support 0", None),
        ("max_tokens", "Unsupported parameter: 'max_tokens'", "max_completion_tokens"),
    ],
)
def test_an_option_that_an_endpoint_refuses_is_left_out_from_then_on(
    refused: str, message: str, instead: str | None
) -> None:
    def picky(request: Request) -> str | Reply:
        return Reply(message, status=400) if refused in request.body else said(request)

    with ChatServer(picky) as server:
        role = open_role(f"openai:m@{server.url}", "judge", connections=2)
        first, second = role.answer(asks(6, LineReply)), role.answer(asks(6, LineReply))
    assert first == second == [f"answer to question {n}" for n in range(6)]
    assert sum(refused in request.body for request in server.log) <= 2
    assert instead is None or instead in server.log[-1].body


def test_the_key_comes_from_the_environment_and_stays_out_of_every_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-general")
    with ChatServer(lambda request: Reply(f"bad key {request.key}", status=401)) as server:
        role = open_role(f"openai:m@{server.url}", "judge")
        [general] = role.answer(asks(1))
        monkeypatch.setenv("PERSONA_JUDGE_API_KEY", "sk-judge")
        [own] = role.answer(asks(1))
    assert [request.key for request in server.log] == ["sk-general", "sk-judge"]
    assert isinstance(general, Failure) and isinstance(own, Failure)
    assert "sk-" not in general.reason + own.reason + role.name
    assert "bad key ***" in general.reason


def test_null_content_is_an_empty_answer() -> None:
    answers, _ = ask(lambda request: Reply(None))
    assert answers == [""] * 4


def test_within_a_running_event_loop_as_in_a_notebook() -> None:
    async def cell() -> list[Answer]:
        return ask(said)[0]

    assert asyncio.run(cell()) == RIGHT


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("openai:gpt-4o", "openai:gpt-4o"),
        ("openai:a/b@2024@http://h:1/v1/", "openai:a/b@2024@http://h:1/v1"),
        ("persona/smollm2-135m", "persona/smollm2-135m"),
    ],
)
def test_names(spec: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert open_role(spec, "judge").name == name


def test_a_local_model_answers_and_fails_where_the_context_is_full(tmp_path: Path) -> None:
    role = open_role(str(tiny_model_folder(tmp_path, max_position_embeddings=512)), "judge")
    role.prepare()
    short, long = asks(1, LineReply), [Ask("judge", (Message("user", "word " * 400),), "verdict", 1, LineReply)]
    first, second = role.answer([*short, *long])
    assert isinstance(first, str)
    assert isinstance(second, Failure) and "context window is full" in second.reason
    assert role.answer([]) == []


EVERYBODY = {"turns": 3, "probes": [1, 3]}


def run_over_http(server: ChatServer, model: str = "local-chat-completions", **options: Any) -> dict[str, Any]:
    arguments = {"model": "simulator", "base_url": f"{server.url}/chat/completions", "num_concurrent": 4, "timeout": 2}
    settings = {"judge": f"openai:judge@{server.url}", "partner": f"openai:partner@{server.url}", "endpoint_timeout": 1}
    return evaluate(model, "persona_drift_chat", {**EVERYBODY, **settings}, limit=3, model_args=arguments, **options)


def rounds(server: ChatServer) -> list[tuple[str, int]]:
    """Which model was asked how often in a row."""
    found: list[tuple[str, int]] = []
    for request in server.log:
        if found and found[-1][0] == request.model:
            found[-1] = (request.model, found[-1][1] + 1)
        else:
            found.append((request.model, 1))
    return found


def test_evaluated_model_partner_and_judge_on_one_server() -> None:
    with ChatServer(everybody) as server:
        results = run_over_http(server)
    questions = 3 * 8
    *played, (judge, verdicts) = rounds(server)
    assert played == [
        ("simulator", questions + 3 + questions),  # without persona, turn 1, after turn 1
        ("partner", 3),
        ("simulator", 3),
        ("partner", 3),
        ("simulator", 3 + questions),
    ]
    assert judge == "judge"
    assert verdicts == 3 * (3 + 2) + sum(len(record.transcript.probes) for record in judged(results))
    assert all(len(transcript.turns) == 3 and transcript.ended is None for transcript in transcripts(results))
    assert 0 < scores(results)["prompt_to_line"] < 1
    assert server.peak <= 16


def test_the_same_run_with_every_kind_of_fault_gives_the_same_scores() -> None:
    with ChatServer(everybody) as server:
        expected = run_over_http(server)
    kinds = [RATE_LIMIT, SERVER_ERROR, GARBAGE, HANG, CUT]

    def faulty(request: Request) -> str | Reply:
        struck = int(hashed(request), 16) % 4 == 0
        return kinds[request.number % 5] if struck and request.nth == 0 else everybody(request)

    with ChatServer(faulty) as server:
        found = run_over_http(server)
    assert any(request.status != 200 for request in server.of("simulator"))
    assert any(request.status != 200 for request in server.of("judge"))
    assert scores(found) == scores(expected)
    assert [t.turns + t.probes for t in transcripts(found)] == [t.turns + t.probes for t in transcripts(expected)]


def test_the_request_form_of_openai_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with ChatServer(everybody) as server:
        results = run_over_http(server, "openai-chat-completions", apply_chat_template=True)
        expected = run_over_http(server, apply_chat_template=False)
    body = server.of("simulator")[0].body
    assert "max_completion_tokens" in body and "max_tokens" not in body
    assert body["messages"][0]["role"] == "system"
    assert transcripts(results) == transcripts(expected)


def test_a_partner_that_fails_for_good_ends_that_dialogue_only() -> None:
    unlucky = load_bank().select("chat")[1].first_name

    def behaviour(request: Request) -> str | Reply:
        broken = request.model == "partner" and unlucky in str(request.messages[0])
        return Reply("no", status=403) if broken else everybody(request)

    with ChatServer(behaviour) as server:
        settings = {"partner": f"openai:partner@{server.url}", "judge": f"openai:judge@{server.url}", "turns": 3}
        results = evaluate("dummy", "persona_drift_chat", settings, limit=3)
    held = transcripts(results)
    assert [len(transcript.turns) for transcript in held] == [3, 1, 3]
    assert held[1].ended and held[1].ended.startswith("partner, turn 2: PermissionDeniedError")
    assert "prompt_to_line" in scores(results)


def test_a_judge_that_always_fails_leaves_every_dialogue_and_no_score() -> None:
    with ChatServer(lambda request: Reply("no", status=403)) as server:
        results = evaluate("dummy", settings={"judge": f"openai:judge@{server.url}", "turns": 2, "probes": "none"})
    assert scores(results)["unparsed"] == 1
    assert {v.reason.partition(":")[0] for record in judged(results) for v in record.verdicts} == {"judge failed"}
    assert len(server.log) == 2 * 3
