"""Scores of other people's models: one YAML file each in `submissions/`, made by `persona-tasks submit` from a log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from persona_tasks.hub.entries import Entry, Public, Score
from persona_tasks.hub.registry import Registry, RegistryError, check_values, dump, load, parse
from persona_tasks.hub.scores import read_score

FOLDER = "submissions"
HEADER = (
    "# Written by `persona-tasks submit`. To appear on the leaderboard, add it to submissions/ by a pull request.\n"
)


class Submission(Entry):
    """One score of a model that is not in the registry."""

    schema_version: Literal[1] = Field(description="Of this format.")
    by: Annotated[Public, StringConstraints(min_length=1, max_length=80)]
    score: Score


def submit(log: Path, by: str, folder: Path) -> Path:
    """Check a log and write its submission file; returns the file.

    Raises:
        ScoreError: The run is incomplete, of another task version, or judged by no usable judge.
        RegistryError: It is of a checkpoint of ours, or `by` cannot be used.
    """
    registry = load()
    score = read_score(registry, log, "submission").score
    try:
        submission = Submission(schema_version=1, by=by, score=score)
    except ValidationError as error:
        raise RegistryError(f"--by: {error.errors()[0]['msg']}") from None
    for problem in _problems(registry, submission):
        raise RegistryError(f"{log}: {problem}")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / file_name(submission)
    file.write_text(HEADER + dump(submission), encoding="utf-8")
    return file


def file_name(submission: Submission) -> str:
    """A name that tells model, task and day."""
    score = submission.score
    words = f"{score.model}-{score.task}-{score.date}"
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.") + ".yaml"


def read_submissions(registry: Registry, root: Path) -> list[Submission]:
    """All submissions below a registry's root.

    Raises:
        RegistryError: One breaks a rule; names the file and the reason.
    """
    found = []
    for file in sorted((root / FOLDER).glob("*.yaml")):
        submission = parse(Submission, file)
        for problem in _problems(registry, submission):
            raise RegistryError(f"{file}: {problem}")
        found.append(submission)
    return found


def _problems(registry: Registry, submission: Submission) -> Iterator[str]:
    score = submission.score
    if score.checkpoint is not None:
        yield "a checkpoint of the registry; its scores enter by `persona-tasks registry add-score`"
    task = registry.task(score.task)
    if score.task_version.split("-")[0] != task.version.split("-")[0]:
        yield f"task version {score.task_version}, not comparable with {task.version}"
    try:
        check_values(registry, score)
    except ValueError as error:
        yield str(error)
