"""The picture of a judge card, in the look of all our plots."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from persona_tasks.judge_card import Card
from persona_tasks.report.plots import INK, SERIES, STYLE, styled

SHOWN = (("auc", "AUC", 0.5), ("kappa", "Cohen's κ", 0.0))


def draw(card: Card, file: Path) -> None:
    """AUC and kappa by set and metric with their intervals, and the share of each drift that is recognised.

    Args:
        card: What to draw.
        file: Where to; its ending names the format (png, svg, pdf).
    """
    figure = picture(card)
    with mpl.rc_context(STYLE):
        figure.savefig(file)


@styled
def picture(card: Card) -> Figure:
    """The three panels of `draw`."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    *panels, last = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    for axes, (key, title, chance) in zip(panels, SHOWN, strict=True):
        _intervals(axes, card, key, chance)
        axes.set_title(title)
    _drifts(last, card)
    figure.suptitle(f"{card.judge}: test personas, 95 % intervals over personas", size=9)
    return figure


def _intervals(axes: Axes, card: Card, key: str, chance: float) -> None:
    found = {name: part.statistics[key] for name, part in card.parts.items() if key in part.statistics}
    known = {name: (number.value, number.interval) for name, number in found.items() if number.value is not None}
    for row, (value, interval) in enumerate(known.values()):
        low, high = (value if end is None else end for end in interval or (None, None))
        axes.plot([low, high], [row, row], color=SERIES[0])
        axes.plot([value], [row], "o", color=SERIES[0])
    axes.axvline(chance, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xlabel("dotted: chance")
    axes.set(yticks=range(len(known)), yticklabels=[name.replace("_", " ") for name in known])
    axes.set_xlim(min(chance - 0.1, 0), 1)
    _downwards(axes)


def _drifts(axes: Axes, card: Card) -> None:
    kinds = {name.split("/", 2)[2]: part for name, part in card.drifts.items() if name.startswith("on_policy/prompt")}
    names = sorted((name for name in kinds if kinds[name].statistics), key=lambda name: -kinds[name].n)
    axes.barh(range(len(names)), [kinds[name].statistics["accuracy"].value or 0.0 for name in names], color=SERIES[2])
    labels = [f"{name.replace('_', ' ')} ({kinds[name].n})" for name in names]
    axes.set(title="Drifts found", xlabel="share of on-policy lines")
    axes.set(yticks=range(len(names)), yticklabels=labels, xlim=(0, 1))
    _downwards(axes)


def _downwards(axes: Axes) -> None:
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
