"""What all training commands share: the recipe, the command line, and what a run leaves behind.

    python -m training.<method> --config training/recipes/<recipe>.yaml --out runs/<name> [--resume] [--set key=value]

A run's folder holds ``recipe.json`` (the settings), ``origin.json`` (command, commit, versions, machine, date), and the
trained adapter in ``adapter``, or the whole model in ``model``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from huggingface_hub import ModelCardData
from peft import LoraConfig, PeftConfig, PeftModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_tasks.embedded.weights import known

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
START = "Adapter of `base` that training goes on from, and holds on to (KL): its rank, its layers."
PACKAGES = ("torch", "transformers", "trl", "peft", "persona-tasks")


class RecipeError(ValueError):
    """A recipe cannot be used. The message names the file, the key and the reason."""


class Recipe(BaseModel):
    """Settings that every method has; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")
    base: str = Field("smollm2-135m", description="Name of an embedded model, a model folder, or a Hub id.")
    seed: int = 0


AnyRecipe = TypeVar("AnyRecipe", bound=BaseModel)


def load_recipe(kind: type[AnyRecipe], file: Path, changes: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe.

    Args:
        kind: The method's settings.
        file: YAML.
        changes: ``key=value``, over the file's; a dot goes into a section, as in ``rewards.qa=0.5``.

    Raises:
        RecipeError: The file cannot be read, or a key is unknown or has a value that cannot be.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{file}: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{file}: a recipe is a mapping of keys to values")
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise RecipeError(f"--set {change}: give it as key=value")
        *sections, key = path.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = yaml.safe_load(value)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"{file}: {problems}") from None


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a method; its module's docstring is the help text."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", type=Path, required=True, help="recipe (YAML)")
    made.add_argument("--out", type=Path, required=True, help="folder of the run")
    made.add_argument("--resume", action="store_true", help="from the last checkpoint in --out")
    made.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings over those of the recipe")
    return made


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the process with one sentence where one of our own errors says what to do; others are bugs, and say where."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("persona_tasks", "training"):
            raise
        raise SystemExit(f"error: {error}") from None


def begin(out: Path, recipe: BaseModel) -> None:
    """Make the folder of a run and write down what is about to be done, before anything is."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / "origin.json").write_text(json.dumps(origin(), indent=2) + "\n", encoding="utf-8")


def origin() -> dict[str, Any]:
    """Command, commit, versions, machine and date of this process, for the record; no path of this machine."""
    where = Path(__file__).parent
    git = ["git", "-C", str(where)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    main = sys.modules["__main__"].__spec__
    command = ["python", "-m", main.name if main else Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "command": shlex.join(os.path.relpath(part) if Path(part).is_absolute() else part for part in command),
        "commit": head.stdout.strip() + ("+" if changed.stdout.strip() else ""),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": gpu or f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def lora(rank: int, first_layer: int = 0, layers: int | None = None, dropout: float = 0.0) -> LoraConfig:
    """LoRA on all linear maps of the layers from `first_layer` to `layers`; layers below need no gradients."""
    chosen = list(range(first_layer, layers)) if layers is not None else None
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules=MODULES,
        layers_to_transform=chosen,
        task_type="CAUSAL_LM",
    )


def check_start(start: Path | None, rank: int) -> None:
    """Raises: RecipeError if an adapter is to be trained further together with all weights."""
    if start is not None and not rank:
        raise RecipeError("start is an adapter, and rank=0 trains all weights: leave one of them out")


def load_adapter(model: Any, base: str, folder: Path) -> PeftModel:
    """Put an adapter on its base to train it further.

    Raises:
        RecipeError: The folder holds none in safetensors, or one of another base.
    """
    if not all((folder / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors")):
        raise RecipeError(f"start: {folder} holds no adapter (adapter_config.json and adapter_model.safetensors)")
    of = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    entry = known(base)
    if of not in (base, entry.repository if entry else base):
        raise RecipeError(f"start: {folder} is an adapter of {of}, not of base={base}")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def save_adapter(model: PeftModel, base: str, folder: Path) -> None:
    """Save the adapter in bfloat16 safetensors, for the base by the name that everybody knows, with a card."""
    if (entry := known(base)) is not None:  # not a folder of this machine
        model.peft_config["default"].base_model_name_or_path = entry.repository
        model.peft_config["default"].revision = entry.revision
    # an adapter that was trained further has its beginning beside it, as TRL's reference
    model.to(torch.bfloat16).save_pretrained(folder, selected_adapters=["default"])
    (folder / "README.md").write_text(card(base, folder.parent), encoding="utf-8")  # over peft's blank one


def card(base: str, run: Path) -> str:
    """What is known about the adapter of a run: its base, its settings, where it comes from. No claim of quality."""
    entry = known(base)
    data = ModelCardData(
        base_model=entry.repository if entry else None,
        base_model_relation="adapter",
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["persona-tasks", "lora"],
    )
    told = [
        f"## {title}\n\n```json\n{file.read_text(encoding='utf-8').strip()}\n```\n"
        for title, file in (("Settings", run / "recipe.json"), ("Origin", run / "origin.json"))
        if file.is_file()
    ]
    about = "A LoRA adapter trained with persona-tasks. What it is worth has to be measured: `training.compare`.\n"
    return "\n".join([f"---\n{data.to_yaml()}\n---\n", f"# {run.name}\n", about, *told])
