"""How well a judge's verdicts agree with labels: accuracy, AUC, F1, Cohen's kappa, with intervals clustered by persona.

`contradicts` is the positive class. An `unparsed` verdict is no verdict: it leaves the statistics, and its share stands
beside them. AUC uses the judge's probability of `contradicts`; a judge that gives none is ranked by its verdict alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from persona_tasks.calibration import Item
from persona_tasks.metrics import Array, Interval, bootstrap_weights, finite, interval
from persona_tasks.transcript import Outcome, Verdict

RESAMPLES = 300  # AUC is computed one resample at a time


@dataclass(frozen=True)
class Row:
    """One verdict beside its label.

    Attributes:
        set, metric, scenario, kind: Where the item comes from.
        cluster: The persona; items of one are not independent.
        conflicts: line_to_line: the earlier turns that the label says are in conflict.
    """

    id: str
    set: str
    metric: str
    scenario: str
    kind: str
    cluster: str
    label: Outcome
    conflicts: tuple[int, ...]
    verdict: Verdict

    @classmethod
    def of(cls, item: Item, verdict: Verdict) -> Row:
        """A verdict on an item."""
        return cls(
            item.id, item.set, item.metric, item.scenario, item.kind, item.cluster, item.label, item.conflicts, verdict
        )

    @property
    def score(self) -> float:
        """What the item is ranked by: the probability of `contradicts`, or the verdict."""
        p = self.verdict.p_contradicts
        return float(self.verdict.outcome == "contradicts") if p is None else p


class Statistic(BaseModel):
    """A number and its 95 % interval, clustered by persona; None where it is not defined."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float | None
    interval: Interval | None = None


def confusion(rows: Sequence[Row], weights: Array | None = None) -> Array:
    """Weighted counts of (true positives, false positives, false negatives, true negatives).

    Args:
        rows: D rows, all readable.
        weights: (R, D); None for once each, R = 1.

    Returns:
        Array (R, 4).
    """
    said = np.array([row.verdict.outcome == "contradicts" for row in rows], dtype=bool)
    right = np.array([row.label == "contradicts" for row in rows], dtype=bool)
    cells = np.stack([said & right, said & ~right, ~said & right, ~said & ~right], axis=1).astype(float)
    counts: Array = (np.ones((1, len(rows))) if weights is None else weights) @ cells
    return counts


def accuracy(cells: Array) -> Array:
    """(tp + tn) / all."""
    return _ratio(cells[:, 0] + cells[:, 3], cells.sum(axis=1))


def f1(cells: Array) -> Array:
    """2 tp / (2 tp + fp + fn) of `contradicts`."""
    return _ratio(2 * cells[:, 0], 2 * cells[:, 0] + cells[:, 1] + cells[:, 2])


def sensitivity(cells: Array) -> Array:
    """tp / (tp + fn): the share of contradictions that are found."""
    return _ratio(cells[:, 0], cells[:, 0] + cells[:, 2])


def specificity(cells: Array) -> Array:
    """tn / (tn + fp): the share of consistent lines that are called so."""
    return _ratio(cells[:, 3], cells[:, 3] + cells[:, 1])


def kappa(cells: Array) -> Array:
    """Cohen's kappa: agreement beyond what the two margins would give by chance (Cohen 1960)."""
    tp, fp, fn, tn = cells.T
    total = cells.sum(axis=1)
    expected = _ratio((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp), total**2)
    return _ratio(accuracy(cells) - expected, 1 - expected)


def auc(rows: Sequence[Row], weights: Array | None = None) -> Array:
    """Area under the ROC curve of `Row.score`, for each weighting: (R,)."""
    from sklearn.metrics import roc_auc_score  # a second to import

    right = [row.label == "contradicts" for row in rows]
    scores = [row.score for row in rows]
    rounds = np.ones((1, len(rows))) if weights is None else weights

    def one(weight: Array) -> float:
        both = {label for label, w in zip(right, weight, strict=True) if w > 0}
        return float(roc_auc_score(right, scores, sample_weight=weight)) if len(both) == 2 else float("nan")

    return np.array([one(weight) for weight in rounds])


COUNTED: dict[str, Callable[[Array], Array]] = {
    "accuracy": accuracy,
    "f1": f1,
    "kappa": kappa,
    "sensitivity": sensitivity,
    "specificity": specificity,
}


def statistics(rows: Sequence[Row], resamples: int = RESAMPLES) -> dict[str, Statistic]:
    """Every statistic of some verdicts, with intervals; empty without a readable verdict."""
    rows = [row for row in rows if row.verdict.outcome != "unparsed"]
    if not rows:
        return {}
    weights = bootstrap_weights([row.cluster for row in rows], resamples)
    once, often = confusion(rows), confusion(rows, weights)
    found = {
        name: Statistic(value=finite(float(of(once)[0])), interval=interval(of(often)) if len(often) else None)
        for name, of in COUNTED.items()
    }
    within = interval(auc(rows, weights)) if len(weights) else None
    found["auc"] = Statistic(value=finite(float(auc(rows)[0])), interval=within)
    return found


def unparsed(rows: Sequence[Row]) -> float:
    """The share of verdicts that could not be read."""
    return sum(row.verdict.outcome == "unparsed" for row in rows) / max(1, len(rows))


def index_recovery(rows: Sequence[Row]) -> float | None:
    """Of the line-to-line contradictions that were found: the share where a line named is one of the label's."""
    found = [row for row in rows if row.conflicts and row.verdict.outcome == "contradicts"]
    return sum(bool(set(row.conflicts) & set(row.verdict.conflicts)) for row in found) / len(found) if found else None


def corrected(
    score: float, variance: float, sensitivity: tuple[float, int], specificity: tuple[float, int]
) -> tuple[float, Interval] | None:
    """A score corrected for the judge's known errors (Rogan & Gladen 1978), with a 95 % interval (delta method).

    With q the share of lines called contradictions, J = sensitivity + specificity - 1:
    true share = (q + specificity - 1) / J, and its variance [Var q + share^2 Var sens + (1 - share)^2 Var spec] / J^2.

    Args:
        score: The raw score, 1 - q.
        variance: Of the raw score.
        sensitivity, specificity: Each with the number of labelled items it was measured on.

    Returns:
        The corrected score and its interval, both cut off at 0 and 1; None if the judge hardly tells apart (J <= 0.05),
        or if all of the interval lies beyond 0 or 1: then its errors on these lines are not those that are known.
    """
    (sens, positives), (spec, negatives) = sensitivity, specificity
    informedness = sens + spec - 1
    if informedness <= 0.05 or not positives or not negatives:
        return None
    share = (1 - score + spec - 1) / informedness
    spread = variance + share**2 * sens * (1 - sens) / positives + (1 - share) ** 2 * spec * (1 - spec) / negatives
    half = 1.96 * float(np.sqrt(spread)) / informedness
    low, high = 1 - share - half, 1 - share + half
    if low > 1 or high < 0:
        return None
    return float(np.clip(1 - share, 0, 1)), (float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))


def _ratio(above: Array, below: Array) -> Array:
    result: Array = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=result, where=below != 0)
    return result
