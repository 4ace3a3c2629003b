"""From judged dialogues to one `Summary`: every metric with its intervals and every monitor, overall and per scenario.

No model is asked: the verdicts are in the records. A `Summary` holds no NaN; what is not known is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from persona_tasks.importers import load
from persona_tasks.judge_card import corrected_score, worth
from persona_tasks.metrics import (
    CHANCE,
    MIN_COVERAGE,
    RESAMPLES,
    Array,
    Estimates,
    Interval,
    bootstrap_weights,
    bounds,
    clustered_stderr,
    coverage,
    dialogue_score,
    estimate,
    finite,
    floor_score,
    interval,
    outcome_grid,
    risk_set,
    verdict_turn,
)
from persona_tasks.monitors import MONITORS, monitor
from persona_tasks.transcript import METRICS, Judged, Metric


class Result(BaseModel):
    """Immutable, and refuses infinite and undefined numbers: JSON has none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Point(Result):
    """One turn of a curve with its 95 % band; no band where it rests on a single persona."""

    turn: int
    value: float | None
    low: float | None
    high: float | None
    n: int = Field(description="Dialogues it rests on: those with a readable verdict; for survival those at risk.")


class MetricSummary(Result):
    """One metric over a set of dialogues. Intervals are 95 % and clustered by persona; an open end is None."""

    score: float | None = Field(default=None, description="Mean over the dialogues that have a score.")
    ci: Interval | None = None
    stderr: float | None = Field(default=None, description="Clustered by persona.")
    n: int = Field(description="Dialogues with a score.")
    clusters: int = Field(description="Personas among them.")
    withheld: int = Field(description="Dialogues whose score is withheld: under half of their verdicts are readable.")
    asked: int = Field(description="Verdicts asked for.")
    coverage: float | None = Field(default=None, description="Share of them that could be read.")
    unparsed: float | None = Field(default=None, description="Share of them that could not.")
    corrected: float | None = Field(
        default=None, description="The score corrected for the judge's errors, by its card; see `agreement.corrected`."
    )
    corrected_ci: Interval | None = None
    slope: float | None = Field(default=None, description="Change of the score per turn.")
    slope_ci: Interval | None = None
    half_life: int | None = Field(default=None, description="First turn with survival <= 1/2; None if there is none.")
    half_life_ci: Interval | None = None
    curve: list[Point] = []
    survival: list[Point] = []


class Group(Result):
    """Every metric, and the mean of each monitor, over a set of dialogues."""

    dialogues: int
    personas: int
    metrics: dict[Metric, MetricSummary]
    qa_without_persona: float | None = Field(
        default=None, description="Right answers without a persona: what can be guessed."
    )
    qa_chance: float | None = None
    monitors: dict[str, float | None]


class Summary(Result):
    """Scores of a set of dialogues. `notes` say what a reader of the numbers has to know."""

    overall: Group
    scenarios: dict[str, Group]
    resamples: int
    seed: int
    notes: list[str]


def score_file(
    paths: str | Path | Iterable[str | Path],
    format: str = "auto",
    *,
    speaker: int = 2,
    parse: str = "strict",
    simulator_role: str = "assistant",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Summary:
    """Compute all metrics from the verdicts stored in files, their dialogues taken together.

    Args:
        paths: One file or several, in the same format unless it is `auto`.
        format: See `importers.load`, also for `speaker`, `parse` and `simulator_role`.
        speaker: Which speaker is the simulator (consistent-llms).
        parse: How the stored answers of the judge are read (consistent-llms).
        simulator_role: Role of the simulator's messages (messages, inspect).
        resamples: Bootstrap resamples behind every interval.
        seed: Seed of the bootstrap.

    Raises:
        TranscriptError: A file cannot be read; names the file, the line or dialogue and the reason.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    records = [
        record
        for file in files
        for record in load(file, format, speaker=speaker, parse=parse, simulator_role=simulator_role)
    ]
    return summarise(records, resamples, seed)


def summarise(judged: Iterable[Judged], resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Every metric and monitor, over all dialogues and per scenario.

    Args:
        judged: Dialogues with their verdicts.
        resamples: Bootstrap resamples behind every interval.
        seed: The same seed gives the same intervals.
    """
    records = list(judged)
    scenarios: dict[str, list[Judged]] = {}
    for record in records:
        scenarios.setdefault(record.transcript.scenario or "unnamed", []).append(record)
    overall = _group(records, resamples, seed)
    return Summary(
        overall=overall,
        scenarios={
            name: _group(members, resamples, seed) if len(scenarios) > 1 else overall
            for name, members in sorted(scenarios.items())
        },
        resamples=resamples,
        seed=seed,
        notes=_notes(records),
    )


def _group(records: Sequence[Judged], resamples: int, seed: int) -> Group:
    monitored = [monitor(record.transcript) for record in records if record.transcript.turns]
    floors = [floor for record in records if (floor := floor_score(record.of("qa_without_persona"))) is not None]
    five_options = any(record.transcript.questions and record.of("qa") for record in records)
    return Group(
        dialogues=len(records),
        personas=len({record.transcript.persona_id for record in records}),
        metrics={metric: aggregate(records, metric, resamples, seed) for metric in METRICS},
        qa_without_persona=fmean(floors) if floors else None,
        qa_chance=CHANCE if five_options else None,
        monitors={name: fmean(values[name] for values in monitored) if monitored else None for name in MONITORS},
    )


def _notes(records: Sequence[Judged]) -> list[str]:
    notes = []
    if not records:
        notes.append("there are no dialogues")
    elif not any(record.verdicts for record in records):
        notes.append("no verdicts are stored with these dialogues: only the monitors are computed")
    elif len({record.transcript.persona_id for record in records}) == 1:
        notes.append("all dialogues are of one persona: there are no intervals and no standard errors")
    notes += [worth(judge) for judge in sorted({record.judge for record in records if record.verdicts}) if judge]
    if any(record.transcript.metadata.get("qa_answered_by") == "judge" and record.of("qa") for record in records):
        notes.append("qa: the questions were answered by the judge, not by the simulator")
    return notes


def aggregate(judged: Sequence[Judged], metric: Metric, resamples: int = RESAMPLES, seed: int = 0) -> MetricSummary:
    """One metric over dialogues: mean of their scores, curve, slope, survival and half-life, all with intervals.

    The coverage rule holds here too: where fewer than half of all verdicts could be read, only the counts are given.
    """
    scores = [dialogue_score(record.of(metric)) for record in judged]
    read = [coverage(record.of(metric)) for record in judged]
    asked, parsed = sum(n for n, _ in read), sum(n for _, n in read)
    personas = [record.transcript.persona_id for record in judged]
    scored = [(score, persona) for score, persona in zip(scores, personas, strict=True) if score is not None]
    counts = MetricSummary(
        n=len(scored),
        clusters=len({persona for _, persona in scored}),
        withheld=sum(score is None and n > 0 for score, (n, _) in zip(scores, read, strict=True)),
        asked=asked,
        coverage=parsed / asked if asked else None,
        unparsed=(asked - parsed) / asked if asked else None,
    )
    if not scored or parsed / asked < MIN_COVERAGE:
        return counts

    grid = outcome_grid(judged, metric, max(verdict_turn(r, v) for r in judged for v in r.of(metric)))
    weights = np.vstack(  # row 0: the dialogues themselves; resamples follow if there is more than one persona to draw
        [np.ones(len(judged)), bootstrap_weights(personas, resamples if counts.clusters > 1 else 0, seed)]
    )
    found = estimate(weights, np.array([np.nan if score is None else score for score in scores]), grid)
    half_life = finite(found.half_life[0])
    stderr = clustered_stderr([score for score, _ in scored], [persona for _, persona in scored])
    [judge, *others] = {record.judge for record in judged}
    corrected = None if others else corrected_score(judge, metric, float(found.mean[0]), stderr)
    return MetricSummary(
        **counts.model_dump(include={"n", "clusters", "withheld", "asked", "coverage", "unparsed"}),
        score=finite(found.mean[0]),
        ci=interval(found.mean[1:]),
        stderr=stderr,
        corrected=corrected[0] if corrected else None,
        corrected_ci=corrected[1] if corrected else None,
        slope=finite(found.slope[0]),
        slope_ci=interval(found.slope[1:]),
        half_life=None if half_life is None else int(half_life),
        half_life_ci=interval(found.half_life[1:]),
        curve=_curve(found, grid, personas),
        survival=_survival(found, grid),
    )


def _curve(found: Estimates, grid: Array, personas: Sequence[str]) -> list[Point]:
    readable = ~np.isnan(grid)
    samples = found.curve[1:].copy()
    for turn in range(grid.shape[1]):
        speaking = {persona for persona, has in zip(personas, readable[:, turn], strict=True) if has}
        if len(speaking) < 2:  # drawn over and over, one persona shows no spread: that is no band, not a tight one
            samples[:, turn] = np.nan
    return _points(found.curve[0], samples, readable.sum(axis=0))


def _survival(found: Estimates, grid: Array) -> list[Point]:
    return _points(found.survival[0], found.survival[1:], risk_set(grid).sum(axis=0))


def _points(values: Array, samples: Array, n: NDArray[np.int_]) -> list[Point]:
    low, high = bounds(samples)
    return [
        Point(turn=turn, value=finite(v), low=finite(lo), high=finite(hi), n=int(count))
        for turn, (v, lo, hi, count) in enumerate(zip(values, low, high, n, strict=True), start=1)
    ]
