"""Verdicts in, numbers out: the three scores, their curves over turns, survival, and intervals for all of them.

Scores of one dialogue (Abdulhai et al. 2025, arXiv 2511.00222, eq. 1-3), J = 1 where the verdict is `consistent`::

    prompt_to_line = 1/T     Σ_t   J(P, r_t)
    line_to_line   = 1/(T-1) Σ_t≥2 min_{i<t} J(r_i, r_t)      turn 1 has nothing to contradict: it has no verdict
    qa             = 1/|V|   Σ_v   1[answer right]            V: every question of every probe

`unparsed` verdicts leave the denominator. Where fewer than half of the verdicts could be read there is no score: it is
*withheld*. Everything else is computed from the **outcome grid**, an array (D dialogues, T turns) of 1 consistent,
0 contradicts and NaN where there is no readable verdict.

Intervals are 95 % percentile bootstrap intervals. Dialogues of one persona are not independent, so personas are drawn
with replacement and bring all their dialogues along. A resample is then a row of whole-number weights, and every
statistic of R resamples is a product of the weights (R, D) with the grid (D, T). With few personas (under about ten)
such intervals are too narrow, as any bootstrap's are; with one persona there are none.

The arrays use NaN for "undefined" and inf for "never"; what leaves this package (`scoring.Summary`) uses None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from persona_tasks.transcript import Judged, Metric, Verdict

Array = NDArray[np.float64]
Interval = tuple[float | None, float | None]

CHANCE = 0.2  # of guessing one of five options
MIN_COVERAGE = 0.5
LEVEL = 0.95
RESAMPLES = 1000


class Estimates(NamedTuple):
    """Statistics of R weightings of the same dialogues. NaN: undefined. A half-life of inf: never."""

    mean: Array  # (R,)
    curve: Array  # (R, T)
    slope: Array  # (R,)
    survival: Array  # (R, T)
    half_life: Array  # (R,)


class Difference(BaseModel):
    """How much less inconsistent `after` is than `before`, on the personas that have a score in both.

    `reduction` = 1 - (1 - score_after) / (1 - score_before), the relative drop of *in*consistency; None where `before`
    was never inconsistent. `absolute` = score_after - score_before. `unpaired` counts the personas left out because
    only one side has a score for them. An interval's open end is None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    metric: Metric
    score_before: float
    score_after: float
    absolute: float
    absolute_ci: Interval | None
    reduction: float | None
    reduction_ci: Interval | None
    clusters: int
    unpaired: int


# --------------------------------------------------------------------------------------------- scores and the grid


def counted(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts that count: a line_to_line verdict on turn 1 compares with nothing and is left out (eq. 2)."""
    return [verdict for verdict in verdicts if verdict.metric != "line_to_line" or verdict.turn >= 2]


def coverage(verdicts: Iterable[Verdict]) -> tuple[int, int]:
    """How many verdicts were asked for, and how many of them could be read."""
    asked = counted(verdicts)
    return len(asked), sum(verdict.outcome != "unparsed" for verdict in asked)


def dialogue_score(verdicts: Sequence[Verdict]) -> float | None:
    """Eq. 1, 2 or 3: consistent / (consistent + contradicts).

    Args:
        verdicts: All verdicts of one dialogue by one metric.

    Returns:
        None where fewer than half of the verdicts could be read (the score is withheld), or there are none.
    """
    asked, parsed = coverage(verdicts)
    if parsed == 0 or parsed / asked < MIN_COVERAGE:
        return None
    return sum(verdict.outcome == "consistent" for verdict in counted(verdicts)) / parsed


def floor_score(verdicts: Sequence[Verdict]) -> float | None:
    """What can be guessed: the share of one dialogue's `qa_without_persona` questions answered right.

    Unlike elsewhere, an answer that says none of the options counts as wrong: where nothing can be known, saying so is
    no better than a wrong guess. None if nothing was asked.
    """
    return sum(verdict.outcome == "consistent" for verdict in verdicts) / len(verdicts) if verdicts else None


def verdict_turn(judged: Judged, verdict: Verdict) -> int:
    """The turn a verdict belongs to: of its probe if it has one, else its own."""
    return verdict.turn if verdict.probe is None else judged.transcript.probes[verdict.probe].turn


def outcome_grid(judged: Sequence[Judged], metric: Metric, turns: int) -> Array:
    """Outcomes by dialogue and turn.

    Args:
        judged: D dialogues.
        metric: Which verdicts.
        turns: T, the width of the grid. Verdicts on later turns, and probes before turn 1, are not in it.

    Returns:
        Array (D, T): 1 consistent, 0 contradicts, NaN missing or unparsed. For `qa` the share of right answers among
        the readable ones after that turn.
    """
    right, readable = np.zeros((2, len(judged), turns))
    for row, record in enumerate(judged):
        for verdict in counted(record.of(metric)):
            turn = verdict_turn(record, verdict)
            if verdict.outcome != "unparsed" and 1 <= turn <= turns:
                right[row, turn - 1] += verdict.outcome == "consistent"
                readable[row, turn - 1] += 1
    return _divide(right, readable)


# ------------------------------------------------------------------------------------------------------- estimates


def estimate(weights: Array, scores: Array, grid: Array) -> Estimates:
    """Every statistic of a set of dialogues, for many weightings of them at once.

    Args:
        weights: (R, D), how often each dialogue counts. A row of ones gives the estimate itself.
        scores: (D,), NaN where there is none. Only the mean uses them; the rest uses every readable verdict, those
            of dialogues whose score is withheld included.
        grid: (D, T), from `outcome_grid`.
    """
    seen = weights @ ~np.isnan(grid)  # (R, T) readable verdicts
    right = weights @ np.nan_to_num(grid)
    survival = kaplan_meier(weights, grid)
    return Estimates(
        mean=_divide(weights @ np.nan_to_num(scores), weights @ ~np.isnan(scores)),
        curve=_divide(right, seen),
        slope=_slope(seen, right),
        survival=survival,
        half_life=_half_life(survival),
    )


def drift_slope(grid: Array) -> float | None:
    """Least-squares slope of the outcome on the turn number, pooled over all readable cells; change per turn.

    Args:
        grid: (D, T); one row gives the slope of a single dialogue.

    Returns:
        None with readable verdicts on fewer than two different turns.
    """
    once = np.ones((1, len(grid)))
    return finite(_slope(once @ ~np.isnan(grid), once @ np.nan_to_num(grid))[0])


def _slope(seen: Array, right: Array) -> Array:
    """(R, T) counts and sums per turn -> (R,). All verdicts of a turn share their x, so the sums are sufficient."""
    x = np.arange(1, seen.shape[1] + 1, dtype=float)
    n, sx, sxx = seen.sum(axis=1), seen @ x, seen @ x**2
    sy, sxy = right.sum(axis=1), right @ x
    return _divide(n * sxy - sx * sy, n * sxx - sx**2)


def kaplan_meier(weights: Array, grid: Array) -> Array:
    """Survival S(t) = Π_{u≤t} (1 - d_u / n_u): the share of dialogues without a contradiction up to turn t.

    n_u counts the dialogues at risk on turn u: no contradiction before it and every verdict readable up to it. d_u are
    those of them that contradict on it (qa: at least one wrong answer). At its first unreadable or missing verdict a
    dialogue is *censored*: it leaves n from that turn on, counted neither as surviving nor as contradicting; so does a
    dialogue that ends early. Turns that nobody was asked about (line_to_line's first, qa between probes) leave S as it
    is. Without censoring this is the plain share. (Kaplan & Meier 1958, https://doi.org/10.2307/2281868.)

    Args:
        weights: (R, D).
        grid: (D, T).

    Returns:
        Array (R, T), NaN from the turn on where nobody is left at risk although some have survived.
    """
    asked, at_risk = ~np.isnan(grid).all(axis=0), risk_set(grid)
    n, d = weights @ at_risk, weights @ (at_risk & (grid < 1))
    survival = np.cumprod(1 - _divide(d, n, undefined=0.0), axis=1)
    nobody_left = (n == 0) & asked & (survival > 0)
    return np.where(np.logical_or.accumulate(nobody_left, axis=1), np.nan, survival)


def risk_set(grid: Array) -> NDArray[np.bool_]:
    """(D, T) outcomes -> (D, T): whether the dialogue is at risk of its first contradiction on that turn."""
    readable = ~np.isnan(grid)
    asked = readable.any(axis=0)
    censored = np.logical_or.accumulate(asked & ~readable, axis=1)
    contradicted = np.logical_or.accumulate(grid < 1, axis=1)
    earlier = np.zeros_like(contradicted)
    earlier[:, 1:] = contradicted[:, :-1]
    return asked & ~censored & ~earlier


def _half_life(survival: Array) -> Array:
    """(R, T) -> (R,): the first turn with S <= 1/2, inf if there is none."""
    reached = np.full((len(survival), survival.shape[1] + 1), True)  # the last column stands for "never"
    reached[:, :-1] = survival <= 0.5 + 1e-9  # a product of hazards may miss 1/2 by rounding
    turn = reached.argmax(axis=1) + 1.0
    return np.where(turn > survival.shape[1], np.inf, turn)


# ------------------------------------------------------------------------------------------------------- intervals


def bootstrap_weights(personas: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Weights of a bootstrap over dialogues clustered by persona.

    Args:
        personas: The persona of each of the D dialogues.
        resamples: R. With a single persona there is nothing to draw: R = 0.
        seed: The same seed gives the same weights.

    Returns:
        Array (R, D): how often each dialogue is in each resample, equal for the dialogues of one persona.
    """
    names, cluster = np.unique(np.asarray(personas, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    rounds = resamples if len(names) > 1 else 0
    draws = rng.multinomial(len(names), np.full(len(names), 1 / max(len(names), 1)), size=rounds)
    return draws[:, cluster].astype(float)


def bounds(samples: Array) -> Array:
    """The 95 % percentile interval of each column: (R, ...) -> (2, ...). Undefined resamples are left out.

    The quantiles are values that occur (`inverted_cdf`), so a half-life stays a turn and inf does not spread.
    """
    result = np.full((2, *samples.shape[1:]), np.nan)
    defined = ~np.isnan(samples).all(axis=0)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    result[:, defined] = np.nanquantile(samples[:, defined], tails, axis=0, method="inverted_cdf")
    return result


def interval(samples: Array) -> Interval | None:
    """The 95 % interval of (R,) resamples; an infinite end is None (open), and so is an interval with no end."""
    low, high = map(finite, bounds(samples[:, None])[:, 0])
    return None if low is None and high is None else (low, high)


def clustered_stderr(values: Sequence[float], personas: Sequence[str]) -> float | None:
    """Standard error of the mean: sqrt(C/(C-1) Σ_c (Σ_{i∈c} (x_i - x̄))²) / n; None with fewer than two clusters.

    The formula of Inspect's `stderr(cluster=...)` (Miller 2024, arXiv 2411.00640, with the finite-cluster correction).
    """
    names, cluster = np.unique(np.asarray(personas, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(cluster, weights=np.asarray(values) - np.mean(values))
    return float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / len(values))


def paired_difference(
    before: Sequence[Judged], after: Sequence[Judged], metric: Metric, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare two sets of dialogues on the personas they share; a resample draws the same personas for both.

    Raises:
        ValueError: No persona has a score in both sets.
    """
    first, second = scores_by_persona(before, metric), scores_by_persona(after, metric)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError(f"no persona has a {metric} score in both sets: there is nothing to compare")
    weights = np.vstack([np.ones(len(shared)), bootstrap_weights(shared, resamples, seed)])  # row 0: the sample itself
    a = _divide(weights @ [sum(first[p]) for p in shared], weights @ [len(first[p]) for p in shared])
    b = _divide(weights @ [sum(second[p]) for p in shared], weights @ [len(second[p]) for p in shared])
    ratio = _divide(1 - b, 1 - a, undefined=np.where(b < 1, np.inf, np.nan))
    return Difference(
        metric=metric,
        score_before=float(a[0]),
        score_after=float(b[0]),
        absolute=float(b[0] - a[0]),
        absolute_ci=interval((b - a)[1:]),
        reduction=finite(1 - ratio[0]),
        reduction_ci=interval(1 - ratio[1:]),
        clusters=len(shared),
        unpaired=len(first.keys() ^ second.keys()),
    )


def scores_by_persona(judged: Sequence[Judged], metric: Metric) -> dict[str, list[float]]:
    """The scores of each persona's dialogues, without those that are withheld."""
    scores: dict[str, list[float]] = {}
    for record in judged:
        if (score := dialogue_score(record.of(metric))) is not None:
            scores.setdefault(record.transcript.persona_id, []).append(score)
    return scores


def _divide(a: Array, b: Array, undefined: ArrayLike = np.nan) -> Array:
    """A / b, and `undefined` where b is 0."""
    result: Array = np.array(np.broadcast_to(undefined, np.shape(a)), dtype=float)
    return np.divide(a, b, out=result, where=b != 0)


def finite(value: float) -> float | None:
    """The number as a plain float, None for NaN and inf."""
    return float(value) if np.isfinite(value) else None
