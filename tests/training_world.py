"""A few short personas for training on a tiny model, whose byte-level tokenizer makes long texts of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import tiny_model_folder

GUARDS = {"prompt_to_line": 0, "line_to_line": 0, "role_flip": 0}
"""Weights that leave out the judge."""
PERSONA = """
  - id: short-{number}
    name: Ada
    description: You are Ada.
    facts: [{{attribute: job, value: baker}}]
    questions: [{{question: Job?, options: [baker, pilot, nurse, judge, tailor], answer: 0, about: job}}]
"""


def tiny_world(root: Path) -> Path:
    """A model folder, and beside it the folder `bank` with four personas."""
    (root / "bank").mkdir()
    people = "".join(PERSONA.format(number=number) for number in range(4))
    (root / "bank" / "people.yaml").write_text(f"scenario: chat\nsplit: train\npersonas:{people}")
    return tiny_model_folder(root, max_position_embeddings=16384)


def small(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for seconds: one step of eight dialogues of two short lines, without a judge."""
    usual = {
        "base": str(folder),
        "personas": str(folder.parent / "bank"),
        "judge": str(folder),
        "dialogues": 8,
        "group": 4,
        "turns": 2,
        "steps": 1,
        "batch": 8,
        "line_tokens": 10,
        "questions": 1,
        "rank": 4,
        "dtype": "float32",
        "learning_rate": 0.01,
        "rewards": GUARDS,
        "save_every": 1,
    }
    return {**usual, **changes}
