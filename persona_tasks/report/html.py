"""One HTML file with everything in it: tables, curves, heat map, dialogues, and how it was made. No network."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from persona_tasks import __version__
from persona_tasks.metrics import RESAMPLES
from persona_tasks.monitors import MONITORS
from persona_tasks.report import plots
from persona_tasks.report.frames import ALL, difference_frame, drift_frame, groups, scenario_names, survival_frame
from persona_tasks.report.judges import judge_kappa
from persona_tasks.report.payload import packed, payload, plain
from persona_tasks.report.runs import Material, comparability_notes
from persona_tasks.scoring import MetricSummary, Summary
from persona_tasks.tables import interval_text, number_text
from persona_tasks.transcript import METRICS

PAGE = Path(__file__).parent / "page"


class Row(NamedTuple):
    """One line of the headline table.

    Attributes:
        kappa: Of the judge with labels on this metric, where it was measured.
        difference: To the first model; None in its own rows.
    """

    model: str
    metric: str
    found: MetricSummary
    judge: str
    kappa: float | None
    difference: Mapping[str, Any] | None


class Section(NamedTuple):
    """What is shown of one scenario."""

    scenario: str
    rows: list[Row]
    monitors: dict[str, dict[str, float | None]]
    floors: dict[str, tuple[float | None, float | None]]
    curves: list[Markup]


def render(material: Material, summaries: Mapping[str, Summary], title: str, command: str) -> str:
    """The page.

    Args:
        material: From `runs.read_runs`.
        summaries: One for each run, by its name.
        title: Of the page.
        command: How the report was made, as typed.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "number": number_text,
        "interval": interval_text,
        "p": p_text,
        "plain": plain,
        "title": lambda metric: plots.TITLES[metric],
    }
    runs = material.runs
    notes = [*comparability_notes(runs, material.origins), *material.notes, *_summary_notes(summaries)]
    return environment.get_template("report.html.jinja").render(
        title=title,
        sections=_sections(material, summaries),
        models=[run.name for run in runs],
        judges=list(dict.fromkeys(run.judge for run in runs)),
        dialogues=sum(len(run.records) for run in runs),
        personas=len({record.transcript.persona_id for run in runs for record in run.records}),
        scenarios=[name for name in scenario_names(runs) if name != ALL],
        metrics=METRICS,
        monitors=tuple(MONITORS),
        notes=notes,
        origins=material.origins,
        made={
            "report": command,
            "persona-tasks": __version__,
            "Python": platform.python_version(),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "intervals": f"95 %, {RESAMPLES:,} bootstrap resamples by persona, seed 0",
        },
        series=[(colour, plots.MARKERS[n]) for n, colour in enumerate(plots.SERIES)],
        css=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
        js=Markup((PAGE / "report.js").read_text(encoding="utf-8")),
        data=Markup(packed(payload(runs))),
    )


def p_text(p: float | None) -> str:
    """A p value as papers print it."""
    return "" if p is None or pd.isna(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _summary_notes(summaries: Mapping[str, Summary]) -> list[str]:
    """What each summary says of itself; what all say, once."""
    said: dict[str, list[str]] = {}
    for model, summary in summaries.items():
        for note in summary.notes:
            said.setdefault(note, []).append(model)
    return [note if len(models) == len(summaries) else f"{', '.join(models)}: {note}" for note, models in said.items()]


def _sections(material: Material, summaries: Mapping[str, Summary]) -> list[Section]:
    judges = {run.name: run.judge for run in material.runs}
    differences = difference_frame(material.runs)
    found = {
        (row["model"], row["scenario"], row["metric"]): {name: None if pd.isna(v) else v for name, v in row.items()}
        for row in differences.to_dict("records")
    }
    drift, survival = drift_frame(summaries), survival_frame(summaries)
    sections: list[Section] = []
    for scenario in scenario_names(material.runs):
        present = {model: group for model, name, group in groups(summaries) if name == scenario}
        rows = [
            Row(
                model,
                metric,
                group.metrics[metric],
                judges[model],
                judge_kappa(judges[model], metric),
                found.get((model, scenario, metric)),
            )
            for metric in METRICS
            for model, group in present.items()
            if group.metrics[metric].asked
        ]
        monitors = {model: group.monitors for model, group in present.items()}
        floors = {model: (group.qa_without_persona, group.qa_chance) for model, group in present.items()}
        drift_here, survival_here = (frame[frame["scenario"] == scenario] for frame in (drift, survival))
        curves = _curves(drift_here, survival_here, list(present), f"s{len(sections)}")
        sections.append(Section(scenario, rows, monitors, floors, curves))
    return sections


def _curves(drift: pd.DataFrame, survival: pd.DataFrame, models: Sequence[str], prefix: str) -> list[Markup]:
    """For each metric its score by turn and its survival, each a small drawing that fits a phone."""
    drawn = []
    for kind, frame, plot in (("score", drift, plots.drift_curves), ("survival", survival, plots.survival_curves)):
        for metric in METRICS:
            part = frame[frame["metric"] == metric]
            if part["value"].notna().any():
                label = f"{plots.TITLES[metric]}, {kind} by turn. {plots.describe(part, models)}"
                drawing = Markup(plots.svg(plot(part, legend=False), f"{prefix}-{kind}-{metric}"))
                drawn.append(Markup('<div role="img" aria-label="{}">{}</div>').format(plain(label), drawing))
    return drawn
