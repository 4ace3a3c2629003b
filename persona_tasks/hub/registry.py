"""`registry.yaml`: the one place that says which tasks, judges and checkpoints there are, and what was measured.

Everything published is made from it. Nothing in it is trusted: the models below refuse unknown keys, references into
nowhere and numbers out of range; `check` compares what it says with the files that it speaks of.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from persona_tasks.hub.entries import (
    Benchmark,
    Checkpoint,
    Entry,
    HubId,
    Judge,
    Metric,
    Namespace,
    Scenario,
    Score,
    Task,
)

PACKAGE = Path(__file__).parents[1]
HEADER = (
    "# What there is and what was measured. Written by `persona-tasks registry` and `publish`: comments are not kept.\n"
)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
Model = TypeVar("Model", bound=BaseModel)


class RegistryError(ValueError):
    """The registry cannot be used. The message names the file, the entry and what to do."""


class Registry(Entry):
    """Everything, with references that lead somewhere."""

    schema_version: Literal[1]
    title: str
    namespace: Namespace
    collection: str = Field(max_length=60, description="Title of the collection on the Hub.")
    leaderboard: HubId
    benchmark: Benchmark
    metrics: list[Metric]
    tasks: list[Task]
    scenarios: list[Scenario]
    judges: list[Judge]
    checkpoints: list[Checkpoint]
    scores: list[Score] = Field([], description="Added by `persona-tasks registry add-score`, never by hand.")

    def checkpoint(self, name: str) -> Checkpoint:
        """Raises: RegistryError if there is none of this id."""
        for checkpoint in self.checkpoints:
            if checkpoint.id == name:
                return checkpoint
        raise RegistryError(f"no checkpoint {name!r} in the registry; there are: {_listed(self.checkpoints)}")

    def task(self, name: str) -> Task:
        """Raises: RegistryError if there is none of this id."""
        for task in self.tasks:
            if task.id == name:
                return task
        raise RegistryError(f"no task {name!r} in the registry; there are: {_listed(self.tasks)}")

    def metric(self, name: str) -> Metric:
        """Raises: RegistryError if there is none of this id."""
        for metric in self.metrics:
            if metric.id == name:
                return metric
        raise RegistryError(f"no metric {name!r} in the registry; there are: {_listed(self.metrics)}")

    def judge(self, name: str) -> Judge | None:
        """The judge that logs call `name`."""
        return next((judge for judge in self.judges if judge.name == name), None)

    def base_of(self, checkpoint: Checkpoint) -> Checkpoint:
        return self.checkpoint(checkpoint.base) if checkpoint.base else checkpoint

    def replace(self, checkpoint: Checkpoint) -> Registry:
        """The registry with this checkpoint in place of the one of the same id."""
        changed = [checkpoint if old.id == checkpoint.id else old for old in self.checkpoints]
        return self.model_validate({**self.model_dump(), "checkpoints": [entry.model_dump() for entry in changed]})

    @model_validator(mode="after")
    def _references(self) -> Registry:
        for name in ("metrics", "tasks", "scenarios", "judges", "checkpoints"):
            counted = Counter(entry.id for entry in getattr(self, name))
            if twice := [entry for entry, times in counted.items() if times > 1]:
                raise ValueError(f"{name}: {twice[0]!r} occurs twice")
        metrics = {metric.id for metric in self.metrics}
        for task in self.tasks:
            if unknown := set(task.metrics) - metrics:
                raise ValueError(f"task {task.id}: unknown metrics {sorted(unknown)}")
        checkpoints = {checkpoint.id: checkpoint for checkpoint in self.checkpoints}
        for checkpoint in self.checkpoints:
            base = checkpoints.get(checkpoint.base) if checkpoint.base else None
            if checkpoint.base and (base is None or base.kind != "base"):
                raise ValueError(
                    f"checkpoint {checkpoint.id}: base {checkpoint.base!r} is no base model of the registry"
                )
        for judge in self.judges:
            if judge.checkpoint and judge.checkpoint not in checkpoints:
                raise ValueError(f"judge {judge.id}: unknown checkpoint {judge.checkpoint!r}")
        keys = Counter(score.key for score in self.scores)
        for score in self.scores:
            if keys[score.key] > 1:
                raise ValueError(f"{describe(score)} occurs twice")
            self._score(score, checkpoints)
        return self

    def _score(self, score: Score, checkpoints: dict[str, Checkpoint]) -> None:
        where = describe(score)
        task = next((task for task in self.tasks if task.id == score.task), None)
        if task is None:
            raise ValueError(f"{where}: there is no such task")
        if score.task_version.split("-")[0] != task.version.split("-")[0]:
            raise ValueError(
                f"{where}: measured on task version {score.task_version}, not comparable with {task.version}"
            )
        checkpoint = checkpoints.get(score.checkpoint or "")
        if checkpoint is None:
            raise ValueError(f"{where}: its checkpoint {score.checkpoint!r} is gone")
        if score.weights_sha256 != checkpoint.weights:
            raise ValueError(f"{where}: measured other weights than the checkpoint has now")
        check_values(self, score)


def check_values(registry: Registry, score: Score) -> None:
    """Raises: ValueError if a number is not what its metric or its own interval allows."""
    scenarios = {"all", *(scenario.id for scenario in registry.scenarios)}
    for value in score.values:
        where = f"{describe(score)}, {value.metric} {value.scenario}"
        if value.scenario not in scenarios:
            raise ValueError(f"{where}: there is no such scenario")
        metric = next((metric for metric in registry.metrics if metric.id == value.metric), None)
        if metric is None:
            raise ValueError(f"{where}: there is no such metric")
        if not metric.holds(value.value):
            raise ValueError(f"{where}: {value.value} is outside {list(metric.range)}")
        if value.interval:
            low, high = value.interval
            if (low is not None and value.value < low - 1e-9) or (high is not None and value.value > high + 1e-9):
                raise ValueError(f"{where}: {value.value} is outside its own interval {list(value.interval)}")


def describe(score: Score) -> str:
    """How errors name a score."""
    return f"score {score.model} on {score.task} ({score.date})"


def registry_file() -> Path:
    """``$PERSONA_TASKS_REGISTRY``, or the file beside the package (a checkout) or inside it (installed from a wheel).

    Raises:
        RegistryError: It is in none of these places.
    """
    chosen = os.environ.get("PERSONA_TASKS_REGISTRY")
    places = [Path(chosen)] if chosen else [PACKAGE.parent / "registry.yaml", PACKAGE / "registry.yaml"]
    for place in places:
        if place.is_file():
            return place
    raise RegistryError(f"no registry at {' or '.join(map(str, places))}")


def root_of(file: Path) -> Path:
    """The folder that the paths in a registry start from."""
    return PACKAGE.parent if file.resolve().parent == PACKAGE else file.resolve().parent


def load(path: str | Path | None = None) -> Registry:
    """Read and validate a registry; by default ours.

    Raises:
        RegistryError: It is not there, not YAML, or breaks a rule. Names the file, the entry and the reason.
    """
    file = Path(path) if path else registry_file()
    return parse(Registry, file)


def parse(model: type[Model], file: Path) -> Model:
    """Read a YAML file as one of the models here.

    Raises:
        RegistryError: Names the file, the entry and the reason.
    """
    try:
        return model.model_validate(yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RegistryError(f"{file}: not readable as YAML: {error}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise RegistryError(f"{file}: {where}{': ' if where else ''}{problem['msg']}") from None


def save(registry: Registry, path: Path) -> None:
    """Write a registry so that a kill leaves either the old file or the new one."""
    text = HEADER + dump(registry)
    scratch = path.with_name(f".{path.name}~")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def dump(entry: BaseModel) -> str:
    """An entry as YAML, without the fields that have their default value."""
    return yaml.safe_dump(
        entry.model_dump(mode="json", exclude_defaults=True),
        sort_keys=False,
        allow_unicode=True,
        width=120,
        default_flow_style=None,
    )


def _listed(entries: Iterable[Any]) -> str:
    return ", ".join(entry.id for entry in entries) or "none"
