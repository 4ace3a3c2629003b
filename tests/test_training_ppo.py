"""Multi-turn PPO on a tiny model: advantages over the simulator's tokens, the critic, and resuming with it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training_world import GUARDS, small, tiny_world
from training import online
from training.credit import advantages_over_time
from training.ppo import PPO, Critic, Recipe, train
from training.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "training" / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


def recipe(folder: Path, **changes: Any) -> Recipe:
    return Recipe(**small(folder, **{"group": 2, **changes}))


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_advantages_are_the_textbooks_with_partners_tokens_left_out() -> None:
    gamma, lam = 0.9, 0.8
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1]]).bool()
    rewards, values = torch.randn(1, 7), torch.randn(1, 7)
    own = [place for place in range(7) if mask[0, place]]
    r, v = rewards[0, own].tolist(), [*values[0, own].tolist(), 0.0]
    deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(4)]
    right = [sum((gamma * lam) ** (k - i) * deltas[k] for k in range(i, 4)) for i in range(4)]
    found = advantages_over_time(rewards, values, mask, gamma, lam)[0]
    assert found[own].tolist() == pytest.approx(right, abs=1e-5)
    assert found[~mask[0]].tolist() == [0, 0, 0]


def test_with_lambda_and_gamma_one_an_advantage_is_the_rest_of_the_rewards_minus_the_value() -> None:
    mask = torch.ones(1, 4).bool()
    rewards, values = torch.tensor([[1.0, 2.0, 0.0, 4.0]]), torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert advantages_over_time(rewards, values, mask, 1, 1).tolist() == [[6.5, 5.5, 3.5, 3.5]]


class Watched(PPO):
    def _token_rewards(self) -> Any:
        self.earned = super()._token_rewards()
        self.kept = [dict(row) for row in self.rows]
        self.order = self.turn_ids.tolist()  # before the batch is shuffled
        return self.earned

    def _whitened(self, advantages: Any, mask: Any) -> Any:
        self.white = super()._whitened(advantages, mask)
        self.mask = mask
        return self.white


def test_rewards_stand_on_the_last_token_of_what_earned_them(tmp_path: Path, folder: Path) -> None:
    settings = recipe(folder, rewards={**GUARDS, "qa": 0.5, "copying": 0, "repetition": 0}, questions=1)
    trainer = online.run(settings, tmp_path, False, partial(Watched, settings))
    for row, (earned, turns) in enumerate(zip(trainer.earned.tolist(), trainer.order, strict=True)):
        last = {turn: place for place, turn in enumerate(turns) if turn >= 0}
        given = trainer.kept[row]["rewards"]
        expected = [0.0] * len(turns)
        for turn, place in last.items():
            expected[place] = 0.5 * given["length"][turn]
        expected[last[1]] += 0.5 * (given["qa"][0] or 0.0)
        assert earned == pytest.approx(expected, abs=1e-6)
    white = trainer.white[trainer.mask]
    assert float(white.mean()) == pytest.approx(0, abs=1e-5)
    assert float(white.std(correction=0)) == pytest.approx(1, abs=1e-3)
    assert (trainer.white[~trainer.mask] == 0).all()


def test_the_critic_learns_what_to_expect(tmp_path: Path, folder: Path) -> None:
    settings = recipe(folder, critic_learning_rate=0.01)
    trainer = train(settings, tmp_path)
    assert isinstance(trainer, PPO)
    assert logged(tmp_path)[0]["critic/explained_variance"] == pytest.approx(0, abs=1e-4)  # at first 0 everywhere
    states = torch.randn(200, 64)
    targets = states[:, 0] - 1
    for _ in range(60):
        with torch.no_grad():
            before = trainer.critic(states)
        trainer._teach(states, before, targets)
    assert float((targets - trainer.critic(states)).var() / targets.var()) < 0.1


def test_an_interrupted_run_resumes_with_its_critic(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(folder, steps=4, save_every=2, updates=2, beta=0.1)
    train(settings, tmp_path / "whole")
    teach, calls = PPO._teach, []

    class Stopped(Exception):
        pass

    def interrupted(self: PPO, *tensors: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise Stopped
        teach(self, *tensors)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(PPO, "_teach", interrupted)
        train(settings, tmp_path / "parts")
    train(settings, tmp_path / "parts", resume=True)
    names = ("reward", "critic/loss", "critic/explained_variance", "loss", "kl")
    runs = [[{n: step.get(n) for n in names} for step in logged(tmp_path / name)] for name in ("whole", "parts")]
    assert [len(run) for run in runs] == [8, 8] and runs[0] == runs[1]
    files = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert not list((tmp_path / "whole" / "adapter").glob("*.pt"))


def test_a_new_critic_expects_nothing() -> None:
    assert Critic(8)(torch.randn(2, 3, 8)).tolist() == [[0.0] * 3] * 2


def test_the_recipe_is_that_of_grpo_but_for_the_method() -> None:
    from training.grpo import Recipe as Other

    ours, theirs = load_recipe(Recipe, RECIPES / "ppo_cpu.yaml"), load_recipe(Other, RECIPES / "grpo_cpu.yaml")
    for name in online.Recipe.model_fields:
        assert getattr(ours, name) == getattr(theirs, name), name
