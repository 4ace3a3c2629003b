"""`persona-tasks report`: from files of dialogues to the page, the plots and the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import track

from persona_tasks.report import frames, plots
from persona_tasks.report.html import render
from persona_tasks.report.runs import Material, read_runs
from persona_tasks.scoring import Summary, summarise
from persona_tasks.transcript import METRICS


def write_report(
    paths: Iterable[str | Path],
    output: str | Path,
    *,
    title: str = "Persona drift",
    command: str = "",
    png: str | Path | None = None,
    csv: str | Path | None = None,
) -> list[Path]:
    """Read dialogues and write what is asked for.

    Args:
        paths: See `runs.read_runs`.
        output: The HTML file.
        title: Its title.
        command: What was typed, shown under "How it was made".
        png: Folder for the plots (PNG and PDF), if wanted.
        csv: Folder for the numbers, if wanted.

    Returns:
        The files written, the page first.

    Raises:
        TranscriptError: A file cannot be read, or there are no dialogues.
        OSError: A file cannot be written.
    """
    material = read_runs(paths)
    console = Console(stderr=True)
    runs = track(material.runs, "Scoring", console=console, transient=True, disable=not console.is_terminal)
    summaries = {run.name: summarise(run.records) for run in runs}
    page = Path(output)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(material, summaries, title, command), encoding="utf-8")
    written = [page]
    if png is not None:
        written += write_plots(material, summaries, png)
    if csv is not None:
        written += write_numbers(material, summaries, csv)
    return written


def write_plots(material: Material, summaries: Mapping[str, Summary], folder: str | Path) -> list[Path]:
    """Drift and survival curves, and a heat map for each metric that was judged."""
    written = plots.save(plots.drift_curves(frames.drift_frame(summaries)), folder, "drift")
    written += plots.save(plots.survival_curves(frames.survival_frame(summaries)), folder, "survival")
    verdicts = frames.verdict_frame(material.runs)
    for metric in METRICS:
        matrix = frames.outcome_matrix(verdicts, metric)
        if len(matrix):
            written += plots.save(plots.heat_map(matrix, plots.TITLES[metric]), folder, f"heat_{metric}")
    return written


def write_numbers(material: Material, summaries: Mapping[str, Summary], folder: str | Path) -> list[Path]:
    """The frames behind tables and plots, one CSV each."""
    tables = {
        "scores": frames.score_frame(summaries),
        "differences": frames.difference_frame(material.runs),
        "drift": frames.drift_frame(summaries),
        "survival": frames.survival_frame(summaries),
        "dialogues": frames.dialogue_frame(material.runs),
        "verdicts": frames.verdict_frame(material.runs),
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(target / f"{name}.csv", index=False)
    return [target / f"{name}.csv" for name in tables]
