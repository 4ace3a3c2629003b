"""DPO (Rafailov et al. 2023, arXiv 2305.18290) on single lines, or on segments of several turns.

python -m training.dpo --config training/recipes/dpo_line.yaml --out runs/dpo-line
python -m training.dpo --config training/recipes/dpo_segment.yaml --out runs/dpo-segment

Segments that go on from the same prefix, as `training.data branch` makes them, are compared: the best with the worst.
The loss is that of SDPO (Kong et al. 2025, arXiv 2501.01821)::

    -log sigma(beta (sum over the chosen segment's tokens of log p/p_base - the same of the rejected one))

over the simulator's own tokens: what the partner says in a segment is context. Both segments have as many turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from training import offline, offline_run
from training.offline import Dialogue, Row
from training.recipe import RecipeError


class Recipe(offline.Recipe):
    """Settings of a run; unknown keys are errors."""

    level: Literal["line", "segment"] = Field("segment", description="What is compared.")
    beta: float = Field(0.1, gt=0, description="How strongly the base is held on to.")
    margin: float = Field(0.1, ge=0, le=1, description="Pairs whose scores differ by less are left out.")


@dataclass(frozen=True)
class Segment:
    """Some turns that follow a prefix.

    Attributes:
        prefix: Tokens before them, the partner's first line of the segment included.
        ids: Their tokens.
        mask: 1 for the simulator's own tokens.
        score: Mean over the lines of how consistent each is, from 0 to 1.
        turns: How many.
    """

    prefix: tuple[int, ...]
    ids: list[int]
    mask: list[int]
    score: float
    turns: int


def segment(dialogue: Dialogue, first: int, turns: int) -> Segment | None:
    """`turns` turns from `first` on; None where the dialogue ended before, or a line could not be judged."""
    scores = [score for score in dialogue.scores[first - 1 : first - 1 + turns] if score is not None]
    if len(scores) < turns:
        return None
    spans = dialogue.spans[first - 1 : first - 1 + turns]
    begin, finish = spans[0][0], spans[-1][1]
    own = {place for start, end in spans for place in range(start, end)}
    mask = [int(place in own) for place in range(begin, finish)]
    return Segment(tuple(dialogue.ids[:begin]), dialogue.ids[begin:finish], mask, fmean(scores), turns)


def segments(dialogues: list[Dialogue], level: str) -> list[Segment]:
    """All that can be compared: every line; or every branch, and of its parent the same turns."""
    if level == "line":
        places = [(dialogue, turn, 1) for dialogue in dialogues for turn in dialogue.own_turns]
    else:
        facts = {dialogue.record.transcript.id: dialogue.record.transcript.metadata for dialogue in dialogues}
        branched = {(f["parent"], f["branch"], f["segment"]) for f in facts.values() if "parent" in f}
        known = {dialogue.record.transcript.id: dialogue for dialogue in dialogues}
        places = [(known[parent], first, turns) for parent, first, turns in sorted(branched) if parent in known]
        places += [(known[name], f["branch"], f["segment"]) for name, f in facts.items() if "parent" in f]
    found = [segment(*place) for place in places]
    return [part for part in found if part is not None]


def rows(recipe: Recipe, dialogues: list[Dialogue]) -> list[Row]:
    """``{prompt_ids, chosen_ids, chosen_mask, rejected_ids, rejected_mask}``, one pair for each prefix.

    Raises:
        RecipeError: There is no pair.
    """
    groups: dict[tuple[tuple[int, ...], int], list[Segment]] = {}
    for part in segments(dialogues, recipe.level):
        groups.setdefault((part.prefix, part.turns), []).append(part)
    made = []
    for (prefix, _), parts in groups.items():
        best, worst = max(parts, key=lambda part: part.score), min(parts, key=lambda part: part.score)
        if best.score > worst.score and best.score - worst.score >= recipe.margin:
            chosen = {"chosen_ids": best.ids, "chosen_mask": best.mask}
            made.append({"prompt_ids": list(prefix), **chosen, "rejected_ids": worst.ids, "rejected_mask": worst.mask})
    if not made:
        raise RecipeError(
            f"no pair in the data: {sum(map(len, groups.values()))} {recipe.level}s after {len(groups)} prefixes, "
            f"and no two after the same one with scores that differ by {recipe.margin}; see `training.data branch`"
        )
    return made


@dataclass
class OwnTokens(DataCollatorForPreference):
    """TRL's collator, which trains everything after the prompt, held to the simulator's own tokens."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """``[2 x pairs, tokens]`` each: the chosen segments above the rejected ones."""
        output: dict[str, Any] = super().torch_call(examples)
        keys = ("chosen_mask", "rejected_mask")
        sides = [(example["prompt_ids"], example[key]) for key in keys for example in examples]
        output["completion_mask"].zero_()
        for row, (prompt, mask) in enumerate(sides):
            output["completion_mask"][row, len(prompt) : len(prompt) + len(mask)] = torch.tensor(mask)
        return output


class TokenisedDPOTrainer(DPOTrainer):
    """Takes rows that are tokens already: our prompts are those of the engine, not of TRL's rendering."""

    def _prepare_dataset(self, dataset: Dataset, *others: Any) -> Dataset:
        return dataset


def trainer(recipe: Recipe, model: Any, tokenizer: Any, made: list[Row], out: Path) -> DPOTrainer:
    """The trainer; where all weights are trained, it holds on to a copy of the base."""
    return TokenisedDPOTrainer(
        model=model,
        ref_model=offline_run.reference(recipe, model),
        args=offline_run.arguments(DPOConfig, recipe, out, beta=recipe.beta, loss_type=["sigmoid"]),
        data_collator=OwnTokens(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(made),
        processing_class=tokenizer,
        peft_config=offline_run.adapter(recipe, model),
    )


if __name__ == "__main__":
    offline_run.command(__doc__, Recipe, rows, trainer)
