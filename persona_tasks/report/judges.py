"""How good a judge is, where it was measured."""

from __future__ import annotations

from persona_tasks.judge_card import known_card


def judge_kappa(judge: str, metric: str) -> float | None:
    """Cohen's κ of a judge with labels, from the judge card that comes with the package.

    Args:
        judge: Its name, as the log names it.
        metric: A judge may read a line against the persona well and lines against each other badly.

    Returns:
        None where there is no card, or none for the metric.
    """
    card = known_card(judge)
    part = card.of(metric) if card else None
    return part.statistics["kappa"].value if part and "kappa" in part.statistics else None
