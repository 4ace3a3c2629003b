"""Does the registry agree with the files, the weights and the task versions that it speaks of?"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from persona_tasks.embedded.weights import sha256
from persona_tasks.hub.cards import card_problems
from persona_tasks.hub.entries import Checkpoint, File
from persona_tasks.hub.registry import PACKAGE, Registry, RegistryError
from persona_tasks.hub.submissions import read_submissions


def problems(registry: Registry, root: Path) -> Iterator[str]:
    """Everything that disagrees, one sentence each, which says what to do."""
    for checkpoint in registry.checkpoints:
        yield from checkpoint_problems(registry, checkpoint, root)
    for scenario in registry.scenarios:
        where = f"scenario {scenario.id}"
        remedy = "if the change is meant, raise the task versions and run `persona-tasks registry update`"
        yield from (f"{problem}; {remedy}" for problem in _files(where, scenario.files, root))
    yield from _task_versions(registry)
    yield from _score_prompts(registry)
    yield from card_problems(registry, root)
    try:
        read_submissions(registry, root)
    except RegistryError as error:
        yield str(error)


def checkpoint_problems(registry: Registry, checkpoint: Checkpoint, root: Path) -> Iterator[str]:
    """What is wrong with the files of one checkpoint."""
    where = f"checkpoint {checkpoint.id}"
    if checkpoint.package:
        spec = importlib.util.find_spec(checkpoint.package.module)
        if spec is not None and spec.origin is not None:  # not installed is fine: it can be had from the Hub
            yield from _files(where, [checkpoint.package.file], Path(spec.origin).parent)
    if checkpoint.folder:
        folder = root / checkpoint.folder
        yield from _files(where, checkpoint.files, folder)
        listed = {file.path for file in checkpoint.files}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.relative_to(folder).as_posix() not in listed:
                yield f"{where}: {path} is not among its files"
        yield from _adapter_base(where, folder, registry.base_of(checkpoint))
    if checkpoint.recipe:
        recipe = root / checkpoint.recipe.path
        if not recipe.is_file():
            yield f"{where}: its recipe {recipe} is missing"
        elif sha256(recipe) != checkpoint.recipe.sha256:
            yield f"{where}: {recipe} is not the recipe it was trained with (sha256 differs)"


def _adapter_base(where: str, folder: Path, base: Checkpoint) -> Iterator[str]:
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{where}: {folder / 'adapter_config.json'} names no base model"
        return
    if named not in (base.id, base.repository):
        yield f"{where}: its adapter_config.json is for {named!r}, the registry says {base.repository}"


def _files(where: str, files: Iterable[File], folder: Path) -> Iterator[str]:
    for file in files:
        path = folder / file.path
        if not path.is_file():
            yield f"{where}: {path} is missing"
        elif path.stat().st_size != file.size or sha256(path) != file.sha256:
            yield f"{where}: {path} has changed (sha256 differs from the registry)"


def _task_versions(registry: Registry) -> Iterator[str]:
    from persona_tasks.inspect_tasks.tasks import VERSION

    register = yaml.safe_load((PACKAGE / "eval.yaml").read_text(encoding="utf-8"))["version"]
    for task in registry.tasks:
        if task.inspect and task.version != VERSION:
            yield f"task {task.id}: version {task.version}, but persona_tasks.inspect_tasks.tasks has {VERSION}"
        if task.inspect and task.version != register:
            yield f"task {task.id}: version {task.version}, but persona_tasks/eval.yaml has {register}"
        if task.lm_eval:
            for name, version in lm_eval_versions(task.lm_eval):
                if version != task.lm_eval_version:
                    yield f"task {task.id}: lm-eval version {task.lm_eval_version}, {name}'s YAML has {version}"


def lm_eval_versions(name: str) -> list[tuple[str, Any]]:
    """Name and version of a group of our lm-eval tasks and of its members.

    Raises:
        FileNotFoundError: There is no such group.
    """
    from persona_tasks.lm_eval_tasks import TASKS

    [file] = list(TASKS.rglob(f"{name}.yaml")) or [TASKS / f"{name}.yaml"]
    group = _yaml(file)
    found = [(name, group["metadata"]["version"])]
    for member in group["task"]:
        task = _yaml(file.with_name(f"{member}.yaml"))
        task = {**_yaml(file.with_name(task["include"])), **task} if "include" in task else task
        found.append((member, task["metadata"]["version"]))
    return found


class _Plain(yaml.SafeLoader):
    """Reads lm-eval's YAML without importing what its `!function` tags name."""


_Plain.add_multi_constructor("!", lambda loader, suffix, node: None)


def _yaml(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(file.read_text(encoding="utf-8"), Loader=_Plain)
    return loaded


def _score_prompts(registry: Registry) -> Iterator[str]:
    from persona_tasks.protocol.prompts import prompts_hash

    for score in registry.scores:
        if score.prompts not in (None, prompts_hash()):
            yield (
                f"score {score.model} on {score.task}: made with prompts {score.prompts}, now they are "
                f"{prompts_hash()}: raise the task's version number, and measure again"
            )


def described(folder: Path, path: Path) -> File:
    """A file as the registry lists it, its path from `folder`."""
    return File(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256(path))


def refreshed(registry: Registry, root: Path) -> Registry:
    """The registry with the hashes that the scenario files have now."""
    fresh = [
        scenario.model_copy(update={"files": [described(root, root / file.path) for file in scenario.files]})
        for scenario in registry.scenarios
    ]
    return Registry.model_validate({**registry.model_dump(), "scenarios": [entry.model_dump() for entry in fresh]})
