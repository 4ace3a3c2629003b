"""The commands around the registry and the Hub, mounted in `persona_tasks.cli`. Heavy imports stay inside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer()
registry_app = typer.Typer(help="The registry: tasks, judges, checkpoints and scores.", no_args_is_help=True)
app.add_typer(registry_app, name="registry")


@registry_app.command("check")
def registry_check() -> None:
    """Compare the registry with the files, weights, cards and task versions it speaks of; exit code 1 if one disagrees.

    Example:

        persona-tasks registry check
    """
    from persona_tasks.hub.check import problems, root_of
    from persona_tasks.hub.registry import RegistryError, load, registry_file

    try:
        file = registry_file()
        registry = load(file)
        found = list(problems(registry, root_of(file)))
    except (RegistryError, OSError) as error:
        _fail(error)
    for problem in found:
        typer.echo(problem, err=True)
    if found:
        sys.exit(1)
    counts = f"{len(registry.tasks)} tasks, {len(registry.checkpoints)} checkpoints, {len(registry.scores)} scores"
    typer.echo(f"{file}: {counts}, nothing disagrees")


@registry_app.command("add-score")
def registry_add_score(
    logs: Annotated[list[Path], typer.Argument(help="Inspect logs, or lm-eval's results_*.json beside their samples.")],
) -> None:
    """Add the scores of complete runs of our checkpoints. An earlier score of the same measurement is replaced.

    Examples:

        persona-tasks registry add-score logs/2026-11-22T10-00-00_drift_abc.eval

        persona-tasks registry add-score out/model/results_2026-11-22T10-00-00.json
    """
    from persona_tasks.hub.registry import RegistryError, load, registry_file, save
    from persona_tasks.hub.runs import ScoreError
    from persona_tasks.hub.scores import add, read_score

    try:
        file = registry_file()
        registry = load(file)
        for log in logs:
            score = read_score(registry, log, "registry")
            registry = add(registry, score)
            typer.echo(f"{log}: {len(score.values)} values of {score.model} on {score.task}")
        save(registry, file)
    except (RegistryError, ScoreError, OSError, ValueError) as error:
        _fail(error)


@registry_app.command("update")
def registry_update() -> None:
    """Write anew what follows from other files: the hashes of scenarios. Raise the task versions first."""
    from persona_tasks.hub.check import refreshed, root_of
    from persona_tasks.hub.registry import RegistryError, load, registry_file, save

    try:
        file = registry_file()
        save(refreshed(load(file), root_of(file)), file)
    except (RegistryError, OSError, ValueError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"persona-tasks: {error}", err=True)
    sys.exit(2)
