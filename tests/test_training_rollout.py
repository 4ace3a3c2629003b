"""Dialogues as token ids: what is appended, what is marked, what leaves no trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from persona_tasks.embedded.weights import load_model
from persona_tasks.lm_eval_tasks.roles import open_role
from persona_tasks.personas import load_bank
from persona_tasks.protocol.partners import fill
from tests.chat_server import BAD_REQUEST, ChatServer
from tests.tiny import CHATML, tiny_model_folder, tiny_tokenizer
from training.recipe import lora
from training.rollout import Rollout, RolloutError, Template
from training.voices import EngineVoice, Said, TrainerVoice, Wanted

ROOT = Path(__file__).parents[1]
NAMES = ["chat-train-01", "chat-train-01", "therapy-train-01"]
TOKENIZER = tiny_tokenizer(CHATML)
END = TOKENIZER.eos_token_id


class Scripted:
    """Says single bytes, which the tokenizer would join: "I", " am", ... and ends every second line itself."""

    def __init__(self) -> None:
        self.calls: list[list[Wanted]] = []

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, wanted: Sequence[Wanted]) -> list[Said]:
        self.calls.append(list(wanted))
        return [Said(self.line(one)) for one in wanted]

    def line(self, one: Wanted) -> list[int]:
        letters = [TOKENIZER.convert_tokens_to_ids(letter) for letter in "Sunday"]
        return letters[:5] + ([END] if len(self.calls) % 2 else [letters[5]])


def make(turns: int = 3, template: Template | None = None, **options: Any) -> Rollout:
    bank = load_bank()
    chosen = {name: bank.persona(name) for name in NAMES}
    return Rollout(chosen, bank, template or Template(TOKENIZER, {END}), 100_000, turns, **options)


def test_ids_are_appended_and_never_tokenised_again() -> None:
    voice, rollout = Scripted(), make()
    [spoken] = rollout.hold(NAMES[:1], 1, voice)
    assert len(voice.calls) == 3
    for before, after in zip(voice.calls, voice.calls[1:], strict=False):
        assert after[0].context[: len(before[0].context)] == before[0].context
    assert spoken.context[: len(voice.calls[2][0].context)] == voice.calls[2][0].context
    again = TOKENIZER(TOKENIZER.decode(spoken.context), add_special_tokens=False)["input_ids"]
    assert again != spoken.context  # or this test could not fail
    assert spoken.transcript.lines == ["Sunda", "Sunday", "Sunda"]


def test_partners_tokens_and_missing_ends_are_marked() -> None:
    [spoken] = make().hold(NAMES[:1], 1, Scripted())
    template, partner = Template(TOKENIZER, {END}), [turn.partner for turn in spoken.transcript.turns]
    own = [[i for i, turn in zip(spoken.ids, spoken.turns, strict=True) if turn == n] for n in range(3)]
    assert [len(line) for line in own] == [6, 6, 6] and own[0][-1] == own[2][-1] == END != own[1][-1]
    second, third = template.reply(partner[1], cut=False), template.reply(partner[2], cut=True)
    assert third[0] == END and third[1:] == template.reply(partner[2], cut=False)
    assert spoken.ids == own[0] + second + own[1] + third + own[2]
    assert spoken.turns == [0] * 6 + [-1] * len(second) + [1] * 6 + [-1] * len(third) + [2] * 6
    # beside the line breaks that no model says, the ids read like the template's own rendering
    said = [("user", partner[0]), ("assistant", "Sunda"), ("user", partner[1]), ("assistant", "Sunday")]
    rendered = template.chat.text([{"role": role, "content": text} for role, text in [*said, ("user", partner[2])]])
    assert (
        TOKENIZER.decode(spoken.context)
        .split("system", 1)[1]
        .endswith(rendered.split("user", 1)[1] + "Sunda<|im_end|>")
    )


def test_questions_leave_no_trace() -> None:
    voice = Scripted()
    plain = make().hold(NAMES, 1, Scripted())
    asked = make(questions=2).hold(NAMES, 1, voice)
    assert [one.ids for one in asked] == [one.ids for one in plain]
    forks = voice.calls[3]
    assert len(voice.calls) == 4 and len(forks) == 6
    for number, fork in enumerate(forks):
        context = asked[number // 2].context
        assert fork.context[: len(context)] == context and len(fork.context) > len(context)
    for one in asked:
        assert [(probe.turn, probe.persona, probe.answer) for probe in one.transcript.probes] == [
            (3, True, "Sunday")
        ] * 2


def test_a_group_hears_the_same_and_says_its_own(tmp_path: Path) -> None:
    model, tokenizer = load_model(str(tiny_model_folder(tmp_path, max_position_embeddings=16384)), "float32")
    voice = EngineVoice(model, tokenizer, 0.7, 0.6)
    rollout = make(2, Template(tokenizer, {END}), questions=2, line_tokens=8)
    with voice:
        first, again, later = (rollout.hold(NAMES, step, voice) for step in (1, 1, 2))
    assert [one.ids for one in again] == [one.ids for one in first]  # whatever else has happened
    heard = [[[turn.partner for turn in one.transcript.turns] for one in step] for step in (first, later)]
    asked = [[one.transcript.questions for one in step] for step in (first, later)]
    for group in (*heard, *asked):
        assert group[0] == group[1] != group[2]
    assert heard[0] != heard[1] and asked[0] != asked[1]
    assert first[0].transcript.lines != first[1].transcript.lines
    assert len({one.transcript.id for one in first}) == 3
    persona, script = load_bank().persona(NAMES[0]), load_bank().scripts["chat"]
    assert set(heard[0][0]) <= {fill(line, persona) for line in script.train}
    with voice:
        elsewhere = rollout.hold(NAMES[1:], 1, voice, first=1)
    assert [one.ids for one in elsewhere] == [one.ids for one in first[1:]]  # as another process would


def test_a_full_context_ends_a_dialogue() -> None:
    whole = make().hold(NAMES, 1, Scripted())
    short = make(line_tokens=6)
    short.max_length = len(whole[0].context) - 1
    spoken = short.hold(NAMES, 1, Scripted())
    assert [len(one.transcript.turns) for one in spoken][:2] == [2, 2]
    assert "context of" in (spoken[0].transcript.ended or "")
    assert max(spoken[0].turns) == 1 and spoken[0].turns[-1] == 1  # nothing of the partner is left hanging


def test_the_longest_dialogue_is_no_longer_than_that() -> None:
    rollout = make(questions=2, line_tokens=6)
    voice = Scripted()
    rollout.hold(NAMES, 1, voice)
    assert max(len(one.context) + one.limit for call in voice.calls for one in call) <= rollout.longest()


def test_a_model_partner_is_asked_and_may_fail() -> None:
    def partner(request: Any) -> Any:
        return BAD_REQUEST if "Sunday" in str(request.messages) else f"And {len(request.messages)}?"

    with ChatServer(partner) as server:
        role = open_role(f"openai:m@{server.url}", "partner")
        spoken = make(4, partner=role).hold(NAMES, 1, One(Scripted()))
        assert [[turn.partner for turn in one.transcript.turns][1:] for one in spoken] == [
            ["And 3?", "And 5?", "And 7?"]
        ] * 3
        with pytest.raises(RolloutError, match=r"partner openai:m.* answered nothing"):
            make(4, partner=role).hold(NAMES, 1, Scripted())


class One(Scripted):
    """Never says the word at which the partner fails."""

    def __init__(self, _: Scripted) -> None:
        super().__init__()

    def line(self, one: Wanted) -> list[int]:
        return [*super().line(one)[:4], END]


def test_a_template_that_changes_earlier_lines_is_refused() -> None:
    thinking = CHATML.replace(
        "{{ m['content'] }}", "{{ ('<think></think>' if m['role'] == 'assistant' else '') + m['content'] }}"
    )
    with pytest.raises(RolloutError, match="not prefix-preserving"):
        Template(tiny_tokenizer(thinking), {END})


def test_a_template_without_an_end_token_is_refused() -> None:
    with pytest.raises(RolloutError, match="does not end generation"):
        Template(TOKENIZER, {END + 1})


@pytest.mark.parametrize("adapter", [False, True])
def test_the_engine_follows_the_weights_and_leaves_the_model_as_it_was(tmp_path: Path, adapter: bool) -> None:
    model, tokenizer = load_model(str(tiny_model_folder(tmp_path, max_position_embeddings=16384)), "float32")
    if adapter:
        model = get_peft_model(model, lora(4))
    model.train()
    voice = EngineVoice(model, tokenizer, 0.01, 0.0)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    before = (inner.config._attn_implementation, model.training, inner.training)
    wanted = [Wanted(list(range(5, 60)), 8, 1)]
    with voice:
        first = voice(wanted)
        assert voice(wanted) == first
        assert voice.engine.stats.reused_tokens >= 50
    assert (inner.config._attn_implementation, model.training, inner.training) == before
    assert not voice.engine.cache.idle
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()  # trains as before
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and ("lora_B" in name or not adapter):
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with voice:
        assert voice(wanted) != first


class Trainer:
    """A trainer in one of two processes; the other wants `others` rows, call by call."""

    eos_token_ids = (END,)

    def __init__(self, others: list[int]) -> None:
        self.others, self.rows, self.accelerator, self.device = iter(others), [], self, "cpu"

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, torch.tensor([next(self.others)])])

    def _generate_single_turn(self, contexts: list[list[int]], *_: Any, num_generations: int) -> Any:
        self.rows.append(len(contexts))
        return [[7, 8, 9] for _ in contexts], [[-1.0, -2.0, -3.0] for _ in contexts]


def test_a_process_that_is_done_joins_the_calls_of_the_others() -> None:
    trainer = Trainer([1, 3, 2, 2, 0])
    with TrainerVoice(trainer) as voice:
        said = [voice([Wanted([1, 2], 2, 0)] * 2) for _ in range(2)]
    assert said == [[Said([7, 8], [-1.0, -2.0])] * 2] * 2
    assert trainer.rows == [2, 3, 2, 2]  # two more calls for the other one's sake


def test_the_benchmark_compares_equal_dialogues() -> None:
    command = [sys.executable, "benchmarks/rollout_speed.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 of 8 dialogues" in done.stdout
    for word in (
        "lockstep",
        "one by one",
        "flattened",
        "generation",
        "judging",
        "update",
        "judge calls",
        "peak memory",
    ):
        assert word in done.stdout
