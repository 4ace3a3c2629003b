"""How good a judge is, where it was measured."""

from __future__ import annotations

import json

from persona_tasks.personas import BANK

CARDS = BANK / "judge_cards"


def judge_kappa(judge: str) -> float | None:
    """Cohen's κ of a judge with the labels of its judge card, `judge_cards/<judge>.json` with `/` written as `--`.

    Returns:
        None where there is no card.

    Raises:
        KeyError: The card has no `kappa`.
    """
    card = CARDS / f"{judge.replace('/', '--')}.json"
    if not judge or not card.is_file():
        return None
    return float(json.loads(card.read_text(encoding="utf-8"))["kappa"])
