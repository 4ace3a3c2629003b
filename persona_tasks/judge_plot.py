"""The picture of a judge card."""

from __future__ import annotations

from pathlib import Path

from persona_tasks.judge_card import Card

SHOWN = (("auc", "AUC", 0.5), ("kappa", "Cohen's kappa", 0.0))


def draw(card: Card, file: Path) -> None:
    """AUC and kappa by set and metric with their intervals, and the share of each drift that is recognised.

    Args:
        card: What to draw.
        file: Where to; its ending names the format (png, svg, pdf).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = {name.split("/", 2)[2]: part for name, part in card.drifts.items() if name.startswith("on_policy/prompt")}
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=(1, 1, 1.1))
    for axis, (key, title, chance) in zip(axes, SHOWN, strict=False):
        found = {name: part.statistics[key] for name, part in card.parts.items() if key in part.statistics}
        known = {name: number for name, number in found.items() if number.value is not None}
        for row, number in enumerate(known.values()):
            low, high = number.interval or (number.value, number.value)
            axis.plot([low, high], [row, row], color="#0072b2", linewidth=2)
            axis.plot(number.value, row, "o", color="#0072b2")
        axis.axvline(chance, color="#888", linestyle=":", label="chance")
        axis.set(title=title, yticks=range(len(known)), yticklabels=[name.replace("_", " ") for name in known])
        axis.set_xlim(min(chance - 0.1, 0), 1)
        axis.invert_yaxis()
    names = sorted(kinds, key=lambda name: -kinds[name].n)
    shares = [kinds[name].statistics["accuracy"].value or 0.0 for name in names if kinds[name].statistics]
    labels = [f"{name.replace('_', ' ')} ({kinds[name].n})" for name in names if kinds[name].statistics]
    axes[2].barh(range(len(shares)), shares, color="#009e73")
    axes[2].set(title="drifts found, on-policy lines", yticks=range(len(shares)), yticklabels=labels, xlim=(0, 1))
    axes[2].invert_yaxis()
    figure.suptitle(f"{card.judge}, test split, 95 % intervals over personas")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
