"""A registry of its own in a temporary folder: a tiny base model, a real LoRA adapter of it, a recipe, our tasks."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import CommitOperationAdd
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from persona_tasks.embedded.weights import sha256
from persona_tasks.hub.cards import write_cards
from persona_tasks.hub.check import described
from persona_tasks.hub.client import client
from persona_tasks.hub.registry import Registry, load
from tests.tiny import tiny_model_folder

ROOT = Path(__file__).parents[1]
BASE = "org/tiny-base"
ADAPTER = "org/tiny-sim"


@dataclass
class World:
    """A checkout in small.

    Attributes:
        root: Where `registry.yaml` is.
        base: Folder of the base model.
    """

    root: Path
    base: Path

    @property
    def file(self) -> Path:
        return self.root / "registry.yaml"

    @property
    def adapter(self) -> Path:
        return self.root / "adapters" / "tiny-sim"

    @property
    def registry(self) -> Registry:
        return load(self.file)

    def edit(self, **changes: Any) -> None:
        """Change fields of the adapter's entry."""
        data = yaml.safe_load(self.file.read_text())
        data["checkpoints"][1].update(changes)
        self.file.write_text(yaml.safe_dump(data))

    def list_files(self) -> None:
        """Make the registry agree with what is in the adapter's folder."""
        paths = sorted(path for path in self.adapter.rglob("*") if path.is_file())
        self.edit(files=[described(self.adapter, path).model_dump() for path in paths])

    def write_cards(self) -> None:
        write_cards(self.registry, self.root)


def adapter_folder(base: Path, folder: Path, base_name: str = BASE, seed: int = 0) -> Path:
    """Train nothing, but save an adapter that changes what the model says, as peft does."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    return folder


def make_world(root: Path, base: Path | None = None, revision: str = "0" * 40) -> World:
    """Write the folder. `revision` is the commit of the base model on the Hub."""
    root.mkdir(parents=True, exist_ok=True)
    world = World(root, base or tiny_model_folder(root))
    adapter_folder(world.base, world.adapter)
    recipe = root / "training" / "recipes" / "tiny.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("steps: 1\n")
    ours = load(ROOT / "registry.yaml").model_dump(mode="json")
    for scenario in ours["scenarios"]:
        for file in scenario["files"]:
            (root / file["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file["path"], root / file["path"])
    (root / "model_cards").mkdir()
    for template in (ROOT / "model_cards").glob("*.jinja"):
        shutil.copy(template, root / "model_cards")
    base_entry = {
        "id": "tiny-base",
        "title": "A tiny base model",
        "kind": "base",
        "repository": BASE,
        "revision": revision,
        "license": "apache-2.0",
        "status": "external",
    }
    adapter_entry = {
        "id": "tiny-sim",
        "title": "A tiny simulator",
        "kind": "adapter",
        "repository": ADAPTER,
        "license": "apache-2.0",
        "base": "tiny-base",
        "folder": "adapters/tiny-sim",
        "version": "v1.0",
        "method": "kto",
        "description": "It plays a person, badly.",
        "training": {
            "personas": "the train split of all four scenarios",
            "rewards": ["consistency", "length"],
            "steps": 1,
            "seed": 0,
            "hardware": "2 CPU cores",
            "commit": "a" * 40,
        },
        "recipe": {
            "path": "training/recipes/tiny.yaml",
            "sha256": sha256(recipe),
            "command": "python -m training.kto --config training/recipes/tiny.yaml",
        },
        "limits": ["It says nothing that makes sense."],
    }
    judges = [
        {"id": "server", "name": "openai-api/local/judge", "title": "A judge behind a server", "usable": True},
        {"id": "lm-server", "name": "openai:judge", "title": "The same, as lm-eval names it", "usable": True},
    ]
    ours |= {"namespace": "org", "leaderboard": "org/leaderboard", "judges": judges, "scores": []}
    ours["benchmark"] = {**ours["benchmark"], "repository": "org/persona-drift", "status": "local", "published": None}
    files = [described(world.adapter, path).model_dump() for path in sorted(world.adapter.iterdir())]
    ours["checkpoints"] = [base_entry, {**adapter_entry, "files": files}]
    world.file.write_text(yaml.safe_dump(ours))
    write_cards(world.registry, root)
    return world


def environment(world: World, **more: str) -> dict[str, str]:
    """For processes that work on this world."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": path, "PERSONA_TASKS_REGISTRY": str(world.file), **more}


def push(folder: Path, name: str) -> str:
    """Put a folder on the Hub; returns the commit."""
    api = client()
    api.create_repo(name, exist_ok=True)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    operations = [CommitOperationAdd(path.name, str(path)) for path in files]
    return str(api.create_commit(name, operations, commit_message="base").oid)
