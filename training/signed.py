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

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from persona_tasks.monitors import words
from persona_tasks.transcript import Transcript
from training import offline, offline_run, supervised
from training.offline import IGNORED, Dialogue, Row
from training.recipe import RecipeError
from training.rewards import copying_penalties, repetition_penalties
from training.supervised import DialogueSFTTrainer

FLOOR = 0.01


class Recipe(offline.Recipe):
    """Settings of a run; unknown keys are errors."""

    weights: Literal["varmi", "gold"] = "varmi"
    penalty: float = Field(
        1, gt=0, le=1, description="The reward of a contradiction is -penalty; less than 1 where most lines contradict."
    )
    shortest: int = Field(
        0,
        ge=0,
        description="A consistent line with fewer words earns nothing: who says little is wrong less often, and would "
        "be taught to say less.",
    )
    echoed: float = Field(
        1,
        ge=0,
        le=1,
        description="Nor does one of whose word 3-grams a larger share than this stands in the persona, or was said "
        "before: reciting is the other way of never being wrong.",
    )


def rows(recipe: Recipe, dialogues: list[Dialogue]) -> list[Row]:
    """``{input_ids, labels, rewards, persona}`` for each dialogue with a judged line; the reward of other tokens is 0.

    Raises:
        RecipeError: There is no judged line.
    """
    made = []
    for dialogue in dialogues:
        labels, rewards, last = [IGNORED] * len(dialogue.ids), [0.0] * len(dialogue.ids), 0
        earns = earning(recipe, dialogue.record.transcript)
        for turn in dialogue.own_turns:
            outcome = dialogue.outcomes[turn - 1]
            if outcome == "contradicts" or (outcome == "consistent" and earns[turn - 1]):
                start, last = dialogue.spans[turn - 1]
                labels[start:last] = dialogue.ids[start:last]
                rewards[start:last] = [1.0 if outcome == "consistent" else -recipe.penalty] * (last - start)
        if last:
            row = {"input_ids": dialogue.ids[:last], "labels": labels[:last], "rewards": rewards[:last]}
            made.append({**row, "persona": dialogue.persona})
    if not made:
        raise RecipeError("no line of the data has a verdict that can be learned from (certain)")
    return made


def earning(recipe: Recipe, transcript: Transcript) -> list[bool]:
    """For each line, whether it is long enough, and enough of it the simulator's own and new, to earn something."""
    copied = copying_penalties(transcript.lines, transcript.persona_text)
    repeated = repetition_penalties(transcript.lines)
    return [
        len(words(line)) >= recipe.shortest and all((penalty or 0) >= -recipe.echoed for penalty in penalties)
        for line, *penalties in zip(transcript.lines, copied, repeated, strict=True)
    ]


def importance(logps: Tensor, rewards: Tensor, kind: str) -> Tensor:
    """The weight w of each token, without gradient.

    Args:
        logps: log p of each token, any shape.
        rewards: Its reward, the same shape.
        kind: "varmi" or "gold".
    """
    clamped = logps.detach().exp().clamp(FLOOR, 1.0)
    return torch.where(rewards > 0, torch.ones_like(clamped), clamped) if kind == "varmi" else clamped


class SignedTrainer(DialogueSFTTrainer):
    """SFT whose tokens have rewards and importance weights. Logs the mean probability of each kind of token."""

    weights = "varmi"

    def losses(self, logps: Tensor, places: Tensor, inputs: dict[str, Any]) -> Tensor:
        rewards = inputs["rewards"][places[:, 0], places[:, 1]]
        for name, kind in (("consistent", rewards > 0), ("contradicts", rewards < 0)):
            if kind.any():
                self._metrics["train"][f"p/{name}"].append(logps.detach()[kind].exp().mean().item())
        return -(rewards * importance(logps, rewards, self.weights) * logps)


def trainer(recipe: Recipe, model: Any, tokenizer: Any, made: list[Row], out: Path) -> SignedTrainer:
    """The trainer."""
    made_trainer = supervised.make(SignedTrainer, recipe, model, tokenizer, made, out)
    made_trainer.weights = recipe.weights
    return made_trainer


if __name__ == "__main__":
    offline_run.command(__doc__, Recipe, rows, trainer)
