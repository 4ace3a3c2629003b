"""Multi-turn PPO: the same dialogues and rewards as `training.grpo`, with a critic instead of groups.

python -m training.ppo --config training/recipes/ppo_cpu.yaml --out runs/ppo [--resume] [--set seed=1]

The critic is a small head on the simulator's last hidden states: V(context) at every token that the simulator says. A
line's reward is earned by its last token, the dialogue's by the last token of all; generalised advantage estimation
runs over the simulator's tokens only, and partner's tokens are part of the transition. The run's folder is that of
`training.grpo`; a checkpoint holds the critic and its optimizer too, so `--resume` goes on as if nothing had happened.

How it differs from textbook PPO: the KL divergence from the base is a term of the loss, as in GRPO, not part of the
reward; and the critic's loss does not reach the simulator's weights, so the head is trained on hidden states computed
once per step. It works in one process, or in several with whole copies of the weights (DDP).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from training import online
from training import recipe as common
from training.credit import advantages_over_time
from training.dialogue_trainer import DialogueTrainer

CRITIC = "critic.pt"


class Recipe(online.Recipe):
    """Settings of a run; unknown keys are errors."""

    gamma: float = Field(1.0, ge=0, le=1, description="Discount per token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of the advantage estimation, per token.")
    critic_learning_rate: float = Field(1e-3, gt=0, description="Of the critic's AdamW.")
    critic_epochs: int = Field(4, gt=0, description="Passes of the critic over a step's tokens.")
    critic_clip: float = Field(0.2, gt=0, description="How far a value may move in one step.")


class Critic(nn.Module):
    """Hidden states ``[..., H]`` to values ``[...]``. It says 0 until it has learned something."""

    def __init__(self, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden // 4), nn.GELU())
        self.last = nn.Linear(hidden // 4, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, states: Tensor) -> Tensor:
        values: Tensor = self.last(self.layers(states))[..., 0]
        return values


class PPO(DialogueTrainer):
    """Advantages of tokens: what came, against what the critic expected."""

    _name = "Multi-turn PPO"
    _tag_names = ["trl", "ppo", "user-simulator"]  # noqa: RUF012 (TRL's attribute)

    def __init__(self, recipe: Recipe, **options: Any):
        self.recipe = recipe
        super().__init__(**options)
        torch.manual_seed(recipe.seed)  # the same critic in all processes
        self.critic = Critic(self.model.config.hidden_size).to(self.accelerator.device)
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), lr=recipe.critic_learning_rate)

    def advantages(self, output: dict[str, Tensor]) -> Tensor:
        recipe, mask = self.recipe, self.turn_ids >= 0
        states = self._states(output)
        with torch.no_grad():
            values = self.critic(states)
            found = advantages_over_time(self._token_rewards(), values, mask, recipe.gamma, recipe.lam)
        self._teach(states[mask], values[mask], (found + values)[mask])
        return self._whitened(found, mask)

    def _token_rewards(self) -> Tensor:
        """``[B, T]``: a line's rewards on its last token, the dialogue's on the last of all."""
        rewards = torch.zeros(self.turn_ids.shape, device=self.accelerator.device)
        for name, weight in self.rewards.weights.items():
            earned = weight * self.own(self.line_rewards(name)).nan_to_num(0.0)
            for row, turns in enumerate(self.turn_ids.tolist()):
                last = {turn: place for place, turn in enumerate(turns) if turn >= 0}
                if name == "qa":
                    rewards[row, last[max(last)]] += earned[row, 0]
                else:
                    for turn, place in last.items():
                        rewards[row, place] += earned[row, turn]
        return rewards

    @torch.no_grad()
    def _states(self, output: dict[str, Tensor]) -> Tensor:
        """Hidden states of the contexts that the tokens were sampled in, ``[B, T, H]``, float32."""
        model = self.accelerator.unwrap_model(self.model)
        backbone = (model.get_base_model() if isinstance(model, PeftModel) else model).model
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        seen = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        positions = seen.cumsum(1).sub(1).clamp(min=0)
        kept = self.turn_ids.shape[1]
        parts = [
            backbone(input_ids=i, attention_mask=s, position_ids=p, use_cache=False).last_hidden_state
            for i, s, p in zip(*(whole.split(self.recipe.batch) for whole in (ids, seen, positions)), strict=True)
        ]
        return torch.cat([part[:, -kept - 1 : -1].float() for part in parts])

    def _teach(self, states: Tensor, before: Tensor, targets: Tensor) -> None:
        """Move the critic towards `targets`, ``[tokens]``, with the clipped loss of PPO (arXiv 1707.06347)."""
        clip = self.recipe.critic_clip
        for _ in range(self.recipe.critic_epochs):
            values = self.critic(states)
            clipped = before + (values - before).clamp(-clip, clip)
            loss = 0.5 * torch.maximum((values - targets) ** 2, (clipped - targets) ** 2).mean()
            self.critic_optimizer.zero_grad()
            loss.backward()
            for weight in self.critic.parameters():
                weight.grad = self.accelerator.reduce(weight.grad, reduction="mean")
            self.critic_optimizer.step()
        self.note("critic/loss", float(loss.detach()))
        self.note("critic/explained_variance", float(1 - (targets - before).var() / targets.var().clamp(min=1e-8)))

    def _whitened(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """With mean 0 and deviation 1 over the tokens of all processes."""
        own = torch.stack([(advantages * mask).sum(), (advantages**2 * mask).sum(), mask.sum().float()])
        total, squares, count = self.accelerator.reduce(own, reduction="sum")
        mean = total / count
        deviation = (squares / count - mean**2).clamp(min=0).sqrt()
        return (advantages - mean) / (deviation + 1e-8) * mask

    # The critic is not the trainer's model, so its checkpoints leave it out.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            state = {"critic": self.critic.state_dict(), "optimizer": self.critic_optimizer.state_dict()}
            torch.save(state, folder / CRITIC)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / CRITIC, map_location=self.accelerator.device, weights_only=True)
            self.critic.load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["optimizer"])


def train(recipe: Recipe, out: Path, resume: bool = False) -> DialogueTrainer:
    """Train; see `online.run`."""
    return online.run(recipe, out, resume, partial(PPO, recipe))


def main() -> None:
    """Parse the command line and train."""
    options = common.parser(__doc__).parse_args()
    with common.plain_errors():
        trainer = train(common.load_recipe(Recipe, options.config, options.set), options.out, options.resume)
        trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
