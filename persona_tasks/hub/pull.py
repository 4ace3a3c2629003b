"""Getting a checkpoint: from the Hub at its pinned commit, from the cache, or from this package; always verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from persona_tasks.embedded.weights import embedded_folder, load_model, sha256
from persona_tasks.hub.client import client
from persona_tasks.hub.entries import Checkpoint
from persona_tasks.hub.registry import Registry, load, registry_file, root_of

Source = Literal["hub", "cache", "embedded"]


class PullError(RuntimeError):
    """A checkpoint cannot be had, or is not what it should be. The message says what to do."""


@dataclass(frozen=True)
class Pulled:
    """A checkpoint on this machine: a model folder, or an adapter's."""

    checkpoint: Checkpoint
    folder: Path
    source: Source


def pull(name: str) -> Pulled:
    """Bring a checkpoint here: from the Hub, or else from its cache, or else the copy in this package.

    Raises:
        RegistryError: There is no checkpoint of this name.
        PullError: It is nowhere to be had, or its weights are not those of the registry.
        WeightsError: The same of an embedded base model.
    """
    file = registry_file()
    registry = load(file)
    checkpoint = registry.checkpoint(name)
    if checkpoint.kind == "base":
        return Pulled(checkpoint, embedded_folder(name), "embedded" if checkpoint.package else "hub")
    embedded = root_of(file) / str(checkpoint.folder)
    if checkpoint.published is None:
        return _embedded(checkpoint, embedded, f"{name} is not published yet")
    try:
        folder, source = _download(checkpoint)
    except PullError as error:
        return _embedded(checkpoint, embedded, str(error))
    _verify(checkpoint, folder)
    return Pulled(checkpoint, folder, source)


def _download(checkpoint: Checkpoint) -> tuple[Path, Source]:
    """A commit never changes: what the cache has of it needs no network."""
    assert checkpoint.published  # the caller looked
    wanted = checkpoint.published
    try:
        folder = Path(client().snapshot_download(wanted.repository, revision=wanted.revision, local_files_only=True))
        if all((folder / file.path).is_file() for file in checkpoint.files):
            return folder, "cache"
    except OSError:
        pass
    try:
        return Path(client().snapshot_download(wanted.repository, revision=wanted.revision)), "hub"
    except Exception as error:  # offline, blocked, gone: the reasons are many and the remedy is the same
        reason = type(error).__name__
    raise PullError(f"{wanted.repository} could not be downloaded ({reason}) and is not in the cache")


def _embedded(checkpoint: Checkpoint, folder: Path, why_not: str) -> Pulled:
    if not (folder / "adapter_model.safetensors").is_file():
        raise PullError(f"{why_not}, and no copy of it lies in {folder}")
    _verify(checkpoint, folder)
    return Pulled(checkpoint, folder, "embedded")


def _verify(checkpoint: Checkpoint, folder: Path) -> None:
    """A download is checked by its size only, and a cache not at all."""
    for file in checkpoint.files:
        path = folder / file.path
        if file.path.endswith(".safetensors") and (not path.is_file() or sha256(path) != file.sha256):
            raise PullError(
                f"{path} is not the file that the registry lists (sha256 differs); delete it and pull again"
            )


def instructions(registry: Registry, pulled: Pulled) -> list[str]:
    """How to use what was pulled, one line each."""
    checkpoint, where = pulled.checkpoint, {"hub": "downloaded to", "cache": "from the cache,"}
    said = where.get(pulled.source, "the copy in this package,")
    lines = [f"{checkpoint.id}: {said} {pulled.folder}"]
    if checkpoint.role == "judge":
        lines.append(f"inspect eval persona_tasks/drift --model MODEL --model-role judge=persona/{checkpoint.id}")
        lines.append(f"lm_eval --tasks persona_drift ... --metadata judge=persona/{checkpoint.id}")
    else:
        lines.append(f"inspect eval persona_tasks/drift --model persona/{checkpoint.id}")
        if checkpoint.kind == "adapter":
            base = registry.base_of(checkpoint).repository
            lines.append(
                f"lm_eval --tasks persona_drift --model hf --model_args pretrained={base},peft={pulled.folder}"
            )
    lines.append(f'python: model, tokenizer = persona_tasks.load_simulator("{checkpoint.id}")')
    return lines


def load_simulator(name: str, **options: Any) -> tuple[Any, Any]:
    """A checkpoint's model, adapter merged, and its tokenizer, ready to `generate`.

    Args:
        name: A checkpoint of the registry, such as `sim-135m`.
        options: `dtype` and `device` as in `persona_tasks.embedded.weights.load_model`.

    Raises:
        RegistryError, PullError, WeightsError: See `pull`.
    """
    pull(name)
    return load_model(name, **options)
