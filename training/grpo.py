"""Multi-turn GRPO: train the simulator on whole dialogues with a fixed partner, credited line by line.

python -m training.grpo --config training/recipes/grpo_smoke.yaml --out runs/smoke
python -m training.grpo --config training/recipes/grpo_cpu.yaml --out runs/grpo --set seed=1 credit=dialogue
python -m training.grpo --config training/recipes/grpo_cpu.yaml --out runs/grpo --resume
torchrun --nproc_per_node 2 -m training.grpo --config training/recipes/grpo_gpu.yaml --out runs/grpo

Every step holds `dialogues` new dialogues, `group` of them for each persona (`training.rollout`), has them judged
(`training.rewards`), credits every line with what came of it (`training.credit`) and updates the weights by TRL's GRPO
loss, in which partner's tokens count for nothing. An interrupted run goes on with `--resume` from its last checkpoint
and ends as if it had not been interrupted.

In the run's folder:

    recipe.json, origin.json   what was asked for, and where it ran
    log.jsonl                  one line a step: rewards, monitors, judge calls, seconds, tokens per second, memory
    dialogues.jsonl            every dialogue with its verdicts (of further processes: dialogues.1.jsonl ...)
    tensorboard/               the numbers of log.jsonl
    checkpoints/               to resume from
    adapter/ or model/         the result
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from training import online
from training import recipe as common
from training.credit import Credit, Scale, centred, line_means, returns, scaled, to_tokens
from training.dialogue_trainer import DialogueTrainer


class Recipe(online.Recipe):
    """Settings of a run; unknown keys are errors."""

    credit: Credit = Field("turn", description="What a line is credited with; see training.credit.")
    gamma: float = Field(1.0, ge=0, le=1, description="credit=turn: discount of the lines that follow.")
    segment: int = Field(2, gt=0, description="credit=segment: lines that count, this one included.")
    scale: Scale = Field("batch", description="Divide advantages by the deviation in the batch, group, or not.")
    fluency: float = Field(
        0.0,
        ge=0,
        description="Weight of the mean log-probability of a line's tokens under the model that training began with: "
        "nonsense contradicts nobody, and must cost something. Needs beta.",
    )


class GRPO(DialogueTrainer):
    """Advantages of lines: what they are credited with, beside the other dialogues of their group."""

    _name = "Multi-turn GRPO"
    _tag_names = ["trl", "grpo", "user-simulator"]  # noqa: RUF012 (TRL's attribute)

    def __init__(self, recipe: Recipe, **options: Any):
        self.recipe = recipe
        super().__init__(**options)

    def advantages(self, output: dict[str, Tensor]) -> Tensor:
        recipe, device = self.recipe, self.accelerator.device
        lines = torch.zeros(1, self.rollout.turns, device=device)
        whole = torch.zeros(1, 1, device=device)
        for name, weight in self.rewards.weights.items():
            earned = weight * centred(self.line_rewards(name), recipe.group)
            if name == "qa":
                whole = whole + earned
            else:
                lines = lines + earned
        if recipe.fluency:
            lines = lines + recipe.fluency * centred(self._fluency(output), recipe.group)
        credited = returns(lines, recipe.credit, recipe.gamma, recipe.segment) + whole
        credited = scaled(credited, recipe.scale, recipe.group)
        return to_tokens(self.own(credited), self.turn_ids)

    def _fluency(self, output: dict[str, Tensor]) -> Tensor:
        """``[dialogues of all processes, turns]``: nats per token, NaN where nothing was said."""
        found = line_means(output["ref_per_token_logps"], self.turn_ids, self.rollout.turns)
        gathered: Tensor = self.accelerator.gather(found)
        self.note("fluency", gathered.nanmean().item())
        return gathered


def train(recipe: Recipe, out: Path, resume: bool = False) -> DialogueTrainer:
    """Train; see `online.run`.

    Raises:
        RecipeError: `fluency` without `beta`: nothing is computed with the model that training began with.
    """
    if recipe.fluency and not recipe.beta:
        raise common.RecipeError("fluency is not 0 but beta is: the model that training began with is not asked")
    return online.run(recipe, out, resume, partial(GRPO, recipe))


def main() -> None:
    """Parse the command line and train."""
    options = common.parser(__doc__).parse_args()
    with common.plain_errors():
        trainer = train(common.load_recipe(Recipe, options.config, options.set), options.out, options.resume)
        trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
