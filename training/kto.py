"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306) on single lines: consistent is desirable, contradicting is not.

python -m training.kto --config training/recipes/kto.yaml --out runs/kto
python -m training.kto --config training/recipes/kto.yaml --out runs/kto-smoke --set limit=8 accumulate=2

One row per line: the prompt the simulator saw, what it said, and whether that was consistent. Unparsed lines are left
out. The reference paper's code has the labels the wrong way round; a test holds ours. TRL estimates the KL term from
each prompt with the line of its neighbour in the batch and takes the rows in their order, so every batch is made of
lines of different personas.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import Field
from trl import KTOConfig, KTOTrainer

from training import offline, offline_run
from training.offline import Dialogue, Row
from training.recipe import RecipeError


class Recipe(offline.Recipe):
    """Settings of a run; unknown keys are errors."""

    batch: int = Field(4, ge=2, description="Rows that are computed at once; the KL term needs two.")
    accumulate: int = Field(4, gt=0, description="Such batches per step.")
    beta: float = Field(0.1, gt=0, description="How strongly the base is held on to.")


def rows(recipe: Recipe, dialogues: list[Dialogue]) -> list[Row]:
    """``{prompt_ids, completion_ids, label, persona}`` for each judged line.

    Raises:
        RecipeError: All lines have the same label.
    """
    made = [
        {
            "prompt_ids": dialogue.prompt(turn),
            "completion_ids": dialogue.line(turn),
            "label": dialogue.outcomes[turn - 1] == "consistent",
            "persona": dialogue.persona,
        }
        for dialogue in dialogues
        for turn in dialogue.own_turns
        if dialogue.outcomes[turn - 1] != "unparsed"
    ]
    if len({row["label"] for row in made}) < 2:
        raise RecipeError("KTO needs consistent and contradicting lines; the data has lines of one kind at most")
    return made


def batches(made: list[Row], size: int, seed: int) -> list[Row]:
    """The rows in a random order in which each `size` of them are of different personas, with `KL_completion_ids`.

    Rows that are left over when too few personas have any left are left out.

    Raises:
        RecipeError: There are fewer personas than a batch has rows.
    """
    rng = random.Random(seed)
    left: dict[str, list[Row]] = {}
    for row in rng.sample(made, len(made)):
        left.setdefault(row["persona"], []).append(row)
    if len(left) < size:
        raise RecipeError(f"batch: {size} rows of different personas; the data has lines of {len(left)}")
    groups = []
    while len(left) >= size:
        # those with most rows left go first, so that few are left over; sorted() keeps the shuffled order of equals
        shuffled = rng.sample(sorted(left), len(left))
        chosen = sorted(shuffled, key=lambda persona: -len(left[persona]))[:size]
        groups.append([left[persona].pop() for persona in chosen])
        left = {persona: rest for persona, rest in left.items() if rest}
    rng.shuffle(groups)
    return [
        {**row, "KL_completion_ids": neighbour["completion_ids"]}
        for group in groups
        for row, neighbour in zip(group, [group[-1], *group[:-1]], strict=True)
    ]


def weights(made: list[Row]) -> dict[str, float]:
    """Weights with which both labels count the same: (desirable weight) n+ = (undesirable weight) n-, at most 1."""
    good = sum(row["label"] for row in made)
    bad = len(made) - good
    return {"desirable_weight": min(1.0, bad / max(good, 1)), "undesirable_weight": min(1.0, good / max(bad, 1))}


class TokenisedKTOTrainer(KTOTrainer):
    """Takes rows that are tokens already: our prompts are those of the engine, not of TRL's rendering."""

    def _prepare_dataset(self, dataset: Dataset, *others: Any) -> Dataset:
        return dataset


def trainer(recipe: Recipe, model: Any, tokenizer: Any, made: list[Row], out: Path) -> KTOTrainer:
    """The trainer; where all weights are trained, it holds on to a copy of the base."""
    ordered = batches(made, recipe.batch, recipe.seed)
    if len({row["label"] for row in ordered}) < 2:
        raise RecipeError("KTO needs consistent and contradicting lines; those that were drawn are of one kind (limit)")
    settings = {"beta": recipe.beta, **weights(ordered)}
    return TokenisedKTOTrainer(
        model=model,
        ref_model=offline_run.reference(recipe, model),
        args=offline_run.arguments(KTOConfig, recipe, out, **settings),
        train_dataset=Dataset.from_list(ordered),
        processing_class=tokenizer,
        peft_config=offline_run.adapter(recipe, model),
    )


if __name__ == "__main__":
    offline_run.command(__doc__, Recipe, rows, trainer)
