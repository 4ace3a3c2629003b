"""Rewards: what a verdict is worth, what guards cost, and a judge that fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from persona_tasks.lm_eval_tasks.roles import open_role
from persona_tasks.protocol.asks import Answer, Ask, Chosen, Failure
from persona_tasks.protocol.play import blank
from persona_tasks.transcript import Probe, Transcript, Turn
from tests.chat_server import GARBAGE, HANG, RATE_LIMIT, ChatServer, Reply, failing_first
from tests.scripted import PERSONA, SCENARIO, SCRIPTED, verdict_for
from tests.tiny import tiny_model_folder
from training.rewards import (
    JudgeError,
    Rewards,
    RewardSettings,
    copying_penalties,
    length_penalty,
    repetition_penalties,
    sample_dialogue,
)

CONSISTENT = '{"reason": "r", "verdict": "consistent"}'
CONTRADICTS = '{"reason": "r", "verdict": "contradicts"}'
ONLY_PERSONA = dict.fromkeys(("line_to_line", "length", "copying", "repetition", "role_flip"), 0.0)


class Judge:
    """Plain code as a role."""

    name = "code"

    def __init__(self, reply: Callable[[Ask], Answer]):
        self.reply = reply
        self.asked: list[Ask] = []

    def prepare(self) -> None:
        pass

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        self.asked += asks
        return [self.reply(ask) for ask in asks]


def dialogue(*lines: str, answers: Sequence[str] = ()) -> Transcript:
    transcript = blank(PERSONA, SCENARIO, SCRIPTED)
    transcript.turns = [Turn(partner="So?", line=line) for line in lines]
    asked = enumerate(answers)
    transcript.probes = [Probe(turn=len(lines), question=n, mode="choice", answer=text) for n, text in asked]
    return transcript


def rewards(reply: Callable[[Ask], Answer], **settings: Any) -> Rewards:
    return Rewards(RewardSettings(**{**ONLY_PERSONA, **settings}), Judge(reply))


def chosen(p: float) -> Chosen:
    return Chosen(CONSISTENT if p < 0.5 else CONTRADICTS, {CONSISTENT: 1 - p, CONTRADICTS: p})


def test_a_verdict_is_worth_its_probability_or_one_or_nothing() -> None:
    answers: dict[str, Answer] = {
        "a": chosen(0.3),
        "b": CONTRADICTS,
        "c": "I cannot say",
        "d": Failure("gone"),
        "e": "",
    }

    def reply(ask: Ask) -> Answer:
        text = ask.messages[1].content
        return next((answers[name] for name in answers if f'"{name} word"' in text), chosen(0.1))

    said = dialogue("a word", "b word", "c word", "", "f word", "g word", "h word")
    assert rewards(reply).score([said]).rewards == [{"prompt_to_line": [0.7, 0.0, None, None, 0.9, 0.9, 0.9]}]
    hard = rewards(reply, verdict="hard").score([said]).rewards[0]["prompt_to_line"]
    assert hard == [1.0, 0.0, None, None, 1.0, 1.0, 1.0]
    capped = rewards(reply, cap=0.8).score([said]).rewards[0]["prompt_to_line"]
    assert capped == [0.7, 0.0, None, None, 0.8, 0.8, 0.8]


def test_line_to_line_has_none_for_the_first_line() -> None:
    scores = rewards(verdict_for, prompt_to_line=0, line_to_line=1).score([dialogue("a", "b", "c")])
    [first, *others] = scores.rewards[0]["line_to_line"]
    assert first is None and len(others) == 2 and set(others) <= {0.0, 1.0}


def test_questions_are_worth_the_share_of_right_answers_that_could_be_read() -> None:
    made = rewards(verdict_for, prompt_to_line=0, qa=1)
    scores = made.score(
        [dialogue("x", answers=["B", "D"]), dialogue("x", answers=["B", "well"]), dialogue("x", answers=["", "?"])]
    )
    assert [row["qa"] for row in scores.rewards] == [[0.5], [1.0], [None]]
    assert scores.missing == 0.5


def test_the_same_words_of_the_same_persona_are_judged_once() -> None:
    judge = Judge(lambda _: CONSISTENT)
    made = Rewards(RewardSettings(**ONLY_PERSONA), judge)
    scores = made.score([dialogue("yes", "no"), dialogue("yes", "perhaps"), dialogue("yes", "yes")])
    assert (scores.asks, scores.calls, len(judge.asked)) == (6, 3, 3)
    assert [row["prompt_to_line"] for row in scores.rewards] == [[1.0, 1.0]] * 3
    other = dialogue("yes")
    other.persona_text = "Somebody else."
    assert made.score([dialogue("yes"), other]).calls == 2


def test_no_weight_no_call() -> None:
    judge = Judge(lambda _: pytest.fail("asked"))
    scores = Rewards(RewardSettings(prompt_to_line=0, line_to_line=0), judge).score([dialogue("As an AI, I am fine.")])
    assert scores.rewards[0]["role_flip"] == [-1.0] and not judge.asked


def test_guards() -> None:
    assert [length_penalty("w " * n, 8, 60) for n in (0, 4, 8, 60, 90, 500)] == [-1, -0.5, 0, 0, -0.5, -1]
    assert repetition_penalties(["I'm fine.", "I'm fine.", "I'm fine.", "The cat sat down", "the cat sat here"]) == [
        0,
        -1,
        -1,
        0,
        -0.5,
    ]
    assert copying_penalties(["You are Mina, a liar", "No."], "You are Mina, a retired pilot") == [-2 / 3, 0.0]


@pytest.mark.parametrize("answer", ["", "no idea", Failure("the server is gone")])
def test_a_judge_that_answers_nothing_is_found_out(answer: Answer) -> None:
    made = rewards(lambda _: answer)
    with pytest.raises(JudgeError, match=r"the judge code gave no verdict.*(gone|no idea|no JSON)"):
        made.check(sample_dialogue(blank(PERSONA, SCENARIO, SCRIPTED)))
    with pytest.raises(JudgeError):
        made.score([dialogue("a", "b")])


def test_a_few_missing_verdicts_do_not_stop_a_run() -> None:
    made = rewards(lambda ask: "?" if '"a word"' in ask.messages[1].content else CONSISTENT)
    assert made.score([dialogue("a word", "b", "c")]).rewards[0]["prompt_to_line"] == [None, 1.0, 1.0]


def test_a_judge_behind_a_url_is_asked_at_once_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [dialogue(*(f"{word} {n}" for n in range(6))) for word in ("one", "two")]
    with ChatServer(failing_first(lambda _: Reply(CONSISTENT, delay=0.1), RATE_LIMIT)) as server:
        made = Rewards(RewardSettings(**ONLY_PERSONA), open_role(f"openai:m@{server.url}", "judge", connections=6))
        assert [row["prompt_to_line"] for row in made.score(said).rewards] == [[1.0] * 6] * 2
        assert 3 < server.peak <= 6 and len(server.log) == 24
        assert json.dumps(server.log[0].body).count("verdict") > 1  # the schema goes along


def test_a_judge_behind_a_url_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona_tasks.lm_eval_tasks.roles.GARBLED_WAIT", 0.01)
    with ChatServer(lambda _: GARBAGE) as server:
        made = Rewards(RewardSettings(**ONLY_PERSONA), open_role(f"openai:m@{server.url}", "judge"))
        with pytest.raises(JudgeError, match="Garbled"):
            made.score([dialogue("a")])
    with ChatServer(lambda _: HANG) as server:
        monkeypatch.setattr("persona_tasks.lm_eval_tasks.roles.RETRIES", 0)
        made = Rewards(RewardSettings(**ONLY_PERSONA), open_role(f"openai:m@{server.url}", "judge", timeout=0.3))
        with pytest.raises(JudgeError, match="timed out"):
            made.score([dialogue("a")])


def test_an_embedded_judge_gives_probabilities(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path, max_position_embeddings=16384)
    made = Rewards(RewardSettings(**ONLY_PERSONA), open_role(str(folder), "judge"))
    made.check(sample_dialogue(blank(PERSONA, SCENARIO, SCRIPTED)))
    [value] = made.score([dialogue("I am a pilot.")]).rewards[0]["prompt_to_line"]
    assert value is not None and 0 < value < 1


@pytest.mark.parametrize("wrong", [{"qaa": 1}, {"qa": -1}, {"cap": 0}, {"verdict": "mild"}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RewardSettings(**wrong)
