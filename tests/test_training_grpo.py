"""Multi-turn GRPO on a tiny model: credit, the ratio, masks, resuming, two processes, and recipes that cannot work."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import GRPOTrainer

from persona_tasks.embedded.engine import Request
from persona_tasks.embedded.weights import load_model
from persona_tasks.personas import load_bank
from persona_tasks.transcript import read_jsonl
from tests.chat_server import BAD_REQUEST, ChatServer
from tests.tiny import tiny_model_folder
from tests.training_world import GUARDS, small, tiny_world
from training import grpo, online, ppo
from training.credit import centred, line_means, returns, scaled, spoken_logprobs, to_tokens
from training.grpo import GRPO, Recipe, train
from training.recipe import RecipeError, load_recipe, lora, parser
from training.rewards import JudgeError, RewardSettings
from training.rollout import RolloutError
from training.shared_prefix import dialogue_logits
from training.voices import EngineVoice, Wanted

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "training" / "recipes"
NAN = float("nan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


def recipe(folder: Path, **changes: Any) -> Recipe:
    return Recipe(**small(folder, **changes))


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------- what TRL must be


def test_trl_has_the_private_methods_that_we_override_and_call() -> None:
    def parameters(method: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(method).parameters)

    assert parameters(GRPOTrainer._generate_single_turn)[:5] == [
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations",
    ]  # fmt: skip
    assert parameters(GRPOTrainer._generate_and_score_completions) == ["self", "inputs"]
    assert parameters(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
    assert parameters(GRPOTrainer._get_per_token_logps_and_entropies)[:6] == [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size",
    ]  # fmt: skip
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert "advantages.dim() == 1" in source and "tool_mask" in source  # (B, T) advantages, and partner's tokens


def test_all_personas_have_their_turn_before_one_comes_again() -> None:
    people = load_bank().select("chat", "train")[:10]
    order = online.persona_order(people, 4, 5, seed=1)
    steps = [[persona.id for persona in order[start : start + 4]] for start in range(0, 20, 4)]
    assert len(order) == 20 and all(len(set(step)) == 4 for step in steps)
    assert len({*steps[0], *steps[1]}) == len({*steps[2], *steps[3]}) == 8 and steps[0] != steps[2]
    assert online.persona_order(people, 4, 3, seed=1) == order[:12] != online.persona_order(people, 4, 3, seed=2)


# -------------------------------------------------------------------------------------------------------------- credit


def test_rewards_are_centred_by_group_and_turn_and_what_is_missing_counts_as_nothing() -> None:
    rewards = torch.tensor([[1.0, NAN], [0.0, 0.5], [NAN, NAN], [0.25, NAN]])
    assert centred(rewards, 2).tolist() == [[0.5, 0.0], [-0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"credit": "turn", "gamma": 1.0}, [15, 14, 12, 8]),
        ({"credit": "turn", "gamma": 0.0}, [1, 2, 4, 8]),
        ({"credit": "turn", "gamma": 0.5}, [4, 6, 8, 8]),
        ({"credit": "segment", "segment": 2}, [3, 6, 12, 8]),
        ({"credit": "dialogue"}, [15, 15, 15, 15]),
    ],
)
def test_a_line_is_credited_with(options: dict[str, Any], expected: list[float]) -> None:
    assert returns(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), **options).tolist() == [expected]


def test_scales_and_tokens() -> None:
    credited = torch.tensor([[1.0, 5.0], [3.0, 5.0], [10.0, 0.0], [30.0, 2.0]])
    assert scaled(credited, "none", 2) is credited
    assert scaled(credited, "batch", 2).std() == pytest.approx(1, abs=1e-3)
    by_group = scaled(credited - credited.view(2, 2, 2).mean(1).repeat_interleave(2, 0), "group", 2)
    assert by_group[:, 0].tolist() == pytest.approx([-0.7071, 0.7071, -0.7071, 0.7071], abs=1e-3)
    assert by_group[:2, 1].tolist() == [0, 0]  # a group that agrees teaches nothing
    turns = torch.tensor([[0, 0, -1, 1], [0, -1, 1, -1]])
    assert to_tokens(credited[:2], turns).tolist() == [[1, 1, 0, 5], [3, 0, 5, 0]]


def test_means_of_lines() -> None:
    values = torch.tensor([[1.0, 2.0, 9.0, 4.0], [3.0, 9.0, 9.0, 5.0]])
    turns = torch.tensor([[0, 0, -1, 1], [0, -1, -1, 0]])
    means = line_means(values, turns, 2)
    assert means[0].tolist() == [1.5, 4] and means[1, 0] == 4 and means[1, 1].isnan()


def test_log_probabilities_are_those_of_what_was_sampled_from() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[3, 3, 1, 3, 3, 1], [2, 2, 2, 0, 0, 0]])
    turns = torch.tensor([[0, 0, -1, 0, 1, 1], [0, 0, 0, -1, -1, 1]])
    logits = torch.randn(2, 6, 5)
    logps, entropies = spoken_logprobs(logits.clone(), ids, turns, 0.7, 0.6)
    for row in range(2):
        for place in range(6):
            if turns[row, place] < 0:
                assert logps[row, place] == 0 == entropies[row, place]
                continue
            changed = logits[row, place].clone()
            for before in range(place):
                if turns[row, before] == turns[row, place]:
                    changed[ids[row, before]] -= 0.6
            right = torch.distributions.Categorical(logits=changed / 0.7)
            assert logps[row, place] == pytest.approx(float(right.log_prob(ids[row, place])), abs=1e-5)
            assert entropies[row, place] == pytest.approx(float(right.entropy()), abs=1e-5)


# ------------------------------------------------------------------------------------------------------------- training


def test_a_prompt_that_several_dialogues_share_is_computed_once(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    short, long = [7, 8, 9], [7, 8, 10, 11, 12]
    rows = [(short, [20, 21, 22, 23]), (long, [30, 31]), (short, [24]), (short, [25, 26, 27])]
    ids, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.long)
    for row, (prompt, said) in enumerate(rows):
        ids[row, 5 - len(prompt) : 5 + len(said)] = torch.tensor(prompt + said)
        mask[row, 5 - len(prompt) : 5 + len(said)] = 1
    columns, computed = torch.tensor([0, 1, 3]), list[tuple[int, ...]]()
    model.register_forward_pre_hook(lambda *seen: computed.append(seen[2]["input_ids"].shape), with_kwargs=True)
    shared = dialogue_logits(model, ids, mask, columns, 5)
    assert computed == [(1, 2), (3, 5), (1, 4), (1, 5)]  # each prompt but for its last token, then its dialogues
    real = [(row, place) for row, (_, said) in enumerate(rows) for place in range(3) if columns[place] < len(said)]
    torch.stack([shared[place].logsumexp(0) for place in real]).sum().backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    model.zero_grad()
    whole = [model(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 :] for prompt, said in rows]
    for row, place in real:
        assert torch.allclose(shared[row, place], whole[row][columns[place]], atol=1e-5)
    torch.stack([whole[row][columns[place]].logsumexp(0) for row, place in real]).sum().backward()
    alone = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(alone) == len(gradients) > 10
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(gradients, alone, strict=True))


class Watched(GRPO):
    """Keeps what the first update is computed from."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self.seen = {**inputs}
        return super()._compute_loss(model, inputs)


@pytest.mark.parametrize(
    ("rank", "dtype", "tolerance"),
    [(4, "float32", 2e-4), (0, "float32", 2e-4), (0, "bfloat16", 0.05), (4, "bfloat16", 0.5)],
)
def test_the_engine_samples_from_what_is_trained(
    tmp_path: Path, folder: Path, rank: int, dtype: str, tolerance: float
) -> None:
    """The importance ratio is 1: the engine's probabilities, processed by hand, against those of the training pass.

    But for rounding: this tiny adapter, moved by large steps, is merged into weights of bfloat16 for the rollout.
    """
    settings = recipe(folder, rank=rank, dtype=dtype, batch=8, steps=2, frequency_penalty=0.8, temperature=0.6)
    trainer = online.run(settings, tmp_path, False, partial(Probed, settings))
    assert trainer.compared > 50 and trainer.worst < tolerance


def test_a_rollout_leaves_base_and_adapter_as_they_were(folder: Path) -> None:
    model, tokenizer = load_model(str(folder), "bfloat16")
    model = get_peft_model(model, lora(4))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    voice = EngineVoice(model, tokenizer, 0.7, 0.6)
    with voice:
        merged = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
        assert not torch.equal(merged, before["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"])
        assert voice([Wanted([5, 6, 7], 4, 0)])[0].ids
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


class Probed(GRPO):
    """Compares in the second step, when an adapter is no longer zero."""

    compared, worst = 0, 0.0

    def advantages(self, output: dict[str, Any]) -> Any:
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        seen = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        kept = self.turn_ids.shape[1]
        if self.state.global_step == 1:
            with torch.no_grad():
                logps, _, _ = self._get_per_token_logps_and_entropies(self.model, ids, seen, kept, batch_size=3)
            for row in range(4):
                self._compare(ids[row][seen[row] == 1].tolist(), int(output["prompt_mask"][row].sum()), row, logps[row])
        return super().advantages(output)

    def _compare(self, ids: list[int], prompt: int, row: int, logps: Any) -> None:
        turns = self.turn_ids[row].tolist()
        places = [place for place, turn in enumerate(turns) if turn >= 0]
        with self.voice as voice:
            asked = [Request(ids[: prompt + place], 1, logprobs=10_000) for place in places]
            said = voice.engine.generate(asked)
        for place, one in zip(places, said, strict=True):
            logits = torch.empty(len(one.logprobs[0].top))
            for entry in one.logprobs[0].top:
                logits[entry.id] = entry.logprob
            for before in range(place):
                if turns[before] == turns[place]:
                    logits[ids[prompt + before]] -= 0.8
            right = (logits / 0.6).log_softmax(-1)[ids[prompt + place]]
            self.compared += 1
            self.worst = max(self.worst, abs(float(right - logps[place])))


def test_partners_tokens_count_for_nothing(tmp_path: Path, folder: Path) -> None:
    settings = recipe(folder, batch=8)
    trainer = online.run(settings, tmp_path, False, partial(Watched, settings))
    inputs, model = trainer.seen, trainer.model
    assert inputs["advantages"].shape == inputs["completion_ids"].shape
    assert (inputs["advantages"][inputs["turn_ids"] < 0] == 0).all() and (inputs["turn_ids"] < 0).any()

    def gradients(advantages: Any) -> list[Any]:
        model.zero_grad()
        trainer.compute_loss(model, {**inputs, "advantages": advantages}).backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    loud = inputs["advantages"].masked_fill(inputs["turn_ids"] < 0, 1000.0)
    assert all(map(torch.equal, gradients(inputs["advantages"]), gradients(loud)))
    other = inputs["advantages"].masked_fill(inputs["turn_ids"] == 1, 1000.0)
    assert not all(map(torch.equal, gradients(inputs["advantages"]), gradients(other)))


def test_it_learns(tmp_path: Path, folder: Path) -> None:
    """To say more words: the length band is the only reward."""
    weights = {**GUARDS, "copying": 0, "repetition": 0, "length": 1, "words": (6, 60)}
    sizes = {"dialogues": 16, "group": 16, "batch": 16, "turns": 1, "steps": 10}
    settings = recipe(folder, rewards=weights, rank=0, beta=0, **sizes)
    train(settings, tmp_path)
    earned = [step["rewards/length/mean"] for step in logged(tmp_path)]
    assert len(earned) == 10 and sum(earned[-2:]) / 2 > sum(earned[:2]) / 2 + 0.1


def test_it_learns_to_say_what_the_model_it_began_with_would_say(tmp_path: Path, folder: Path) -> None:
    weights = {**GUARDS, "copying": 0, "repetition": 0.001, "length": 0}
    sizes = {"dialogues": 64, "group": 64, "batch": 64, "turns": 1, "line_tokens": 2, "steps": 30}
    policy = {"rank": 0, "learning_rate": 0.001, "frequency_penalty": 0, "temperature": 1.0}
    train(recipe(folder, rewards=weights, fluency=1, beta=1e-6, **policy, **sizes), tmp_path)
    nats = [step["fluency"] for step in logged(tmp_path)]
    assert len(nats) == 30 and sum(nats[-8:]) / 8 > sum(nats[:8]) / 8 + 0.5
    with pytest.raises(RecipeError, match="fluency is not 0 but beta is"):
        train(recipe(folder, fluency=1, beta=0), tmp_path / "out")


def test_what_a_run_leaves_behind(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "run"
    train(recipe(folder, steps=2, updates=2, rewards={**GUARDS, "qa": 0.5}, beta=0.1), out)
    steps = logged(out)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for name in (
        "reward", "rewards/length/mean", "rewards/length/line_2", "monitors/distinct_2", "seconds/generation",
        "seconds/judging", "seconds/update", "tokens/per_second", "judge/calls", "judge/asks", "memory/peak_gib", "kl",
    ):  # fmt: skip
        assert name in steps[0], name
    dialogues = list(read_jsonl(out / "dialogues.jsonl"))
    assert [record.transcript.metadata["step"] for record in dialogues] == [1] * 8 + [2] * 8
    assert all(len(record.of("qa")) == 1 for record in dialogues)
    assert list((out / "tensorboard").glob("events*"))
    assert {file.suffix for file in (out / "adapter").iterdir()} <= {".json", ".safetensors", ".md"}
    assert json.loads((out / "recipe.json").read_text())["updates"] == 2
    card = ModelCard.load(out / "adapter" / "README.md")
    assert card.data.get("library_name") == "peft" and '"updates": 2' in card.text and '"commit"' in card.text
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert PeftModel.from_pretrained(base, str(out / "adapter")).peft_config["default"].r == 4
    load_model(str(out / "adapter"))
    with pytest.raises(RecipeError, match="--resume"):
        train(recipe(folder), out)


def test_all_weights_can_be_trained(tmp_path: Path, folder: Path) -> None:
    train(recipe(folder, rank=0, beta=0.1), tmp_path)
    assert not [file for file in (tmp_path / "model").iterdir() if file.suffix in (".bin", ".pt")]
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "model"))
    assert all(not torch.equal(before[name].bfloat16(), after[name]) for name in after if "proj" in name)
    AutoTokenizer.from_pretrained(tmp_path / "model")
    load_model(str(tmp_path / "model"))


def test_an_adapter_is_trained_further_and_held_on_to(tmp_path: Path, folder: Path) -> None:
    begin, whole, parts = (tmp_path / name for name in ("begin", "whole", "parts"))
    train(recipe(folder, steps=2), begin)

    def further(**changes: Any) -> Recipe:
        return recipe(folder, start=begin / "adapter", beta=0.1, seed=1, **changes)

    train(further(steps=3), whole)
    assert logged(whole)[0]["kl"] == pytest.approx(0, abs=1e-6)  # to the adapter it began with, not to the base
    assert logged(whole)[-1]["kl"] > 1e-6
    assert sorted(file.name for file in (whole / "adapter").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    first, last = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (begin, whole))
    assert first.keys() == last.keys() and not all(torch.equal(first[name], last[name]) for name in first)
    load_model(str(whole / "adapter"))

    train(further(steps=1), parts)
    shutil.rmtree(parts / "adapter")
    train(further(steps=3), parts, resume=True)
    again = load_file(parts / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(last[name], again[name]) for name in last)


def test_only_an_adapter_of_the_base_is_trained_further(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"start: .* holds no adapter"):
        train(recipe(folder, start=folder), tmp_path / "out")
    train(recipe(folder), tmp_path / "begin")
    other = tiny_model_folder(tmp_path, seed=3, max_position_embeddings=16384)
    with pytest.raises(RecipeError, match="is an adapter of"):
        train(recipe(folder, base=str(other), start=tmp_path / "begin" / "adapter"), tmp_path / "out")
    with pytest.raises(RecipeError, match="rank=0"):
        train(recipe(folder, rank=0, start=tmp_path / "begin" / "adapter"), tmp_path / "out")


class Verdicts:
    """A judge behind a URL whose verdict hangs on the prompt; out of order after so many requests."""

    def __init__(self, requests: int) -> None:
        self.left = requests

    def __call__(self, request: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            return BAD_REQUEST
        word = "contradicts" if sum(map(ord, request.last)) % 2 else "consistent"
        return json.dumps({"reason": "r", "verdict": word})


def test_a_judge_that_fails_stops_the_run_and_it_resumes_to_the_same_result(tmp_path: Path, folder: Path) -> None:
    def settings(url: str) -> Recipe:
        weights = {**GUARDS, "prompt_to_line": 1}
        return recipe(folder, judge=f"openai:m@{url}", rewards=weights, steps=4, save_every=2, updates=1)

    with ChatServer(Verdicts(10_000)) as server:
        train(settings(server.url), tmp_path / "whole")
    with (
        ChatServer(Verdicts(2 + 2 * 16 + 16)) as server,
        pytest.raises(JudgeError, match=r"openai:m.* gave no verdict"),
    ):
        train(settings(server.url), tmp_path / "parts")
    kept = list(read_jsonl(tmp_path / "parts" / "dialogues.jsonl"))
    assert len(kept) == 32 and [bool(record.verdicts) for record in kept] == [True] * 24 + [False] * 8
    with ChatServer(Verdicts(10_000)) as server:
        train(settings(server.url), tmp_path / "parts", resume=True)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rewards = [
        [{k: v for k, v in step.items() if k.startswith("reward")} for step in logged(out)] for out in (whole, parts)
    ]
    assert len(rewards[0]) == 4 and rewards[0] == rewards[1]
    said = [[record.transcript.lines for record in read_jsonl(out / "dialogues.jsonl")] for out in (whole, parts)]
    assert said[0] == said[1]
    files = [load_file(out / "adapter" / "adapter_model.safetensors") for out in (whole, parts)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert any(weight.abs().max() > 0 for name, weight in files[0].items() if "lora_B" in name)


def test_transformers_can_generate_too(tmp_path: Path, folder: Path) -> None:
    train(recipe(folder, generation="transformers", frequency_penalty=0), tmp_path)
    assert {len(record.transcript.turns) for record in read_jsonl(tmp_path / "dialogues.jsonl")} == {2}


def test_two_processes_do_what_one_does(tmp_path: Path, folder: Path) -> None:
    settings = recipe(folder, steps=2, batch=2, group=8)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    done = subprocess.run(
        [*command, "-m", "training.grpo", "--config", str(file), "--out", str(tmp_path / "two")],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two = [list(read_jsonl(tmp_path / "two" / name)) for name in ("dialogues.jsonl", "dialogues.1.jsonl")]
    assert [len(records) for records in two] == [8, 8]
    assert [step["step"] for step in logged(tmp_path / "two")] == [1, 2]
    # a group of eight, half of it in each process
    train(settings, tmp_path / "one")
    one = list(read_jsonl(tmp_path / "one" / "dialogues.jsonl"))
    lines = [record.transcript.lines for record in one[:8]]
    assert lines == [record.transcript.lines for records in two for record in records[:4]]
    rewards = [logged(tmp_path / name)[0]["reward"] for name in ("one", "two")]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)
    files = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two")]
    for name in files[0]:
        assert torch.allclose(files[0][name].float(), files[1][name].float(), atol=2e-3), name


def free_port() -> str:
    import socket

    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return str(made.getsockname()[1])


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dialogues": 800, "group": 4}, RecipeError, "need 200 personas a step; .* has 4"),
        ({"dialogues": 6}, RecipeError, "no multiple of group=4"),
        ({"batch": 3}, RecipeError, "cannot be split"),
        ({"turns": 500}, RecipeError, "a dialogue may take .* but the context of .* has 16384"),
        ({"rewards": {**GUARDS, "length": 0, "copying": 0, "repetition": 0}}, RecipeError, "all weights are 0"),
        ({"rewards": {**GUARDS, "qa": 1}, "questions": 0}, RecipeError, "questions is"),
        ({"generation": "transformers"}, RecipeError, "knows no frequency_penalty"),
        ({"judge": "persona/nobody"}, Exception, "no model 'nobody'"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_made(
    tmp_path: Path, folder: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "judge" in changes:
        changes = {**changes, "rewards": {"prompt_to_line": 1}}
    with pytest.raises(error, match=message):
        train(recipe(folder, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_persona_without_questions_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "scenario: chat\nsplit: train\npersonas:\n  - id: mine-1\n    name: Ada\n    description: You are Ada.\n"
        "    facts: [{attribute: job, value: baker}]\n"
    )
    changes = {"personas": str(tmp_path), "rewards": {**GUARDS, "qa": 1}, "dialogues": 4, "batch": 4}
    with pytest.raises(RecipeError, match="no questions: mine-1"):
        train(recipe(folder, **changes), tmp_path / "run")


def test_a_judge_that_answers_nothing_is_refused(tmp_path: Path, folder: Path) -> None:
    with ChatServer("") as server, pytest.raises(JudgeError, match="gave no verdict"):
        train(recipe(folder, judge=f"openai:m@{server.url}", rewards={}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_whose_template_rewrites_history_is_refused(tmp_path: Path) -> None:
    made = tiny_world(tmp_path)
    template = (made / "chat_template.jinja").read_text()
    (made / "chat_template.jinja").write_text(template.replace("{{ m['content'] }}", "{{ m['content'][:2] }}"))
    with pytest.raises(RolloutError, match="not prefix-preserving"):
        train(recipe(made), tmp_path / "run")


def test_an_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("rewards: {qaa: 1}\ncredits: turn\n")
    with pytest.raises(RecipeError, match=r"rewards\.qaa.*credits"):
        load_recipe(Recipe, file)
    assert load_recipe(Recipe, RECIPES / "grpo_smoke.yaml", ["rewards.qa=0"]).rewards.qa == 0


# -------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", ["grpo_smoke", "grpo_cpu", "grpo_gpu", "grpo_qwen3_4b", "grpo_llama31_8b"])
def test_recipes_can_be_read_and_fit_the_bank(name: str) -> None:
    made = load_recipe(Recipe, RECIPES / f"{name}.yaml")
    assert made.dialogues // made.group <= len(load_bank().select(made.scenario, made.split))
    assert set(yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["rewards"]) <= set(RewardSettings.model_fields)


def families(folder: Path) -> Iterator[tuple[str, Any]]:
    sizes = AutoModelForCausalLM.from_pretrained(folder).config.to_dict()
    keys = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "eos_token_id", "bos_token_id", "pad_token_id",
    )  # fmt: skip
    config = {key: sizes[key] for key in keys} | {"head_dim": 16}
    yield "grpo_qwen3_4b", Qwen3ForCausalLM(Qwen3Config(**config))
    yield "grpo_llama31_8b", LlamaForCausalLM(LlamaConfig(**config))


@pytest.mark.parametrize("name", ["grpo_qwen3_4b", "grpo_llama31_8b"])
def test_a_large_recipe_makes_a_step_on_a_tiny_model_of_its_family(tmp_path: Path, folder: Path, name: str) -> None:
    base = tmp_path / "base"
    dict(families(folder))[name].save_pretrained(base)
    AutoTokenizer.from_pretrained(folder).save_pretrained(base)
    smaller = ["generation=engine", "steps=1", "dialogues=4", "group=2", "turns=2", "line_tokens=8", f"base={base}"]
    verdict = json.dumps({"reason": "r", "verdict": "consistent"})
    with ChatServer(verdict) as server:
        smaller += [f"personas={folder.parent / 'bank'}"]
        changes = [*smaller, f"judge=openai:m@{server.url}", "rewards.line_to_line=0", "rewards.qa=0"]
        train(load_recipe(Recipe, RECIPES / f"{name}.yaml", changes), tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero3"])
def test_accelerate_reads_our_configurations(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(ROOT / "training" / "accelerate" / f"{name}.yaml"))
    assert read.num_processes == 8
    assert str(read.distributed_type).endswith({"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}[name])


@pytest.mark.parametrize("module", [grpo, ppo])
def test_help_shows_an_example_and_a_key_of_its_own_is_described(module: Any) -> None:
    assert f"python -m {module.__name__} --config training/recipes/" in parser(module.__doc__).format_help()
    own = set(module.Recipe.model_fields) - set(online.Recipe.model_fields)
    assert all(module.Recipe.model_fields[key].description for key in own)
