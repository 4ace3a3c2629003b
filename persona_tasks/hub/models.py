"""The merged model of an adapter, made once and kept."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from persona_tasks.embedded.weights import cache_folder, embedded_folder, sha256
from persona_tasks.hub.entries import Checkpoint
from persona_tasks.hub.registry import Registry


def merged_folder(registry: Registry, checkpoint: Checkpoint, root: Path) -> Path:
    """A folder with the adapter merged into its base, as transformers saves it.

    Kept in the cache under the adapter's checksum: computing it again could differ in the last bit.
    """
    source = root / str(checkpoint.folder)
    folder = cache_folder() / "merged" / f"{checkpoint.id}-{sha256(source / 'adapter_model.safetensors')[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}~", dir=folder.parent))
    try:
        _merge(embedded_folder(registry.base_of(checkpoint).id), source, scratch / "new")
        (scratch / "new").replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _merge(base: Path, adapter: Path, target: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stored = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True).dtype
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    # an adapter's changes are smaller than bfloat16's steps: add them in float32, round once
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().to(stored)
    merged.save_pretrained(target)
    own = (adapter / "tokenizer_config.json").is_file()
    AutoTokenizer.from_pretrained(adapter if own else base, local_files_only=True).save_pretrained(target)
    for file in ("config.json", "generation_config.json"):  # transformers notes where the model was loaded from
        _forget_folder(target / file)


def _forget_folder(file: Path) -> None:
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
