"""`persona-tasks`: what is easier asked of us than of a harness. Heavy imports stay inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from persona_tasks.hub.cli import app as hub

app = typer.Typer(
    help="Measure, train and publish simulated users that stay in character.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

app.add_typer(hub)
JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def _main() -> None:
    """Measure, train and publish simulated users that stay in character."""


@app.command()
def personas(
    persona_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this persona in full.")] = None,
    scenario: Annotated[str, typer.Option(help="chat, education, therapy, service, one of your own, or all.")] = "all",
    split: Annotated[str, typer.Option(help="train, dev, test or all.")] = "all",
    bank: Annotated[Path | None, typer.Option(help="Folder of a bank of your own (YAML); it is checked too.")] = None,
    as_json: JSON = False,
) -> None:
    """List the personas, or show one.

    Examples:

        persona-tasks personas --scenario therapy --split test

        persona-tasks personas chat-test-01

        persona-tasks personas --bank my-bank
    """
    from persona_tasks.personas import BankError, load_bank
    from persona_tasks.tables import persona_page, personas_table, show

    try:
        loaded = load_bank(str(bank) if bank else None)
        if persona_id:
            persona = loaded.persona(persona_id)
            show(persona, as_json, persona_page(persona))
        else:
            chosen = loaded.select(scenario, split)
            show(chosen, as_json, personas_table(chosen))
    except BankError as error:
        _fail(error)


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="Dialogues with their verdicts: Inspect logs, JSONL, JSON.")],
    format: Annotated[str, typer.Option(help="auto, jsonl, consistent-llms, messages or inspect.")] = "auto",
    speaker: Annotated[int, typer.Option(min=1, max=2, help="consistent-llms: which speaker is the simulator.")] = 2,
    parse: Annotated[str, typer.Option(help="consistent-llms: `strict`, or as the `authors` read it.")] = "strict",
    judge: Annotated[str | None, typer.Option(help="For lm-eval samples that are not judged yet.")] = None,
    as_json: JSON = False,
) -> None:
    """Compute metrics from the verdicts stored in files. Only lm-eval's samples without verdicts are judged first.

    Examples:

        persona-tasks score logs/2026-11-22T10-00-00_drift_abc.eval

        persona-tasks score dialogues.json --format consistent-llms --speaker 2 --json

        persona-tasks score out/model/samples_persona_drift_*.jsonl --judge openai:MODEL@http://localhost:8000/v1
    """
    from persona_tasks.lm_eval_tasks.samples import is_samples_file, judge_samples
    from persona_tasks.protocol.judging import DEFAULT_JUDGE
    from persona_tasks.scoring import score_file, summarise
    from persona_tasks.tables import show, summary_tables
    from persona_tasks.transcript import TranscriptError

    try:
        if all(file.is_file() and file.suffix == ".jsonl" and is_samples_file(file) for file in files):
            summary = summarise(judge_samples(files, judge or DEFAULT_JUDGE))
        elif judge:
            raise ValueError("--judge judges lm-eval's samples; judge other files with persona_tasks/transcripts")
        else:
            summary = score_file(files, format=format, speaker=speaker, parse=parse)
    except (TranscriptError, OSError, ValueError) as error:
        _fail(error)
    show(summary, as_json, *summary_tables(summary))


@app.command()
def report(
    logs: Annotated[
        list[str],
        typer.Argument(help="Inspect logs, lm-eval samples, JSONL, or folders of them; NAME=PATH gives them a name."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Persona drift",
    png: Annotated[Path | None, typer.Option(help="Folder for the plots, as PNG and as vector PDF.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Folder for the numbers behind them, as CSV.")] = None,
) -> None:
    """Make one HTML file from logs: scores, curves over turns, a heat map, every dialogue. It needs no network.

    Dialogues are sorted by model; the others are compared with the first. Only stored verdicts are used.

    Examples:

        persona-tasks report logs

        persona-tasks report logs/base.eval logs/tuned.eval -o drift.html --png plots --csv numbers

        persona-tasks report short=logs/a.eval long=logs/b.eval
    """
    import shlex

    from persona_tasks.report.write import write_report
    from persona_tasks.transcript import TranscriptError

    words = ["persona-tasks", "report", *logs, "-o", str(output)]
    try:
        written = write_report(logs, output, title=title, command=shlex.join(words), png=png, csv=csv)
    except (TranscriptError, OSError, ValueError) as error:
        _fail(error)
    for file in written:
        typer.echo(str(file))


@app.command("judge-card")
def judge_card(
    judge: Annotated[str, typer.Option(help="Any Inspect model, or `always-consistent`, which every judge must beat.")],
    out: Annotated[Path | None, typer.Option(help="Where the card goes (JSON); default: the current folder.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the card (PNG, SVG or PDF).")] = None,
    foreign: Annotated[
        bool | None,
        typer.Option("--foreign/--no-foreign", help="The sets in $PERSONA_REFERENCE_DATA; default: if set."),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Measure a judge on lines whose labels are known: agreement, stability, attacks, cost.

    Examples:

        persona-tasks judge-card --judge persona/judge-135m

        persona-tasks judge-card --judge openai/gpt-5-mini --out gpt-5-mini.json --picture gpt-5-mini.png

        persona-tasks judge-card --judge always-consistent --no-foreign
    """
    from persona_tasks.judge_card import ALWAYS_CONSISTENT, Pass, always_consistent, card_file, measure
    from persona_tasks.personas import BankError
    from persona_tasks.tables import card_tables, show

    try:
        if judge == ALWAYS_CONSISTENT:
            judged: Pass = always_consistent
        else:
            from inspect_ai.model import get_model

            from persona_tasks.inspect_tasks.agreement import judged_by

            judged = judged_by(get_model(judge))
        command = f"persona-tasks judge-card --judge {judge}"
        card = measure(judge, judged, command, foreign)
    except (BankError, ValueError, RuntimeError) as error:
        _fail(error)
    file = out or card_file(judge, Path())
    file.write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if picture:
        from persona_tasks.judge_plot import draw

        draw(card, picture)
    show(card, as_json, *card_tables(card))
    typer.echo(f"written: {file}", err=True)


@app.command(
    "lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-eval with our tasks, also where they are not installed beside its own. All arguments are lm-eval's.

    Example:

        persona-tasks lm-eval --tasks persona_drift --model hf --model_args pretrained=MODEL
    """
    from persona_tasks.lm_eval_tasks.command import run_lm_eval

    run_lm_eval(context.args)


@app.command("lm-eval-path")
def lm_eval_path() -> None:
    """Print the folder of our lm-eval tasks, for `lm_eval --include_path "$(persona-tasks lm-eval-path)"`."""
    from persona_tasks.lm_eval_tasks import TASKS

    typer.echo(str(TASKS))


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"persona-tasks: {error}", err=True)
    sys.exit(2)
