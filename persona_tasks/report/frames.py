"""Data frames from judged dialogues: what the plots draw, the report shows and `--csv` writes.

Every frame is long (tidy): one row per verdict, dialogue, curve point or score, `model` naming the run it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from persona_tasks.metrics import dialogue_score, verdict_turn
from persona_tasks.monitors import MONITORS, monitor
from persona_tasks.report.paired import paired_test
from persona_tasks.report.runs import Run
from persona_tasks.scoring import Group, Point, Summary
from persona_tasks.transcript import METRICS, Judged, Metric

ALL = "all"  # the scenario that stands for every dialogue
POINTS = ("model", "scenario", "metric", "turn", "value", "low", "high", "n")


def verdict_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per verdict: model, scenario, persona, dialogue, number, metric, turn, probe, outcome, conflicts, reason,
    judge.

    `number` counts the dialogues of a model, whose ids need not differ; `conflicts` are the contradicted turns,
    separated by spaces.
    """
    rows = [
        {
            "model": run.name,
            "scenario": scenario_of(record),
            "persona": record.transcript.persona_id,
            "dialogue": record.transcript.id,
            "number": number,
            "metric": verdict.metric,
            "turn": verdict_turn(record, verdict),
            "probe": verdict.probe,
            "outcome": verdict.outcome,
            "conflicts": " ".join(map(str, verdict.conflicts)),
            "reason": verdict.reason,
            "judge": record.judge,
        }
        for run in runs
        for number, record in enumerate(run.records, start=1)
        for verdict in record.verdicts
    ]
    place = ["model", "scenario", "persona", "dialogue", "number", "metric", "turn", "probe"]
    return pd.DataFrame(rows, columns=[*place, "outcome", "conflicts", "reason", "judge"]).astype({"probe": "Int64"})


def dialogue_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per dialogue: model, scenario, persona, dialogue, number, seed, turns, then per metric its score and
    `first_<metric>`, the turn of the first contradiction (missing: none), and every monitor."""
    rows = []
    for run in runs:
        for number, record in enumerate(run.records, start=1):
            said = record.transcript
            row: dict[str, Any] = {"model": run.name, "scenario": scenario_of(record)}
            row |= {"persona": said.persona_id, "dialogue": said.id}
            row |= {"number": number, "seed": said.seed, "turns": len(said.turns)}
            for metric in METRICS:
                row[metric] = dialogue_score(record.of(metric))
                row[f"first_{metric}"] = first_contradiction(record, metric)
            rows.append(row | (monitor(said) if said.turns else {}))
    names = [name for metric in METRICS for name in (metric, f"first_{metric}")]
    about = ["model", "scenario", "persona", "dialogue", "number", "seed", "turns"]
    frame = pd.DataFrame(rows, columns=[*about, *names, *MONITORS])
    return frame.astype(dict.fromkeys(("seed", *(f"first_{metric}" for metric in METRICS)), "Int64"))


def scenario_of(record: Judged) -> str:
    """The scenario's name as `scoring` groups by it."""
    return record.transcript.scenario or "unnamed"


def first_contradiction(record: Judged, metric: Metric) -> int | None:
    """The turn of the first `contradicts` verdict (turns from 1; qa: the turn after which a wrong answer was given)."""
    turns = [verdict_turn(record, v) for v in record.of(metric) if v.outcome == "contradicts"]
    return min(turns, default=None)


def drift_frame(summaries: Mapping[str, Summary]) -> pd.DataFrame:
    """Score by turn with its 95 % band: model, scenario, metric, turn, value, low, high, n.

    Args:
        summaries: One for each model. Scenario `all` is every dialogue; the others follow if there are several.
    """
    return _points(summaries, "curve")


def survival_frame(summaries: Mapping[str, Summary]) -> pd.DataFrame:
    """Share of dialogues without a contradiction, by turn: the columns of `drift_frame` and `half_life`.

    Turn 0, where every dialogue is still without one, is in it. `half_life` is missing where it was not reached.
    """
    frame = _points(summaries, "survival")
    half_lives = {
        (model, scenario, metric): found.half_life
        for model, scenario, group in groups(summaries)
        for metric, found in group.metrics.items()
    }
    keys = zip(frame["model"], frame["scenario"], frame["metric"], strict=True)
    return frame.assign(half_life=pd.array([half_lives[key] for key in keys], dtype="Int64"))


def score_frame(summaries: Mapping[str, Summary]) -> pd.DataFrame:
    """One row per model, scenario and metric: score, low, high, stderr, n, personas, corrected (with corrected_low and
    corrected_high), unparsed, withheld, slope, half_life. Empty where nothing was asked; an open end is missing."""
    rows = []
    for model, scenario, group in groups(summaries):
        for metric, found in group.metrics.items():
            low, high = found.ci or (None, None)
            row = {"model": model, "scenario": scenario, "metric": metric, "score": found.score}
            row |= {"low": low, "high": high, "stderr": found.stderr, "n": found.n, "personas": found.clusters}
            row["corrected"] = found.corrected
            row["corrected_low"], row["corrected_high"] = found.corrected_ci or (None, None)
            row |= {"unparsed": found.unparsed, "withheld": found.withheld, "slope": found.slope}
            rows.append(row | {"half_life": found.half_life})
    return pd.DataFrame(rows).astype({"half_life": "Int64"})


def difference_frame(runs: Sequence[Run], seed: int = 0) -> pd.DataFrame:
    """Each run against the first, per scenario and metric, on the personas that both have a score for.

    Columns: model, scenario, metric, difference, low, high, p, personas, unpaired. Pairs without a shared persona have
    no row.
    """
    rows = []
    for run in runs[1:]:
        for scenario in scenario_names(runs):
            for metric in METRICS:
                before, after = (_within(side.records, scenario) for side in (runs[0], run))
                test = paired_test(before, after, metric, seed)
                if test is None:
                    continue
                found = test.difference
                low, high = found.absolute_ci or (None, None)
                row = {"model": run.name, "scenario": scenario, "metric": metric, "difference": found.absolute}
                row |= {"low": low, "high": high, "p": test.p, "personas": found.clusters}
                rows.append(row | {"unpaired": found.unpaired})
    columns = ["model", "scenario", "metric", "difference", "low", "high", "p", "personas", "unpaired"]
    return pd.DataFrame(rows, columns=columns)


def outcome_matrix(verdicts: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Dialogues by turns, for a heat map: 1 consistent, 0 contradicts, in between where several questions were asked
    after a turn, -1 where none of the turn's verdicts could be read, NaN where there are none.

    Args:
        verdicts: From `verdict_frame`.
        metric: Which verdicts.

    Returns:
        Index (model, number), columns turns from 1 to the last. Dialogues that hold out longest come first.
    """
    chosen = verdicts[(verdicts["metric"] == metric) & (verdicts["turn"] >= 1)]
    outcome = chosen["outcome"].map({"consistent": 1.0, "contradicts": 0.0})
    keys = [chosen["model"], chosen["number"], chosen["turn"]]
    if chosen.empty:
        return pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []], names=["model", "number"]))
    cells = outcome.groupby(keys, sort=False).mean().fillna(-1.0).unstack("turn")
    last = int(chosen["turn"].max())
    cells = cells.reindex(columns=range(1, last + 1))
    bad = ((cells < 1) & (cells >= 0)).to_numpy()
    first = np.where(bad.any(axis=1), bad.argmax(axis=1), last + 1)
    order = pd.DataFrame({"model": pd.factorize(cells.index.get_level_values(0))[0], "first": -first})
    return cells.iloc[order.sort_values(["model", "first"], kind="stable").index]


def groups(summaries: Mapping[str, Summary]) -> Iterator[tuple[str, str, Group]]:
    """Model, scenario and scores: `all`, and each scenario if there are several among the models."""
    names = {name for summary in summaries.values() for name in summary.scenarios}
    for model, summary in summaries.items():
        yield model, ALL, summary.overall
        for scenario, group in summary.scenarios.items() if len(names) > 1 else ():
            yield model, scenario, group


def scenario_names(runs: Sequence[Run]) -> list[str]:
    """`all`, and the scenarios of all runs if there are several."""
    names = sorted({scenario_of(record) for run in runs for record in run.records})
    return [ALL, *(names if len(names) > 1 else [])]


def _within(records: Sequence[Judged], scenario: str) -> list[Judged]:
    return [record for record in records if scenario in (ALL, scenario_of(record))]


def _points(summaries: Mapping[str, Summary], curve: str) -> pd.DataFrame:
    rows = []
    for model, scenario, group in groups(summaries):
        for metric, found in group.metrics.items():
            points: list[Point] = getattr(found, curve)
            if curve == "survival" and points:
                points = [Point(turn=0, value=1.0, low=1.0, high=1.0, n=points[0].n), *points]
            rows += [(model, scenario, metric, p.turn, p.value, p.low, p.high, p.n) for p in points]
    return pd.DataFrame(rows, columns=list(POINTS))
