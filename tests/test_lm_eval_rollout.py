"""The dialogues of the lm-eval tasks: how they are batched, and what reaches the evaluated model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from persona_tasks.lm_eval_tasks.render import Chat, Renderer, plain
from persona_tasks.lm_eval_tasks.rollout import REQUEST_TYPE, DialogueRequest, Rollout, one_batch_size
from persona_tasks.lm_eval_tasks.settings import Settings
from persona_tasks.personas import load_bank
from persona_tasks.protocol.asks import Message
from persona_tasks.protocol.limits import LINE_TOKENS, PROBE_TOKENS
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.play import play
from persona_tasks.protocol.prompts import simulator_prompt
from tests.chat_server import ChatServer, Request
from tests.lm_eval_runs import NO_JUDGE, ChatLM, evaluate, samples, transcripts
from tests.scripted import echo
from tests.tiny import tiny_model_folder


@pytest.mark.parametrize("dialogues", [1, 2, 7])
def test_each_turn_of_all_dialogues_is_one_call(dialogues: int) -> None:
    lm = ChatLM()
    evaluate(lm, "persona_drift", {"turns": 5, "probes": "none"}, limit=dialogues, **NO_JUDGE)
    assert [len(call) for call in lm.calls] == [4 * dialogues] * 5


def test_each_round_of_questions_is_one_more_call() -> None:
    lm = ChatLM()
    results = evaluate(lm, settings={"turns": 4, "probes": [1, 4]}, **NO_JUDGE)
    assert [len(call) for call in lm.calls] == [16, 2, 16, 2, 2, 2, 16]
    limits = [{options["max_gen_toks"] for options in call} for call in lm.options]
    assert limits == [{PROBE_TOKENS}, {LINE_TOKENS}, {PROBE_TOKENS}, *[{LINE_TOKENS}] * 3, {PROBE_TOKENS}]
    assert [(probe.turn, probe.persona) for probe in transcripts(results)[0].probes[::8]] == [
        (0, False),
        (1, True),
        (4, True),
    ]


def test_a_turn_sees_what_was_said_before_and_no_question_leaves_a_trace() -> None:
    lm = ChatLM()
    [transcript] = transcripts(evaluate(lm, settings={"turns": 3, "probes": [1]}, limit=1, **NO_JUDGE))
    last = lm.calls[-1][0]
    said = "".join(f"<user>{turn.partner}<assistant>{turn.line}" for turn in transcript.turns[:2])
    assert last.endswith(f"{said}<user>{transcript.turns[2].partner}")
    assert not any(question.question in last for question in transcript.questions)


def test_the_dialogue_is_the_protocols_own() -> None:
    """The same answers, given to `play` without any harness, make the same transcript."""
    bank = load_bank()
    persona = bank.select("chat", "test")[0]
    scenario = bank.scenarios["chat"]
    partner = make_partner(persona, scenario, bank.scripts["chat"], 3, 7, "scripted")
    [expected] = lockstep([play(persona, scenario, partner, 3, None, "choice", 7)], echo)

    lm = ChatLM()
    asked = []

    def answer(self: Rollout, asks: list[Any]) -> list[Any]:
        asked.append(len(asks))
        return echo(asks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollout, "answer", answer)
        settings = {"turns": 3, "probe_mode": "choice", "seed": 7}
        [transcript] = transcripts(evaluate(lm, settings=settings, limit=1, **NO_JUDGE))
    assert asked == [8, 1, 8, 1, 1, 8]
    transcript.metadata, transcript.model = expected.metadata, expected.model
    assert transcript == expected


def test_tasks_with_different_settings_in_one_call_keep_their_own() -> None:
    """lm-eval puts the requests of all tasks with the same request type into one call."""
    lm = ChatLM()
    requests = []
    for task, turns, tokens in (("a", 2, 16), ("b", 4, 32), ("a", 2, 16)):
        settings = Settings(turns=turns, probes="none", seed=turns).in_rollout() | {
            "form": "auto",
            "system_instruction": task,
        }
        doc = {"persona_id": f"chat-test-0{len(requests) + 1}"}
        arguments = (f"prompt {len(requests)}", {"max_gen_toks": tokens}, settings)
        requests.append(DialogueRequest(REQUEST_TYPE, doc, arguments, 0, metadata=(task, len(requests), 1)))
    found = getattr(lm, REQUEST_TYPE)(requests)
    from persona_tasks.transcript import Transcript

    read = [Transcript.model_validate_json(text) for text in found]
    assert [(t.persona_id, len(t.turns), t.seed) for t in read] == [
        ("chat-test-01", 2, 2),
        ("chat-test-02", 4, 4),
        ("chat-test-03", 2, 2),
    ]
    assert [
        (len(call), call[0][:9], options[0]["max_gen_toks"]) for call, options in zip(lm.calls, lm.options, strict=True)
    ] == [
        (2, "<system>a", 16),
        (2, "<system>a", 16),
        (1, "<system>b", 32),
        (1, "<system>b", 32),
        (1, "<system>b", 32),
        (1, "<system>b", 32),
    ]


def test_repeats_of_a_document_are_held_with_the_next_seeds() -> None:
    lm = ChatLM()
    settings = Settings(turns=2, probes="none", seed=5).in_rollout() | {"form": "auto", "system_instruction": ""}
    request = DialogueRequest(
        REQUEST_TYPE, {"persona_id": "chat-test-01"}, ("p", {}, settings), 0, metadata=("t", 0, 2)
    )
    first, second = getattr(lm, REQUEST_TYPE)([request, request])
    assert '"id":"chat-test-01/5"' in first and '"id":"chat-test-01/6"' in second


def test_system_instruction_comes_before_the_persona_everywhere() -> None:
    lm = ChatLM()
    evaluate(lm, settings={"turns": 1}, limit=1, system_instruction="Speak French.", **NO_JUDGE)
    persona = load_bank().persona("chat-test-01")
    scenario = load_bank().scenarios["chat"]
    assert all(prompt.startswith("<system>Speak French.\n\nYou ") for call in lm.calls for prompt in call)
    assert lm.calls[1][0].startswith(f"<system>Speak French.\n\n{simulator_prompt(persona, scenario)}<user>")


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_gen_kwargs_reach_the_model(name: str) -> None:
    lm = ChatLM()
    given = {name: 9, "temperature": 0.7, "do_sample": True}
    if name != "max_gen_toks":
        given["max_gen_toks"] = None  # the YAML's own
    evaluate(lm, settings={"turns": 1, "probes": [1]}, limit=1, gen_kwargs=given, **NO_JUDGE)
    line, probe = lm.options[1][0], lm.options[2][0]
    assert line == {"max_gen_toks": 9, "temperature": 0.7, "do_sample": True, "until": []}
    assert probe == {**line, "max_gen_toks": PROBE_TOKENS}


def test_the_plain_form_ends_a_line_where_the_line_ends() -> None:
    lm = ChatLM()
    [transcript] = transcripts(
        evaluate(lm, settings={"turns": 2, "probes": "none", "format": "plain"}, limit=1, **NO_JUDGE)
    )
    first, second = transcript.turns
    assert lm.calls[1][0].endswith(f"\n\nPartner: {first.partner}\nYou: {first.line}\nPartner: {second.partner}\nYou:")
    assert lm.options[0][0]["until"] == ["\n", "Partner:"]
    assert transcript.metadata["form"] == "plain"


@pytest.mark.parametrize(
    ("template", "flag", "form"), [("chatml", False, "chat"), ("chatml", True, "chat"), ("none", False, "plain")]
)
def test_the_chat_template_is_used_where_there_is_one(tmp_path: Path, template: Any, flag: bool, form: str) -> None:
    folder = tiny_model_folder(tmp_path, template)
    run = evaluate(
        "hf",
        settings={"turns": 2, "probes": "none"},
        model_args={"pretrained": str(folder)},
        gen_kwargs={"max_gen_toks": 8},
        apply_chat_template=flag,
        **NO_JUDGE,
    )
    assert {transcript.metadata["form"] for transcript in transcripts(run)} == {form}
    assert all(len(transcript.turns) == 2 for transcript in transcripts(run))


MESSAGES = (
    Message("system", "You are Mina."),
    Message("user", "Hi!"),
    Message("assistant", "Hello."),
    Message("user", "So?"),
)


@pytest.mark.parametrize("template", ["no_system", "ignores_system"])
def test_a_template_that_drops_the_system_message_does_not_drop_the_persona(tmp_path: Path, template: Any) -> None:
    lm = HFLM(pretrained=str(tiny_model_folder(tmp_path, template)), device="cpu")
    renderer = Renderer(lm, "auto")
    prompt = renderer.render(MESSAGES)
    assert prompt.startswith("<|im_start|>user\nYou are Mina.\n\nHi!<|im_end|>")
    assert renderer.folds
    assert "You are Mina." in renderer.render(MESSAGES)


def test_a_template_that_loses_the_persona_altogether_is_an_error() -> None:
    with pytest.raises(ValueError, match="leaves the persona out"):
        Chat(lambda chat: chat[-1]["content"])(MESSAGES)


def test_a_dialogue_that_outgrows_the_context_ends_and_no_prompt_is_cut(tmp_path: Path) -> None:
    bank = load_bank()
    lm = HFLM(pretrained=str(tiny_model_folder(tmp_path, max_position_embeddings=4096)), device="cpu", batch_size=4)
    told = [simulator_prompt(persona, bank.scenarios["therapy"]) for persona in bank.select("therapy")[:2]]
    lm._max_length = max(len(lm.tok_encode(text)) for text in told) + 260
    prompts = []
    encode = lm.tok_batch_encode

    def spy(strings: list[str], **options: Any) -> Any:
        prompts.extend(strings)
        ids, mask = encode(strings, **options)
        assert ids.shape[1] <= options["left_truncate_len"]
        return ids, mask

    lm.tok_batch_encode = spy
    settings = {"turns": 12, "probes": "none"}
    run = evaluate(lm, "persona_drift_therapy", settings, gen_kwargs={"max_gen_toks": 16}, **NO_JUDGE)
    held = transcripts(run, "persona_drift_therapy")
    assert all(0 < len(transcript.turns) < 12 for transcript in held)
    assert {transcript.ended and transcript.ended.partition(": ")[2] for transcript in held} == {
        "the context window is full"
    }
    assert all(prompt.startswith("<|im_start|>system\nYou ") for prompt in prompts)


def test_one_dialogue_that_ends_does_not_hold_up_the_others() -> None:
    lm = ChatLM()
    lm.tokenizer, lm.max_length = SimpleNamespace(), 0
    lm.tok_encode = lambda text: text.split()
    lengths = sorted(
        len(simulator_prompt(p, load_bank().scenarios["chat"]).split()) for p in load_bank().select("chat")
    )
    lm.max_length = lengths[0] + 90
    held = transcripts(
        evaluate(lm, settings={"turns": 6, "probes": "none"}, limit=10, gen_kwargs={"max_gen_toks": 20}, **NO_JUDGE)
    )
    assert len({len(transcript.turns) for transcript in held}) > 1
    assert len(lm.calls) == max(len(transcript.turns) for transcript in held)


def test_auto_batch_size_is_looked_for_once(tmp_path: Path) -> None:
    lm = HFLM(pretrained=str(tiny_model_folder(tmp_path)), device="cpu", batch_size="auto", max_length=1600)
    looked = []
    lm._detect_batch_size = lambda *_: looked.append(1) or 3
    held = evaluate(lm, settings={"turns": 3, "probes": "none"}, gen_kwargs={"max_gen_toks": 4}, **NO_JUDGE)
    assert len(transcripts(held)) == 2
    assert looked == [1]
    assert lm.batch_size == "auto"


def test_other_batch_sizes_are_left_alone() -> None:
    lm = SimpleNamespace(batch_size_per_gpu=4, _detect_batch_size=None)
    with one_batch_size(lm):
        assert lm.batch_size_per_gpu == 4


def test_the_dummy_model_works_without_a_network() -> None:
    run = evaluate("dummy", settings={"turns": 2, "probes": "none"}, **NO_JUDGE)
    assert [turn.line for turn in transcripts(run)[0].turns] == ["lol", "lol"]


def test_peft_adapters(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_model_folder(tmp_path)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    found = []
    for extra in ({}, {"peft": str(tmp_path / "adapter")}):
        arguments = {"pretrained": str(base), **extra}
        run = evaluate(
            "hf",
            settings={"turns": 2, "probes": "none"},
            model_args=arguments,
            gen_kwargs={"max_gen_toks": 12},
            **NO_JUDGE,
        )
        found.append([transcript.lines for transcript in transcripts(run)])
    assert found[0] != found[1]


def partner_and_simulator(request: Request) -> str:
    return f"{request.model} said {len(request.messages)}"


def test_a_model_partner_answers_all_dialogues_of_a_turn_at_once() -> None:
    lm = ChatLM()
    with ChatServer(partner_and_simulator) as server:
        settings = {"turns": 3, "probes": "none", "partner": f"openai:partner@{server.url}"}
        held = transcripts(evaluate(lm, settings=settings, limit=3, **NO_JUDGE))
    assert [len(call) for call in lm.calls] == [3, 3, 3]
    assert [len(request.messages) for request in server.log] == [3, 3, 3, 5, 5, 5]
    assert [turn.partner for turn in held[0].turns[1:]] == ["partner said 3", "partner said 5"]
    first = next(request for request in server.log if held[0].lines[0] in request.last)
    assert [message["role"] for message in first.messages] == ["system", "assistant", "user"]
    assert held[0].partner == "model" and held[0].metadata["partner"] == f"openai:partner@{server.url}"


def test_a_model_partner_is_refused_in_tensor_parallel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="scripted partner"):
        evaluate(ChatLM(), settings={"turns": 1, "partner": "openai:p@http://127.0.0.1:9/v1"}, **NO_JUDGE)


def test_the_log_shows_prompt_options_and_settings() -> None:
    [sample] = samples(evaluate(ChatLM(), settings={"turns": 1}, limit=1, **NO_JUDGE))
    prompt, options, settings = sample["arguments"][0]
    assert prompt.startswith("You ")
    assert options["max_gen_toks"] == LINE_TOKENS
    assert settings["turns"] == 1
    assert sample["target"].startswith("You")


def test_plain_prompts() -> None:
    assert plain(MESSAGES) == "You are Mina.\n\nPartner: Hi!\nYou: Hello.\nPartner: So?\nYou:"
