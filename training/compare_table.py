"""From judged dialogues of several models to one table: scores, what changed against the base, and whether by cheating.

All cells (trained models) of one method share a row. Its numbers are over the dialogues of all its training seeds, and
everything compared with the base is compared on the personas that both have:

    reduction      = 1 - (1 - score) / (1 - score of the base)       the relative drop of *in*consistency
    survival ratio = S(T) / S(T) of the base                         S: share of dialogues without a contradiction

Intervals are 95 % and from a *crossed* bootstrap: each resample draws personas, the same for the method and the base,
and independently training seeds of the method; a dialogue counts (times its persona was drawn) x (times its seed was
drawn) (the pigeonhole bootstrap of Owen 2007, https://doi.org/10.1214/07-AOAS122). With a single training seed there is
nothing to draw: the interval then says nothing about training again. Of three seeds the spread is known badly (a
bootstrap of n values understates its variance by (n-1)/n), so the reduction of each seed stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from persona_tasks.agreement import Statistic
from persona_tasks.metrics import (
    RESAMPLES,
    Array,
    Estimates,
    bootstrap_weights,
    dialogue_score,
    estimate,
    finite,
    interval,
    outcome_grid,
    scores_by_persona,
)
from persona_tasks.monitors import MONITORS
from persona_tasks.report.paired import paired_test
from persona_tasks.scoring import Result, aggregate
from persona_tasks.transcript import METRICS, Judged, Metric

BASE = "base"


@dataclass(frozen=True)
class Played:
    """The judged dialogues of one cell; `expected` is how many there will be when it is done, 0 without weights."""

    name: str
    method: str
    seed: int
    expected: int
    records: list[Judged]

    @property
    def status(self) -> str:
        if not self.expected and not self.records:
            return "not run"
        done = f"{len(self.records)} dialogues"
        return done if len(self.records) == self.expected else f"{len(self.records)} of {self.expected} dialogues"


class Guard(NamedTuple):
    """What a monitor must not do, by a method's value and the base's."""

    rule: str
    holds: Callable[[float, float], bool]


GUARDS: dict[str, Guard] = {
    "distinct_2": Guard("at least 95 % of the base's", lambda own, base: own >= 0.95 * base),
    "line_length": Guard("at least 75 % of the base's", lambda own, base: own >= 0.75 * base),
    "self_repetition": Guard("not above the base's", lambda own, base: own <= base),
    "persona_copying": Guard("not above the base's", lambda own, base: own <= base),
}
"""A simulator can be consistent by repeating itself, saying little, or reciting its persona. Decided by the values
themselves; the intervals stand beside them."""


class MetricResult(Result):
    """One metric of one method; what is compared with the base is None for the base itself."""

    score: Statistic
    slope: Statistic
    survival: Statistic = Field(description="Share of dialogues without a contradiction up to the last turn.")
    n: int = Field(description="Dialogues with a score.")
    personas: int
    unparsed: float | None = Field(description="Share of verdicts that could not be read.")
    reduction: Statistic | None = None
    reduction_by_seed: dict[int, float | None] = Field({}, description="Of each training seed by itself.")
    absolute: Statistic | None = Field(None, description="score - score of the base.")
    survival_gain: Statistic | None = None
    survival_ratio: Statistic | None = Field(None, description="No number where none of the base's dialogues survives.")
    p: float | None = Field(None, description="Paired permutation test over personas; see persona_tasks.report.paired.")


class MonitorResult(Result):
    """One monitor of one method."""

    value: float
    ratio: Statistic | None = Field(None, description="To the base's value.")
    difference: Statistic | None = None
    guard: str = ""
    holds: bool | None = Field(None, description="Whether the guard holds; None without one, and for the base.")


class MethodResult(Result):
    """A row."""

    method: str
    cells: dict[str, str] = Field(description="How far each cell is: `not run`, `40 dialogues`, `12 of 40 dialogues`.")
    seeds: list[int] = Field(description="Training seeds that there are dialogues of.")
    dialogues: int
    ended_early: int
    metrics: dict[Metric, MetricResult] = Field({}, description="Empty without dialogues.")
    monitors: dict[str, MonitorResult] = Field({}, description="Empty without dialogues.")

    @property
    def guards_hold(self) -> bool:
        return all(found.holds is not False for found in self.monitors.values())


class Results(Result):
    """Everything a reader needs to judge the table, or to make it again."""

    judge: str
    judge_worth: str
    judge_kappa: dict[str, float | None]
    weights: dict[str, dict[str, str]] = Field(description="sha256 of the safetensors of the judge and of each cell.")
    origin: dict[str, Any]
    trained: dict[str, dict[str, Any]] = Field(description="By cell: origin.json of its training run.")
    recipe: dict[str, Any]
    notes: list[str]
    conditions: dict[str, list[MethodResult]]


def compare(cells: Sequence[Played], turns: int, resamples: int = RESAMPLES, seed: int = 0) -> list[MethodResult]:
    """One row for each method, in the order of the cells; the others are compared with the one called `BASE`."""
    methods: dict[str, list[Played]] = {}
    for cell in cells:
        methods.setdefault(cell.method, []).append(cell)
    base = methods.get(BASE, [])
    return [_method(name, own, [] if name == BASE else base, turns, resamples, seed) for name, own in methods.items()]


# --------------------------------------------------------------------------------------------- resamples and numbers


class Sample(NamedTuple):
    """Dialogues and their weights: row 0 counts each once, the others are resamples. weights: (1 + R, D)."""

    records: list[Judged]
    weights: Array


def crossed(
    base: Sequence[Played], method: Sequence[Played], resamples: int, seed: int, keep: Callable[[Judged], bool]
) -> tuple[Sample, Sample]:
    """Draw personas for both sides and training seeds for the method.

    Args:
        base, method: Their cells; `base` may be empty.
        keep: Dialogues that are left out of both.

    Returns:
        Base and method. There are no resamples (R = 0) with a single persona.
    """
    before = [record for cell in base for record in cell.records if keep(record)]
    after = [(cell.seed, record) for cell in method for record in cell.records if keep(record)]
    people = [record.transcript.persona_id for record in [*before, *(record for _, record in after)]]
    drawn = bootstrap_weights(people, resamples, seed)
    seeds = bootstrap_weights([str(own) for own, _ in after], len(drawn), seed + 1)
    left, right = drawn[:, : len(before)], drawn[:, len(before) :]
    if len(seeds) and len(seeds) == len(right):
        right = right * seeds
    return (
        Sample(before, np.vstack([np.ones(len(before)), left])),
        Sample([record for _, record in after], np.vstack([np.ones(len(after)), right])),
    )


def _estimate(sample: Sample, metric: Metric, turns: int) -> Estimates:
    scores = [dialogue_score(record.of(metric)) for record in sample.records]
    known = np.array([np.nan if score is None else score for score in scores])
    return estimate(sample.weights, known, outcome_grid(sample.records, metric, turns))


def _method(
    name: str, own: Sequence[Played], base: Sequence[Played], turns: int, resamples: int, seed: int
) -> MethodResult:
    records = [record for cell in own for record in cell.records]
    row = MethodResult(
        method=name,
        cells={cell.name: cell.status for cell in own},
        seeds=sorted({cell.seed for cell in own if cell.records}),
        dialogues=len(records),
        ended_early=sum(record.transcript.ended is not None for record in records),
    )
    if not records:
        return row
    metrics = {metric: _metric(own, base, metric, turns, resamples, seed) for metric in METRICS}
    monitors = {monitor: _monitor(own, base, monitor, resamples, seed) for monitor in MONITORS}
    return row.model_copy(update={"metrics": metrics, "monitors": monitors})


def _metric(
    own: Sequence[Played], base: Sequence[Played], metric: Metric, turns: int, resamples: int, seed: int
) -> MetricResult:
    everything = [record for cell in own for record in cell.records]
    counts = aggregate(everything, metric, resamples=0)
    withheld = counts.score is None
    found = _estimate(crossed([], own, resamples, seed, lambda record: True)[1], metric, turns)
    nothing = Statistic(value=None)
    result = MetricResult(
        score=nothing if withheld else statistic(found.mean),
        slope=nothing if withheld else statistic(found.slope),
        survival=nothing if withheld else statistic(found.survival[:, -1]),
        n=counts.n,
        personas=counts.clusters,
        unparsed=counts.unparsed,
    )
    before = [record for cell in base for record in cell.records]
    shared = scores_by_persona(before, metric).keys() & scores_by_persona(everything, metric).keys()
    if withheld or not shared:
        return result
    one, other = crossed(base, own, resamples, seed, lambda record: record.transcript.persona_id in shared)
    a, b = _estimate(one, metric, turns), _estimate(other, metric, turns)
    alone = {cell.seed: _reduction_alone(base, cell, metric, turns) for cell in own if cell.records}
    test = paired_test(before, everything, metric, seed)
    return result.model_copy(
        update={
            "reduction": statistic(1 - ratio(1 - b.mean, 1 - a.mean)),
            "reduction_by_seed": alone,
            "absolute": statistic(b.mean - a.mean),
            "survival_gain": statistic(b.survival[:, -1] - a.survival[:, -1]),
            "survival_ratio": statistic(ratio(b.survival[:, -1], a.survival[:, -1])),
            "p": test.p if test else None,
        }
    )


def _reduction_alone(base: Sequence[Played], cell: Played, metric: Metric, turns: int) -> float | None:
    """Of one training seed."""
    before = scores_by_persona([record for other in base for record in other.records], metric)
    shared = before.keys() & scores_by_persona(cell.records, metric).keys()
    if not shared:
        return None
    one, other = crossed(base, [cell], 0, 0, lambda record: record.transcript.persona_id in shared)
    a, b = _estimate(one, metric, turns), _estimate(other, metric, turns)
    return finite(float((1 - ratio(1 - b.mean, 1 - a.mean))[0]))


def _monitor(own: Sequence[Played], base: Sequence[Played], name: str, resamples: int, seed: int) -> MonitorResult:
    function, guard = MONITORS[name], GUARDS.get(name)
    value = fmean(function(record.transcript) for cell in own for record in cell.records)
    sides = [{r.transcript.persona_id for cell in side for r in cell.records} for side in (base, own)]
    shared = sides[0] & sides[1]
    if not shared:
        return MonitorResult(value=value, guard=guard.rule if guard else "")
    samples = crossed(base, own, resamples, seed, lambda record: record.transcript.persona_id in shared)
    values = [np.array([function(record.transcript) for record in sample.records]) for sample in samples]
    a, b = (s.weights @ v / s.weights.sum(axis=1) for s, v in zip(samples, values, strict=True))
    return MonitorResult(
        value=value,
        ratio=statistic(ratio(b, a)),
        difference=statistic(b - a),
        guard=guard.rule if guard else "",
        holds=guard.holds(float(b[0]), float(a[0])) if guard else None,
    )


def ratio(above: Array, below: Array) -> Array:
    """above / below; where `below` is 0, inf, or NaN if both are."""
    result: Array = np.where(above > 0, np.inf, np.nan)
    np.divide(above, below, out=result, where=below != 0)
    return result


def statistic(samples: Array) -> Statistic:
    """Row 0 is the value itself, the others are resamples."""
    return Statistic(value=finite(samples[0]), interval=interval(samples[1:]) if len(samples) > 1 else None)
