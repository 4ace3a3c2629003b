"""The drift curve of a card: share of consistent lines at each turn, base and checkpoint, with 95 % bands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from persona_tasks.hub.entries import Score, Value
from persona_tasks.hub.registry import Registry
from persona_tasks.transcript import METRICS

COLOURS = ("#8a8f98", "#1769aa")  # base, checkpoint


def draw(scores: Sequence[Score], registry: Registry, file: Path) -> Path:
    """Write the picture. What it was drawn from is noted inside it, so that a stale one can be told."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(panels, METRICS, strict=True):
        axes.set(title=registry.metric(metric).title, xlabel="turn", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        for score, colour in zip(scores, COLOURS[-len(scores) :], strict=True):
            if value := _with_curve(score, metric):
                turns = [point.turn for point in value.curve]
                line = [point.value for point in value.curve]
                axes.plot(turns, line, "o-", markersize=3, color=colour, label=score.model)
                low = [point.value if point.low is None else point.low for point in value.curve]
                high = [point.value if point.high is None else point.high for point in value.curve]
                axes.fill_between(turns, low, high, color=colour, alpha=0.15, linewidth=0)
    panels[0].set_ylabel("consistent")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(scores), frameon=False)
    figure.savefig(file, dpi=150, metadata={"Source": fingerprint(scores), "Software": None})
    return file


def fingerprint(scores: Sequence[Score]) -> str:
    """Checksum of all that a picture shows."""
    shown = [
        [
            score.model,
            *((metric, value.model_dump(mode="json")) for metric in METRICS if (value := _with_curve(score, metric))),
        ]
        for score in scores
    ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def drawn_from(file: Path) -> str | None:
    """The fingerprint noted in a picture."""
    from PIL import Image

    with Image.open(file) as picture:
        noted = picture.info.get("Source")
    return str(noted) if noted else None


def _with_curve(score: Score, metric: str) -> Value | None:
    """Over all scenarios if they were all run, else of the first."""
    found = [value for value in score.values if value.metric == metric and value.curve]
    return next((value for value in found if value.scenario == "all"), found[0] if found else None)
