"""What a comparison looks like: the page with its tables, pictures, and dialogues side by side."""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from persona_tasks.agreement import Statistic
from persona_tasks.monitors import MONITORS
from persona_tasks.report import plots
from persona_tasks.report.frames import ALL, drift_frame
from persona_tasks.report.plots import TITLES
from persona_tasks.scoring import summarise
from persona_tasks.tables import NOTHING, interval_text, number_text
from persona_tasks.transcript import METRICS, Judged
from training.compare_table import BASE, GUARDS, MethodResult, MetricResult, Played, Results

TOGETHER = 6  # lines in one picture: more colours than this cannot be told apart
SHOWN = 20
MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]|#"})
WATCHED = re.compile(r"(reward)|rewards/(\w+)(?:/mean)?|monitors/(\w+)")  # what is drawn of a run's log

# ------------------------------------------------------------------------------------------------------------ page


def markdown(results: Results, files: Sequence[str] = ()) -> str:
    """The page: what was compared, how to read it, tables, and how it was made.

    Args:
        results: All numbers.
        files: Pictures, which are shown, and pages, which are linked.
    """
    parts = ["# Comparison", results.judge_worth.replace("judge", "Judge", 1) + "."]
    parts += [f"Note: {note}." for note in results.notes]
    for name, rows in results.conditions.items():
        parts += [f"## {name}: {_settings(results.recipe['conditions'][name])}", _scores(rows)]
        if any(row.metrics and row.method != BASE for row in rows):
            parts += ["Against the base, on the same people:", _changes(rows), "Whether by cheating:", _guards(rows)]
    parts += [
        "Intervals are 95 %: people drawn anew and, where a method was trained with several seeds, those too. With one "
        "seed they say nothing about training it again. *Less inconsistent* is the relative drop of 1 - score. Not "
        "measured here: whether replies are on topic, and whether they talk to the judge; read them side by side."
    ]
    for file in map(PurePath, files):
        parts.append(f"{'!' if file.suffix == '.png' else ''}[{file.stem.replace('_', ' ')}]({file})")
    made = results.origin
    parts += [f"Made by `{made['command']}`, commit `{made['commit']}`, {made['machine']}, {made['date']}."]
    parts += ["| weights | sha256 |\n|---|---|\n" + "\n".join(_weights(results))]
    return "\n\n".join(parts) + "\n"


def _settings(condition: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, condition["seeds"]))
    return f"{condition['turns']} turns, partner {condition['partner']}, evaluation seeds {seeds}"


def _scores(rows: Sequence[MethodResult]) -> str:
    head = [
        "method",
        "trained seeds",
        "dialogues",
        *(TITLES[m] for m in METRICS),
        "unparsed at most",
        "survival",
        "slope/turn",
    ]
    lines = []
    for row in rows:
        seeds = f"{len(row.seeds)} of {len(row.cells)}" if row.method != BASE else NOTHING
        if not row.metrics:
            lines.append([row.method, seeds, *([next(iter(row.cells.values()))] + [""] * (len(head) - 3))])
            continue
        line = row.metrics["prompt_to_line"]
        unparsed = [found.unparsed for found in row.metrics.values() if found.unparsed is not None]
        progress = [status for status in row.cells.values() if " of " in status]
        lines.append(
            [
                row.method,
                seeds,
                f"{row.dialogues}{' (unfinished)' if progress else ''}",
                *(_number(row.metrics[metric].score) for metric in METRICS),
                f"{100 * max(unparsed):.1f} %" if unparsed else NOTHING,
                _number(line.survival),
                _number(line.slope, "+.4f"),
            ]
        )
    return _table(head, lines)


def _changes(rows: Sequence[MethodResult]) -> str:
    head = [
        "method",
        "less inconsistent: prompt to line",
        "by seed",
        "p",
        "line to line",
        "questions",
        "survival",
    ]
    lines = []
    for row in rows:
        if not row.metrics or row.method == BASE:
            continue
        line = row.metrics["prompt_to_line"]
        by_seed = [NOTHING if value is None else f"{100 * value:.0f} %" for value in line.reduction_by_seed.values()]
        lines.append(
            [
                row.method,
                percent(line.reduction),
                ", ".join(by_seed),
                number_text(line.p, 4),
                percent(row.metrics["line_to_line"].reduction),
                percent(row.metrics["qa"].reduction),
                _survived(line),
            ]
        )
    return _table(head, lines)


def _survived(line: MetricResult) -> str:
    """How many times the base's survival; what was gained, where none of the base's dialogues survives."""
    if line.survival_ratio and line.survival_ratio.value is not None:
        return f"{_number(line.survival_ratio, '.2f')} x base"
    return _number(line.survival_gain, "+.3f") if line.survival_gain else NOTHING


def _guards(rows: Sequence[MethodResult]) -> str:
    """Each monitor with its ratio to the base; a guard that does not hold is in bold."""
    head = ["method", *(name.replace("_", " ") for name in MONITORS), "guards"]
    lines = []
    for row in rows:
        if not row.monitors:
            continue
        cells = []
        for found in row.monitors.values():
            text = number_text(found.value, 2)
            if found.ratio is not None and found.ratio.value is not None:
                text += f" = {_number(found.ratio, '.2f')} x base"
            cells.append(f"**{text}**" if found.holds is False else text)
        broken = [name.replace("_", " ") for name, found in row.monitors.items() if found.holds is False]
        verdict = NOTHING if row.method == BASE else ("broken: " + ", ".join(broken) if broken else "hold")
        lines.append([row.method, *cells, verdict])
    rules = "; ".join(f"{name.replace('_', ' ')} {guard.rule}" for name, guard in GUARDS.items())
    return f"{_table(head, lines)}\n\nGuards: {rules}."


def _weights(results: Results) -> list[str]:
    return [
        f"| {name} {file} | `{digest}` |" for name, files in results.weights.items() for file, digest in files.items()
    ]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def _number(found: Statistic, form: str = ".3f") -> str:
    text = NOTHING if found.value is None else f"{found.value:{form}}"
    return f"{text} {interval_text(found.interval, form)}".rstrip()


def percent(found: Statistic | None) -> str:
    """A share and its interval in per cent; an open end is ∞."""
    if found is None or found.value is None:
        return NOTHING
    within = found.interval
    scaled = None if within is None else tuple(None if end is None else 100 * end for end in within)
    return f"{100 * found.value:.0f} % {interval_text(scaled, '.0f')}".rstrip()  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- pictures


def write_pictures(cells: Sequence[Played], logs: Mapping[str, Path], folder: Path) -> list[str]:
    """Draw the drift of each method by turn, and rewards and monitors by training step.

    Args:
        cells: Of one condition. The bands of the curves are over people.
        logs: By cell: log.jsonl of its training run.
        folder: Where the files go, PNG and PDF.

    Returns:
        Names of the PNG files; several for many methods, the base in each.
    """
    methods: dict[str, list[Judged]] = {}
    for cell in cells:
        methods.setdefault(cell.method, []).extend(cell.records)
    frame = drift_frame({name: summarise(records) for name, records in methods.items() if records})
    frame = frame[frame["scenario"] == ALL]
    others = [name for name, records in methods.items() if records and name != BASE]
    files: list[Path] = []
    for number, part in enumerate(_chunks(others, TOGETHER - 1), start=1):
        chosen = frame[frame["model"].isin([BASE, *part])]
        files += plots.save(plots.drift_curves(chosen), folder, _numbered("drift", number))
    curves = training_frame(cells, logs)
    for number, part in enumerate(_chunks(list(dict.fromkeys(curves["model"])), TOGETHER), start=1):
        if part:
            drawn = plots.training_curves(curves[curves["model"].isin(part)])
            files += plots.save(drawn, folder, _numbered("training", number))
    return [file.name for file in files if file.suffix == ".png"]


def write_trade_off(rows: Sequence[MethodResult], folder: Path) -> str:
    """Draw what each method gains, prompt to line, against the length of its lines; returns the PNG's name."""
    points = [
        (row.method, row.monitors["line_length"].value, 1 - score.value, *reversed(_flipped(score)))
        for row in rows
        if row.metrics and (score := row.metrics["prompt_to_line"].score).value is not None
    ]
    frame = pd.DataFrame(points, columns=["model", "x", "value", "low", "high"])
    drawn = plots.trade_off(frame, "words a line", "inconsistent, prompt to line")
    return plots.save(drawn, folder, "trade_off")[0].name


def _flipped(score: Statistic) -> tuple[float | None, float | None]:
    low, high = score.interval or (None, None)
    return None if low is None else 1 - low, None if high is None else 1 - high


def training_frame(cells: Sequence[Played], logs: Mapping[str, Path]) -> pd.DataFrame:
    """One row per method, measure and step: model, measure, step, value (mean over training seeds), low, high (range).

    A log's last line may be cut short. Methods whose runs log neither rewards nor monitors have no rows.
    """
    methods = {cell.name: cell.method for cell in cells}
    rows = [
        (methods[name], measure, step, value) for name, file in logs.items() for step, measure, value in _logged(file)
    ]
    frame = pd.DataFrame(rows, columns=["model", "measure", "step", "value"])
    found = frame.groupby(["model", "measure", "step"], sort=False)["value"].agg(["mean", "min", "max"]).reset_index()
    return found.rename(columns={"mean": "value", "min": "low", "max": "high"})


def _logged(file: Path) -> Iterator[tuple[int, str, float]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        for measure, value in entry.items():
            watched = WATCHED.fullmatch(measure)
            if watched and isinstance(value, (int, float)) and "step" in entry:
                yield int(entry["step"]), next(filter(None, watched.groups())), float(value)


def _chunks(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)] or [[]]


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


# ---------------------------------------------------------------------------------------------------- side by side


def side_by_side(before: Played, after: Played, count: int = SHOWN, seed: int = 0) -> str:
    """Random dialogues of two models with the same person and partner, turn by turn, for people to read."""
    first = {record.transcript.id: record for record in before.records}
    second = {record.transcript.id: record for record in after.records}
    shared = sorted(first.keys() & second.keys())
    chosen = random.Random(seed).sample(shared, min(count, len(shared)))
    drawn = f"{len(chosen)} of {len(shared)} dialogues, drawn at random (seed {seed})"
    parts = [f"# {before.name} and {after.name}, side by side", f"{drawn}. ✗: the judge says that it contradicts."]
    for name in chosen:
        said = first[name].transcript
        person = "\n".join(f"> {_plain(line)}" for line in said.persona_text.splitlines())
        parts += [f"## {said.persona_id}, seed {said.seed}", person, _turns(first[name], second[name])]
    return "\n\n".join(parts) + "\n"


def _turns(before: Judged, after: Judged) -> str:
    """The partner's lines stand once where they are the same on both sides, as a script's are."""
    rows = []
    for number in range(1, max(len(before.transcript.turns), len(after.transcript.turns)) + 1):
        heard = {
            r.transcript.turns[number - 1].partner: None for r in (before, after) if number <= len(r.transcript.turns)
        }
        rows.append([str(number), _plain(" / ".join(heard)), _marked(before, number), _marked(after, number)])
    head = ["turn", "partner", "before", "after"]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---:", "---", "---", "---"], *rows])


def _marked(record: Judged, turn: int) -> str:
    if turn > len(record.transcript.turns):
        return ""
    bad = any(v.outcome == "contradicts" for v in record.of("prompt_to_line") if v.turn == turn)
    return ("✗ " if bad else "") + _plain(record.transcript.lines[turn - 1])


def _plain(text: str) -> str:
    """What a model said, as one line of Markdown that means nothing but itself."""
    return html.escape(" ".join(text.split()), quote=False).translate(MARKDOWN)
