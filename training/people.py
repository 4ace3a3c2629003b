"""People to train on: those of the bank's train split, and more whom only training knows (``training/people``).

They were invented, with what they say in `training.written`, by a large language model (training/README.md). No metric,
no judge and no test reads them: a simulator that has met more people reads a new one's description better.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from persona_tasks.personas import Bank, load_bank

FOLDER = Path(__file__).parent / "people"


@cache
def training_bank() -> Bank:
    """Our bank, and the further people.

    Raises:
        BankError: A file is broken; see `load_bank`.
    """
    ours, more = load_bank(), load_bank(str(FOLDER))
    return Bank([*ours.personas, *more.personas], ours.scenarios.values(), ours.scripts.values())
