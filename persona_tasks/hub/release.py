"""What is published, as a folder: built from the registry and the checkpoint's files, the same bytes every time."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from persona_tasks.hub import cards
from persona_tasks.hub.check import checkpoint_problems
from persona_tasks.hub.entries import Checkpoint
from persona_tasks.hub.files import Refused, check_folder
from persona_tasks.hub.registry import Registry

TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.jinja")
EVAL_RESULTS = ".eval_results/persona_drift.yaml"


@dataclass(frozen=True)
class Release:
    """A folder that belongs into a repository.

    Attributes:
        repository: NAMESPACE/NAME.
        kind: What sort of repository.
        folder: Its files, and nothing else.
        version: The tag, which stays where it is for ever.
        collection: Title of the collection that lists it; None for none.
    """

    repository: str
    kind: Literal["model", "dataset", "space"]
    folder: Path
    version: str
    collection: str | None

    @property
    def files(self) -> dict[str, Path]:
        """Raises: Refused if anything in the folder must not be published."""
        return check_folder(self.folder)


def check_publishable(registry: Registry, checkpoint: Checkpoint, root: Path) -> None:
    """Raises: Refused if the checkpoint is not ours, is not what the registry says, or has uncommitted changes."""
    if checkpoint.kind != "adapter":
        raise Refused(f"{checkpoint.id}: a base model of others is not ours to publish")
    folder = root / str(checkpoint.folder)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise Refused(f"{path}: a link, which would be followed; copy the file")
    for problem in checkpoint_problems(registry, checkpoint, root):
        raise Refused(problem)
    for problem in cards.stale(registry, checkpoint, root):
        raise Refused(problem)
    for changed in uncommitted(root, [folder, root / cards.card_file(checkpoint).parent, root / _recipe(checkpoint)]):
        raise Refused(f"{changed} has changes that are not committed")


def _recipe(checkpoint: Checkpoint) -> str:
    assert checkpoint.recipe  # of every adapter, by its validation
    return checkpoint.recipe.path


def uncommitted(root: Path, paths: list[Path]) -> list[str]:
    """Which of these differ from the last commit; none where there is no git repository."""
    if not (root / ".git").exists():
        return []
    command = ["git", "-C", str(root), "status", "--porcelain", "--ignored", "--", *map(str, paths)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line[3:] for line in shown.splitlines()]


def adapter_release(registry: Registry, checkpoint: Checkpoint, root: Path, scratch: Path, namespace: str) -> Release:
    """The adapter with its configuration, tokenizer, card, drift curve and results."""
    from persona_tasks.embedded.weights import embedded_folder

    source, folder = root / str(checkpoint.folder), scratch / "adapter"
    shutil.copytree(source, folder)
    base = registry.base_of(checkpoint)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base.repository, "revision": base.revision, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if not (folder / "tokenizer_config.json").is_file():  # else nobody could load it by one name
        _copy_tokenizer(embedded_folder(base.id), folder)
    _add_card(registry, checkpoint, root, folder, namespace, merged=False)
    return Release(
        cards.repository(registry, checkpoint, namespace), "model", folder, str(checkpoint.version), registry.collection
    )


def merged_release(registry: Registry, checkpoint: Checkpoint, root: Path, scratch: Path, namespace: str) -> Release:
    """The whole model, its adapter merged into the base."""
    from persona_tasks.hub.models import merged_folder

    folder = scratch / "merged"
    shutil.copytree(merged_folder(registry, checkpoint, root), folder)
    _add_card(registry, checkpoint, root, folder, namespace, merged=True)
    name = cards.repository(registry, checkpoint, namespace, merged=True)
    return Release(name, "model", folder, str(checkpoint.version), registry.collection)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in TOKENIZER:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _add_card(
    registry: Registry, checkpoint: Checkpoint, root: Path, folder: Path, namespace: str, merged: bool
) -> None:
    card = cards.render(registry, checkpoint, root, namespace, merged)
    (folder / "README.md").write_text(card, encoding="utf-8")
    for name in (cards.CURVE, cards.PAGE):
        if (file := (root / cards.card_file(checkpoint)).with_name(name)).is_file():
            shutil.copyfile(file, folder / name)
    if rows := eval_results(registry, checkpoint, namespace):
        file = folder / EVAL_RESULTS
        file.parent.mkdir()
        file.write_text(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True), encoding="utf-8")


def eval_results(registry: Registry, checkpoint: Checkpoint, namespace: str) -> list[dict[str, Any]]:
    """Rows for the Hub's own leaderboards: the tasks that the benchmark's `eval.yaml` holds, and only those."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    benchmark = registry.benchmark
    rows = []
    for score in cards.scores_of(registry, checkpoint):
        task = registry.task(score.task)
        value = score.value(task.metrics[0])
        if not task.on_hub or value is None:
            continue
        bounds = f"; 95 % [{value.interval[0]}, {value.interval[1]}]" if value.interval else ""
        log = score.logs[0]
        entry = EvalResultEntry(
            dataset_id=f"{namespace}/{benchmark.repository.partition('/')[2]}",
            task_id=task.id,
            value=value.value,
            dataset_revision=benchmark.published.revision if benchmark.published else None,
            date=score.date.isoformat(),
            source_url=log.url,
            source_name="Evaluation log" if log.url else None,
            notes=f"{value.metric}; n={value.n}{bounds}; task version {score.task_version}; {score.harness}",
        )
        rows.append(entry)
    found: list[dict[str, Any]] = eval_result_entries_to_yaml(rows)
    return found
