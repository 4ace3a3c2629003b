"""Offline policy gradient with rewards of +1 and -1 (Shea & Yu, EMNLP 2023, arXiv 2310.10735).

python -m training.signed --config training/recipes/signed.yaml --out runs/signed
python -m training.signed --config training/recipes/signed.yaml --out runs/gold --set weights=gold

For each token of a line, with r = +1 if the line is consistent and -1 if it contradicts::

    loss = -r w log p          p: the probability of the token; w is a constant, no gradient flows through it

Importance weights correct for lines that another policy said; a product over a whole line has a variance without
bound, so each token has its own:

    varmi   w = 1 for r = +1, clamp(p, .01, 1) for r = -1     (a contradiction that is unlikely already is let be)
    gold    w = clamp(p, .01, 1) for both                     (Pang & He 2021, arXiv 2009.07839)

One row per dialogue; the loss is the mean over the tokens of all judged lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from training import offline
from training.offline import IGNORED, Dialogue, Row
from training.recipe import RecipeError

FLOOR = 0.01


class Recipe(offline.Recipe):
    """Settings of a run; unknown keys are errors."""

    weights: Literal["varmi", "gold"] = "varmi"
    penalty: float = Field(
        1, gt=0, le=1, description="The reward of a contradiction is -penalty; less than 1 where most lines contradict."
    )


def rows(recipe: Recipe, dialogues: list[Dialogue]) -> list[Row]:
    """``{input_ids, labels, rewards}`` for each dialogue with a judged line; the reward of other tokens is 0.

    Raises:
        RecipeError: There is no judged line.
    """
    made = []
    for dialogue in dialogues:
        labels, rewards, last = [IGNORED] * len(dialogue.ids), [0.0] * len(dialogue.ids), 0
        for turn in dialogue.own_turns:
            if (outcome := dialogue.outcomes[turn - 1]) != "unparsed":
                start, last = dialogue.spans[turn - 1]
                labels[start:last] = dialogue.ids[start:last]
                rewards[start:last] = [1.0 if outcome == "consistent" else -recipe.penalty] * (last - start)
        if last:
            made.append({"input_ids": dialogue.ids[:last], "labels": labels[:last], "rewards": rewards[:last]})
    if not made:
        raise RecipeError("no line of the data has a verdict that can be learned from (certain)")
    return made


def importance(logps: Tensor, rewards: Tensor, kind: str) -> Tensor:
    """The weight w of each token, without gradient.

    Args:
        logps: log p of each token, any shape.
        rewards: Its reward, the same shape.
        kind: "varmi" or "gold".
    """
    clamped = logps.detach().exp().clamp(FLOOR, 1.0)
    return torch.where(rewards > 0, torch.ones_like(clamped), clamped) if kind == "varmi" else clamped


@dataclass
class WithRewards(DataCollatorForLanguageModeling):
    """TRL's collator, and ``rewards``, ``[rows, tokens]``."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super().torch_call([{k: v for k, v in e.items() if k != "rewards"} for e in examples])
        output["rewards"] = torch.zeros(output["input_ids"].shape)
        for row, example in enumerate(examples):
            output["rewards"][row, : len(example["rewards"])] = torch.tensor(example["rewards"])
        return output


class SignedTrainer(SFTTrainer):
    """SFT whose tokens have rewards and importance weights. Logs the mean probability of each kind of token."""

    weights = "varmi"

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, rewards = inputs["labels"], inputs["rewards"][:, 1:]
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            use_cache=False,
            fused_lm_head=True,
        )
        logps = outputs.log_probs  # [rows, tokens - 1], 0 where there is no label
        loss = -(rewards * importance(logps, rewards, self.weights) * logps).sum()
        for name, kind in (("consistent", rewards > 0), ("contradicts", rewards < 0)):
            if kind.any():
                self._metrics["train"][f"p/{name}"].append(logps.detach()[kind].exp().mean().item())
        loss = loss / ((labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def trainer(recipe: Recipe, model: Any, tokenizer: Any, made: list[Row], out: Path) -> SignedTrainer:
    """The trainer."""
    made_trainer = SignedTrainer(
        model=model,
        args=offline.arguments(SFTConfig, recipe, out),
        data_collator=WithRewards(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(made),
        processing_class=tokenizer,
        peft_config=offline.adapter(recipe, model),
    )
    made_trainer.weights = recipe.weights
    return made_trainer


if __name__ == "__main__":
    offline.command(__doc__, Recipe, rows, trainer)
