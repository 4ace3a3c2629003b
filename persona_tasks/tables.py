"""What the command line prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table

from persona_tasks.judge_card import Card
from persona_tasks.metrics import Interval
from persona_tasks.personas import Persona
from persona_tasks.scoring import Group, MetricSummary, Summary

NOTHING = "–"
METRIC_COLUMNS = ("score", "95 %", "corrected", "n", "personas", "unparsed", "withheld", "slope/turn", "half-life")


def show(
    result: BaseModel | Sequence[BaseModel], as_json: bool, *tables: Table | str, file: IO[str] | None = None
) -> None:
    """Print a result as JSON, or its tables: framed on a terminal, plain columns in a pipe or a file.

    Args:
        result: What `as_json` prints.
        as_json: Print `result`, not the tables.
        tables: What people see, one after the other.
        file: Where to; standard output if not given.
    """
    if as_json:
        single = isinstance(result, BaseModel)
        records = [result] if isinstance(result, BaseModel) else result
        data = [record.model_dump(mode="json") for record in records]
        print(json.dumps(data[0] if single else data, indent=2, ensure_ascii=False, allow_nan=False), file=file)
        return
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=200)  # a pipe has no width to wrap at
    for table in tables:
        if isinstance(table, Table) and not console.is_terminal:
            table.box = None
        console.print(table, markup=False)


def summary_tables(summary: Summary) -> list[Table | str]:
    """A table of the metrics, one of the monitors, and the notes; with rows for each scenario if there are several."""
    groups = {"all": summary.overall}
    if len(summary.scenarios) > 1:
        groups |= summary.scenarios
    scores = _table("dialogues", "metric", *METRIC_COLUMNS)
    for name, group in groups.items():
        for row in _metric_rows(group):
            scores.add_row(name, *row)
        scores.add_section()
    monitors = _table("dialogues", "count", *(name.replace("_", " ") for name in summary.overall.monitors))
    for name, group in groups.items():
        monitors.add_row(name, str(group.dialogues), *(number_text(value, 2) for value in group.monitors.values()))
    return [scores, monitors, *(f"note: {note}" for note in summary.notes)]


def card_tables(card: Card) -> list[Table | str]:
    """A judge card: agreement by set and metric, the kinds of lines, and how stable the verdicts are."""
    parts = _table("set", "", "n", "unparsed", "accuracy", "AUC", "F1", "kappa", "finds", "spares", "right line")
    for name, part in card.parts.items():
        numbers = [
            f"{number_text(part.statistics[key].value)} {interval_text(part.statistics[key].interval, '.2f')}"
            for key in ("accuracy", "auc", "f1", "kappa", "sensitivity", "specificity")
            if key in part.statistics
        ]
        parts.add_row(
            name, "", str(part.n), f"{100 * part.unparsed:.1f} %", *numbers, number_text(part.index_recovery, 2)
        )
    kinds = _table("kind of line", "", "n", "judged right")
    for name, part in card.drifts.items():
        found = part.statistics.get("accuracy")
        kinds.add_row(name, "", str(part.n), number_text(found.value if found else None, 2))
    return [f"{card.judge}, {card.date}, prompts {card.prompts}", parts, kinds, *_card_notes(card)]


def _card_notes(card: Card) -> list[str]:
    changes = {
        "asked again": card.self_agreement,
        "other wording": card.other_wording,
        "reversed order": card.other_order,
    }
    notes = [
        f"{name}: the same verdict on {100 * part.agreement:.0f} % of {part.n} items"
        for name, part in changes.items()
        if part is not None
    ]
    if card.attack_success is not None:
        notes.append(
            f"attacks: {100 * card.attack_success:.0f} % of {card.attacks} lines that address the judge succeed"
        )
    if card.seconds_per_verdict is not None:
        notes.append(
            f"cost: {card.seconds_per_verdict:.2f} s and {card.tokens_per_verdict or 0:.0f} tokens per verdict"
        )
    return notes


def card_markdown(card: Card) -> str:
    """A judge card for documentation and model cards: agreement by set and metric, and by scenario on-policy."""
    keys = ("accuracy", "auc", "f1", "kappa")
    head = ["| lines | n | contradict | unparsed | accuracy | AUC | F1 | κ |", "|---|---|---|---|---|---|---|---|"]
    on_policy = {name: part for name, part in card.scenarios.items() if name.startswith("on_policy/prompt_to_line/")}
    rows = []
    for name, part in (card.parts | on_policy).items():
        numbers = []
        for key in keys:
            found = part.statistics.get(key)
            numbers.append(
                f"{number_text(found.value, 2)} {interval_text(found.interval, '.2f')}".strip() if found else NOTHING
            )
        cells = (name.replace("_", " "), part.n, part.contradictions, f"{100 * part.unparsed:.1f} %", *numbers)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    notes = [f"- {note}" for note in _card_notes(card)]
    return "\n".join([*head, *rows, "", *notes, f"- made by `{card.command}` at commit `{card.commit}`, {card.date}"])


def personas_table(personas: Sequence[Persona]) -> Table:
    """One row per persona."""
    table = Table("id", "name", "scenario", "split", "facts", "questions", box=box.SIMPLE_HEAD)
    for persona in personas:
        counts = (str(len(persona.facts)), str(len(persona.questions)))
        table.add_row(persona.id, persona.name, persona.scenario, persona.split, *counts)
    return table


def persona_page(persona: Persona) -> str:
    """Everything about one persona, as text."""
    facts = [f"  {fact.attribute}: {fact.value}" for fact in persona.facts]
    traits = [f"  {trait.name}: {trait.behaviour} (guards against {trait.guards_against})" for trait in persona.traits]
    questions = [f"  {q.question} {q.options[q.answer]}" for q in persona.questions]
    head = f"{persona.name} ({persona.id}, {persona.split})"
    topic = [f"Topic: {persona.topic}"] if persona.topic else []
    parts = ([head, *topic], [persona.description], ["Facts", *facts], ["Traits", *traits], ["Questions", *questions])
    return "\n\n".join("\n".join(part) for part in parts if len(part) > 1 or part[0] not in ("Traits", "Questions"))


def _metric_rows(group: Group) -> list[list[str]]:
    rows = []
    for name, metric in group.metrics.items():
        if metric.asked:
            rows.append([name, *_metric_cells(metric)])
        if name == "qa" and group.qa_without_persona is not None:
            rows.append(["  without persona", number_text(group.qa_without_persona)])
        if name == "qa" and group.qa_chance is not None:
            rows.append(["  chance", number_text(group.qa_chance)])
    return rows


def _metric_cells(metric: MetricSummary) -> list[str]:
    slope = NOTHING if metric.slope is None else f"{metric.slope:+.4f}"
    half_life = NOTHING if metric.half_life is None else str(metric.half_life)
    return [
        "withheld" if metric.score is None else number_text(metric.score),
        interval_text(metric.ci),
        NOTHING
        if metric.corrected is None
        else f"{number_text(metric.corrected)} {interval_text(metric.corrected_ci)}",
        str(metric.n),
        str(metric.clusters),
        NOTHING if metric.unparsed is None else f"{100 * metric.unparsed:.1f} %",
        str(metric.withheld),
        f"{slope} {interval_text(metric.slope_ci, '+.4f')}",
        f"{half_life} {interval_text(metric.half_life_ci, '.0f')}",
    ]


def _table(*columns: str) -> Table:
    """The first two columns name the row, the others hold numbers."""
    table = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=number < 3)
    return table


def number_text(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def interval_text(interval: Interval | None, form: str = ".3f") -> str:
    """[low, high]; an open end is ∞."""
    if interval is None:
        return ""
    low, high = interval
    return f"{'(-∞' if low is None else f'[{low:{form}}'}, {'∞)' if high is None else f'{high:{form}}]'}"
