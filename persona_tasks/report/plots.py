"""The plots, as functions from data frames to matplotlib figures: one look for report, model cards and training.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), distinguishable with every colour vision; each model
also has a marker and a dash of its own, so that a grey print can be read. Nothing touches pyplot's global state. `save`
writes PNG and vector PDF, `svg` the inline form for a page that has a light and a dark look.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (8, 3)))
INK, FAINT = "#1f2328", "#d0d7de"  # text and axes; grid
OUTCOMES = {  # name: colour, from fits to does not
    "consistent": "#b9dcf2",
    "partly": "#f2b37e",
    "contradicts": "#c4480a",
    "unparsed": "#8c959f",
}
TITLES = {"prompt_to_line": "Prompt to line", "line_to_line": "Line to line", "qa": "Questions"}
PANEL = (3.6, 2.5)  # inches
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
Arguments = ParamSpec("Arguments")


def styled(plot: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draw with our style, whatever the user's matplotlibrc says."""

    @wraps(plot)
    def draw(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return plot(*args, **kwargs)

    return draw


@styled
def drift_curves(frame: pd.DataFrame, legend: bool = True) -> Figure:
    """Score by turn with its 95 % band, a row for each metric and a column for each scenario.

    Args:
        frame: From `frames.drift_frame`: model, scenario, metric, turn, value, low, high.
        legend: Name the models below; a page with a legend of its own leaves it out.
    """

    def panel(axes: Axes, part: pd.DataFrame) -> None:
        _share_axis(axes)
        if set(part["metric"]) == {"qa"}:
            axes.axhline(0.2, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.annotate("chance", (0.01, 0.2), xycoords=("axes fraction", "data"), ha="left", va="top", size=7.5)

    return _facets(frame, "turn", panel, "score", legend)


@styled
def survival_curves(frame: pd.DataFrame, legend: bool = True) -> Figure:
    """Share of dialogues without a contradiction by turn, with its band; a ring marks each half-life.

    Args:
        frame: From `frames.survival_frame`: the columns of `drift_curves` and half_life.
        legend: As in `drift_curves`.
    """

    def panel(axes: Axes, part: pd.DataFrame) -> None:
        _share_axis(axes)
        axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        reached = part[part["turn"] == part["half_life"]]
        axes.plot(reached["turn"], reached["value"], "o", mfc="none", mec=INK, ms=9, mew=1.3, ls="none", zorder=4)

    return _facets(frame, "turn", panel, "without a contradiction", legend, steps=True)


@styled
def training_curves(frame: pd.DataFrame, legend: bool = True) -> Figure:
    """Rewards and monitors by training step, a panel for each measure, a line for each run.

    Args:
        frame: model (the run), measure, step, value, and low and high where there is a band (missing: none).
        legend: As in `drift_curves`.
    """
    banded = frame.reindex(columns=["model", "measure", "step", "value", "low", "high"])
    part = banded.assign(metric=banded["measure"], scenario="all")
    return _facets(part, "step", lambda axes, part: None, "", legend, wrap=3)


@styled
def trade_off(frame: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """What a model gains against what it pays: a named point for each, with its 95 % bar.

    Args:
        frame: model, x, value, and low and high (missing: no bar).
        xlabel: What the column x is.
        ylabel: What the column value is.
    """
    figure = Figure(figsize=(1.7 * PANEL[0], 1.5 * PANEL[1]), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(frame.itertuples()):
        colour, marker = SERIES[number % len(SERIES)], MARKERS[number // len(SERIES) % len(MARKERS)]
        if not (pd.isna(row.low) or pd.isna(row.high)):
            axes.plot([row.x, row.x], [row.low, row.high], color=colour, linewidth=1.0, alpha=0.6)
        axes.plot(row.x, row.value, marker, color=colour, markersize=6, label=_short(str(row.model)))
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, None))
    axes.grid(visible=True, axis="both")
    figure.legend(loc="outside right upper", fontsize=7.5)
    return figure


@styled
def heat_map(matrix: pd.DataFrame, title: str = "") -> Figure:
    """Dialogues by turns, coloured by verdict, one panel for each model.

    Args:
        matrix: From `frames.outcome_matrix`: 1 consistent, between 0 and 1 partly, 0 contradicts, -1 unparsed.
        title: Above the figure; the metric, say.
    """
    models = list(dict.fromkeys(matrix.index.get_level_values(0)))
    tallest = max((len(matrix.loc[model]) for model in models), default=1)
    size = (max(2.6, 0.16 * matrix.shape[1] + 1.1) * max(len(models), 1), min(10.0, 1.4 + 0.11 * tallest))
    figure = Figure(figsize=size, layout="constrained")
    colours = ListedColormap([OUTCOMES[name] for name in ("unparsed", "contradicts", "partly", "consistent")])
    for axes, model in zip(figure.subplots(1, max(len(models), 1), squeeze=False)[0], models, strict=False):
        cells = matrix.loc[model].to_numpy(dtype=float)
        classes = np.select([cells == -1, cells == 0, cells < 1, cells == 1], [0.0, 1.0, 2.0, 3.0], np.nan)
        height, width = cells.shape
        edges = np.arange(width + 1) + 0.5, np.arange(height + 1)
        shown_cells = np.ma.masked_invalid(classes)
        axes.pcolormesh(*edges, shown_cells, cmap=colours, vmin=-0.5, vmax=3.5, edgecolors="white", linewidth=0.4)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set(title=_short(model), xlabel="turn", yticks=[], ylabel=f"{height} dialogues")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    figure.suptitle(title, weight="bold")
    shown = [Patch(color=colour, label=name) for name, colour in OUTCOMES.items()]
    figure.legend(handles=shown, loc="outside lower center", ncols=4, fontsize=7.5)
    return figure


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write a figure as NAME.png and, vector, NAME.pdf. The folder is made if it is not there."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = [target / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    with mpl.rc_context(STYLE):
        for file in files:
            figure.savefig(file, metadata={"CreationDate": None} if file.suffix == ".pdf" else None)
    return files


def svg(figure: Figure, prefix: str) -> str:
    """A figure as inline SVG: text is text, colours are the page's variables (--ink, --faint, --series-0, ...).

    Args:
        figure: One of ours.
        prefix: Unique on the page; ids inside the drawing start with it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r" ?font-family: [^;\"]*;"):
        drawn = re.sub(unwanted, "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", drawn))
    drawn = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", drawn)
    drawn = re.sub(r"(url\(|href=\")#", rf"\1#{prefix}-", drawn)
    for variable, colour in {"ink": INK, "faint": FAINT, **{f"series-{n}": c for n, c in enumerate(SERIES)}}.items():
        drawn = drawn.replace(colour, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", drawn)


def _facets(
    frame: pd.DataFrame,
    x: str,
    panel: Callable[[Axes, pd.DataFrame], None],
    ylabel: str,
    legend: bool,
    steps: bool = False,
    wrap: int | None = None,
) -> Figure:
    """A panel for each metric (rows) and scenario (columns), or the metrics in rows of `wrap`."""
    metrics, scenarios = list(dict.fromkeys(frame["metric"])), list(dict.fromkeys(frame["scenario"]))
    models = list(dict.fromkeys(frame["model"]))
    if wrap:
        places, across = [(metric, "all") for metric in metrics], min(wrap, max(len(metrics), 1))
    else:
        places, across = [(metric, scenario) for metric in metrics for scenario in scenarios], max(len(scenarios), 1)
    down = max(1, -(-len(places) // across))
    size = (PANEL[0] * across, PANEL[1] * down + (0.25 if legend else 0))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flat
    for axes, (metric, scenario) in zip(grid, places, strict=False):
        part = frame[(frame["metric"] == metric) & (frame["scenario"] == scenario) & frame["value"].notna()]
        panel(axes, part)
        for number, model in enumerate(models):
            _line(axes, part[part["model"] == model].sort_values(x), x, model, number, steps)
        title = TITLES.get(metric, metric.replace("_", " "))
        axes.set(title=title if len(scenarios) < 2 else f"{title} · {scenario}", xlabel=x, ylabel=ylabel)
        if x == "turn":
            axes.set_xlim(frame[x].min() - 0.3, frame[x].max() + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    for axes in list(figure.axes)[len(places) :]:
        axes.remove()
    if legend and models and figure.axes:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(models)))
    return figure


def _line(axes: Axes, part: pd.DataFrame, x: str, model: str, number: int, steps: bool) -> None:
    colour, dash = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)]
    values = part[["value", "low", "high"]].astype(float)
    where: Literal["post"] | None = "post" if steps else None
    axes.fill_between(
        part[x],
        values["low"],
        values["high"],
        step=where,
        color=colour,
        alpha=0.16,
        linewidth=0,
    )
    many = len(part) > 24
    axes.plot(
        part[x],
        values["value"],
        color=colour,
        linestyle=dash,
        marker=None if many or steps else MARKERS[number % len(MARKERS)],
        drawstyle="steps-post" if steps else "default",
        label=_short(model),
    )


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])


def _short(name: str, longest: int = 40) -> str:
    """A model's name that fits a legend; the end tells checkpoints apart."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def describe(frame: pd.DataFrame, models: Sequence[str]) -> str:
    """What a curve shows, in words, for those who do not see it."""
    told = []
    for model in models:
        part = frame[(frame["model"] == model) & frame["value"].notna()].sort_values("turn")
        if len(part):
            first, last = part.iloc[0], part.iloc[-1]
            told.append(f"{model}: {first['value']:.2f} at turn {first['turn']}, {last['value']:.2f} at {last['turn']}")
    return "; ".join(told) or "no data"
