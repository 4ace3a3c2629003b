"""Supervised fine-tuning on what the judge found consistent.

python -m training.sft --config training/recipes/sft.yaml --out runs/sft
python -m training.sft --config training/recipes/sft.yaml --out runs/sft --resume
python -m training.sft --config training/recipes/sft.yaml --out runs/sft-smoke --set limit=4 epochs=1 accumulate=2

One row per dialogue. The loss is the mean of -log p over the tokens of consistent lines and the end tokens after them;
lines that contradict, or could not be judged, are context only. What follows too many contradicting lines is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from training import offline, offline_run, supervised
from training.offline import IGNORED, Dialogue, Row
from training.recipe import RecipeError
from training.supervised import DialogueSFTTrainer


class Recipe(offline.Recipe):
    """Settings of a run; unknown keys are errors."""

    tolerate: int | None = Field(
        3,
        ge=0,
        description="Lines after more contradicting ones than this are not trained on: to them, what has been said is "
        "somebody else. A few are wanted: the simulator must learn to find back from its own mistakes. null for all.",
    )


def rows(recipe: Recipe, dialogues: list[Dialogue]) -> list[Row]:
    """``{input_ids, labels, persona}`` for each dialogue with a trained token, up to its last one.

    Raises:
        RecipeError: There is no consistent line.
    """
    made = []
    for dialogue in dialogues:
        labels = [IGNORED] * len(dialogue.ids)
        contradictions, last = 0, 0
        for turn, outcome in enumerate(dialogue.outcomes, start=1):
            contradictions += outcome == "contradicts"
            if recipe.tolerate is not None and contradictions > recipe.tolerate:
                break
            if outcome == "consistent" and turn in dialogue.own_turns:
                start, last = dialogue.spans[turn - 1]
                labels[start:last] = dialogue.ids[start:last]
        if last:
            made.append({"input_ids": dialogue.ids[:last], "labels": labels[:last], "persona": dialogue.persona})
    if not made:
        raise RecipeError("no line of the data is consistent, or only after too many that are not (tolerate)")
    return made


def trainer(recipe: Recipe, model: Any, tokenizer: Any, made: list[Row], out: Path) -> DialogueSFTTrainer:
    """The trainer."""
    return supervised.make(DialogueSFTTrainer, recipe, model, tokenizer, made, out)


if __name__ == "__main__":
    offline_run.command(__doc__, Recipe, rows, trainer)
