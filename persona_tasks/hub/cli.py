"""The commands around the registry and the Hub, mounted in `persona_tasks.cli`. Heavy imports stay inside them."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
    from persona_tasks.hub.check import problems
    from persona_tasks.hub.registry import RegistryError, load, registry_file, root_of

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

    One dialogue per scenario is kept for the model card. Run `persona-tasks registry update` afterwards.

    Examples:

        persona-tasks registry add-score logs/2026-11-22T10-00-00_drift_abc.eval

        persona-tasks registry add-score out/model/results_2026-11-22T10-00-00.json
    """
    from persona_tasks.hub.cards import keep_examples
    from persona_tasks.hub.registry import RegistryError, load, registry_file, root_of, save
    from persona_tasks.hub.runs import ScoreError
    from persona_tasks.hub.scores import add, read_score

    try:
        file = registry_file()
        registry = load(file)
        for log in logs:
            score, records = read_score(registry, log, "registry")
            registry = add(registry, score)
            if records:
                keep_examples(root_of(file), str(score.checkpoint), records)
            typer.echo(f"{log}: {len(score.values)} values of {score.model} on {score.task}")
        save(registry, file)
    except (RegistryError, ScoreError, OSError, ValueError) as error:
        _fail(error)


@registry_app.command("files")
def registry_files(
    folder: Annotated[Path, typer.Argument(help="An adapter as training saved it, or a recipe.")],
) -> None:
    """Print path, size and sha256 of files as an entry of the registry lists them.

    Example:

        persona-tasks registry files persona_tasks/embedded/adapters/sim-135m
    """
    from persona_tasks.hub.check import described

    paths = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        _fail(FileNotFoundError(f"{folder}: no files there"))
    for path in paths:
        file = described(folder if folder.is_dir() else folder.parent, path)
        typer.echo(f"- {{path: {file.path}, size: {file.size}, sha256: {file.sha256}}}")


@registry_app.command("update")
def registry_update() -> None:
    """Write anew what follows from the registry and other files: model cards, drift curves, the hashes of scenarios.

    Where a scenario has changed, raise the task versions first.
    """
    from persona_tasks.hub.cards import write_cards
    from persona_tasks.hub.check import refreshed
    from persona_tasks.hub.registry import RegistryError, load, registry_file, root_of, save

    try:
        file = registry_file()
        registry = refreshed(load(file), root_of(file))
        save(registry, file)
        for written in write_cards(registry, root_of(file)):
            typer.echo(written)
    except (RegistryError, OSError, ValueError) as error:
        _fail(error)


NAMESPACE = Annotated[str | None, typer.Option(help="Publish a copy there instead; the registry is not changed.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")]
CREATE_PR = Annotated[bool, typer.Option("--create-pr", help="Ask for the change by a pull request.")]
PRIVATE = Annotated[
    bool, typer.Option("--private", help="Leave a new repository private; the registry is not changed.")
]


@app.command()
def publish(
    checkpoint: Annotated[str, typer.Argument(metavar="ID", help="A checkpoint of the registry.")],
    dry_run: DRY_RUN = False,
    create_pr: CREATE_PR = False,
    private: PRIVATE = False,
    namespace: NAMESPACE = None,
    merged: Annotated[bool, typer.Option("--merged", help="Also the whole model, adapter merged in.")] = False,
) -> None:
    """Publish a checkpoint: adapter, card, drift curve and results in one commit, verified, tagged and listed.

    Only what differs from the Hub is sent. If it breaks off, run it again. The token is `HF_TOKEN`, or that of
    `hf auth login`.

    Examples:

        persona-tasks publish sim-135m --dry-run

        persona-tasks publish sim-135m --merged
    """
    from persona_tasks.hub.commands import Options, publish_checkpoint

    _run(lambda: publish_checkpoint(checkpoint, merged, Options(dry_run, create_pr, private, namespace), typer.echo))


@app.command("publish-benchmark")
def publish_benchmark(
    dry_run: DRY_RUN = False, create_pr: CREATE_PR = False, private: PRIVATE = False, namespace: NAMESPACE = None
) -> None:
    """Publish the persona bank and the calibration set as a data set that `inspect eval hf/...` can run.

    Example:

        persona-tasks publish-benchmark --dry-run
    """
    from persona_tasks.hub import commands

    options = commands.Options(dry_run, create_pr, private, namespace)
    _run(lambda: commands.publish_benchmark(options, typer.echo))


@app.command()
def pull(checkpoint: Annotated[str, typer.Argument(metavar="ID", help="A checkpoint of the registry.")]) -> None:
    """Download a checkpoint at its pinned commit, verify it, say how to use it. Offline: the cache, or our own copy.

    Example:

        persona-tasks pull sim-135m
    """
    from persona_tasks.hub.pull import instructions
    from persona_tasks.hub.pull import pull as fetch
    from persona_tasks.hub.registry import load

    _run(lambda: typer.echo("\n".join(instructions(load(), fetch(checkpoint)))))


@app.command()
def leaderboard(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for index.html; a static Space as it is.")],
) -> None:
    """Write the leaderboard, one HTML page made from the registry and the submissions.

    Example:

        persona-tasks leaderboard -o site
    """
    from persona_tasks.hub.leaderboard import write_leaderboard
    from persona_tasks.hub.registry import load, registry_file, root_of

    def write() -> None:
        file = registry_file()
        for written in write_leaderboard(load(file), root_of(file), output):
            typer.echo(written)

    _run(write)


@app.command("publish-leaderboard")
def publish_leaderboard(
    dry_run: DRY_RUN = False, create_pr: CREATE_PR = False, private: PRIVATE = False, namespace: NAMESPACE = None
) -> None:
    """Publish the leaderboard as a static Space.

    Example:

        persona-tasks publish-leaderboard --dry-run
    """
    from persona_tasks.hub import commands

    options = commands.Options(dry_run, create_pr, private, namespace)
    _run(lambda: commands.publish_leaderboard(options, typer.echo))


@app.command()
def submit(
    log: Annotated[Path, typer.Argument(help="An Inspect log, or lm-eval's results_*.json beside its samples.")],
    by: Annotated[str, typer.Option(help="Who submits it; shown on the leaderboard.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the file.")] = Path("submissions"),
) -> None:
    """Check a run of any model and write its score as a file for the leaderboard.

    The run must be whole, of this task version, and judged by a usable judge.

    Example:

        persona-tasks submit logs/2026-11-22T10-00-00_drift_abc.eval --by "Ada Lovelace"
    """
    from persona_tasks.hub.submissions import submit as write

    _run(lambda: typer.echo(write(log, by, output)))


def _run(work: Callable[[], object]) -> None:
    """Call it; what goes wrong is one line without secrets, and exit code 2."""
    from persona_tasks.hub.client import redacted

    try:
        work()
    except (RuntimeError, ValueError, OSError) as error:
        _fail(RuntimeError(redacted(str(error))))


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"persona-tasks: {error}", err=True)
    sys.exit(2)
