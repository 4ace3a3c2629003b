"""`persona_qa`: the same questions at three depths, scored by log-likelihood without a judge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from persona_tasks.lm_eval_tasks.qa import neutral_answers, neutral_lines
from persona_tasks.personas import load_bank
from persona_tasks.protocol.prompts import simulator_prompt
from tests.lm_eval_runs import ChatLM, evaluate, scores
from tests.tiny import tiny_model_folder

DEPTHS = (0, 4, 8)
TASKS = [f"persona_qa_depth{depth}" for depth in DEPTHS]


class KnowingLM(ChatLM):
    """Finds the right options likeliest, by their text."""

    def __init__(self, knows: bool = True) -> None:
        super().__init__()
        self.prompts: list[tuple[str, str]] = []
        self.right = {
            (question.question, question.options[question.answer])
            for persona in load_bank().personas
            for question in persona.questions
        }
        self.knows = knows

    def loglikelihood(self, requests: Any) -> Any:
        self.prompts += [request.args for request in requests]
        found = []
        for request in requests:
            prompt, option = request.args
            hit = any(question in prompt and option.strip() == answer for question, answer in self.right)
            found.append((-1.0 if hit is self.knows else -9.0, False))
        return found


def run(lm: Any, **options: Any) -> dict[str, Any]:
    return evaluate(lm, "persona_qa", limit=options.pop("limit", 6), **options)


def test_options_are_scored_by_their_text_at_every_depth() -> None:
    for knows, expected in ((True, 1.0), (False, 0.0)):
        results = run(KnowingLM(knows))
        assert results["group_subtasks"]["persona_qa"] == TASKS
        assert [scores(results, task)["acc"] for task in TASKS] == [expected] * 3
        assert {"acc", "acc_norm"} == set(scores(results, TASKS[0]))


def test_only_the_distance_of_the_persona_changes_with_the_depth() -> None:
    results = run(KnowingLM())
    at = [results["samples"][task] for task in TASKS]
    for none, four, eight in zip(*at, strict=True):
        assert none["doc"]["question"] == four["doc"]["question"] == eight["doc"]["question"]
        assert [len(sample["doc"]["turns"]) for sample in (none, four, eight)] == [0, 4, 8]
        assert eight["doc"]["turns"][:4] == four["doc"]["turns"]


def test_the_plain_prompt() -> None:
    lm = KnowingLM()
    run(lm, limit=1)
    bank = load_bank()
    persona = bank.select()[0]
    system = simulator_prompt(persona, bank.scenarios[persona.scenario])
    question = persona.questions[0]
    (start, first), *_ = lm.prompts
    assert start == f"{system}\n\nPartner: {question.question}\nYou:"
    assert [option for _, option in lm.prompts[:5]] == [f" {option}" for option in question.options]
    assert first == f" {question.options[0]}"
    assert lm.prompts[5][0].count("\nPartner: ") == 5


def test_as_a_chat_with_the_flag() -> None:
    lm = KnowingLM()
    run(lm, limit=1, apply_chat_template=True, system_instruction="Be brief.")
    prompt, option = lm.prompts[-1]
    assert prompt.startswith("<system>Be brief.\n\nYou ")
    assert prompt.count("<user>") == 9 and prompt.count("<assistant>") == 8
    assert not option.startswith(" ")


@pytest.mark.parametrize(("template", "chat"), [("none", False), ("no_system", True)])
def test_on_a_real_model(tmp_path: Path, template: Any, chat: bool) -> None:
    lm = HFLM(pretrained=str(tiny_model_folder(tmp_path, template, max_position_embeddings=4096)), device="cpu")
    results = run(lm, limit=2, apply_chat_template=chat)
    assert all(0 <= scores(results, task)["acc"] <= 1 for task in TASKS)
    if chat:
        assert all("\nYou " in sample["arguments"][0][0][:40] for sample in results["samples"][TASKS[2]])


def test_the_written_lines_say_nothing_that_is_an_option() -> None:
    said = " ".join(neutral_answers()).casefold()
    assert len(set(neutral_answers())) == len(neutral_answers()) >= max(DEPTHS)
    personas = load_bank().select(split="all")
    options = {
        option.casefold() for persona in personas for question in persona.questions for option in question.options
    }
    assert not [option for option in options if len(option) > 3 and re.search(rf"\b{re.escape(option)}\b", said)]
    assert neutral_lines(personas[0], 8, 0)[:4] == neutral_lines(personas[0], 4, 0)
    assert neutral_lines(personas[0], 8, 0) != neutral_lines(personas[1], 8, 0)


def test_a_chat_api_says_that_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        run(ChatLM())


@pytest.mark.embedded
def test_every_prompt_fits_a_small_context_window() -> None:
    """lm-eval cuts longer prompts at their beginning, which is the persona."""
    from transformers import AutoTokenizer

    from persona_tasks.embedded.weights import embedded_folder

    lm = KnowingLM()
    run(lm, limit=None)
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    assert max(map(len, tokenizer([prompt + option for prompt, option in lm.prompts])["input_ids"])) < 1024
