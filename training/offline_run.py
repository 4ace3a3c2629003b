"""A training run of the methods that learn from judged dialogues: its folder, its checkpoints, its log, its command."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint, set_seed

from persona_tasks.embedded.chat import Chat
from persona_tasks.embedded.weights import fitting_dtype
from training import recipe as common
from training.offline import AnyRecipe, Dialogue, Recipe, Row, end_tokens, load, read_dialogues, tokens_of
from training.recipe import RecipeError


def arguments(kind: Callable[..., Any], recipe: Recipe, out: Path, **more: Any) -> Any:
    """The trainer's arguments, of the given TRL class."""
    cpu = not torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(out / "checkpoints"),
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "per_device_train_batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulate,
        "gradient_checkpointing": recipe.checkpointing,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_grad_norm": 1.0,
        "max_length": None,  # nothing is ever cut off: what doesn't fit has been refused
        "logging_steps": 1,
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "seed": recipe.seed,
        "bf16": not recipe.rank and fitting_dtype("cpu" if cpu else "cuda") == "bfloat16",
        "use_cpu": cpu,
        "dataloader_pin_memory": not cpu,
        "report_to": recipe.report_to,
        "remove_unused_columns": False,
    }
    return kind(**settings | more)


def adapter(recipe: Recipe, model: Any) -> Any:
    """The settings of a new LoRA adapter; None where one is trained further, or all weights are."""
    if recipe.start is not None or not recipe.rank:
        return None
    return common.lora(recipe.rank, recipe.first_layer, model.config.get_text_config().num_hidden_layers)


def reference(recipe: Recipe, model: Any) -> Any:
    """The model that preference methods hold on to: a copy; None with an adapter, of whose beginning TRL keeps one."""
    return None if recipe.rank else copy.deepcopy(model)


class Log(TrainerCallback):
    """Writes what the trainer logs, one JSON object a line; a resumed run begins with what its checkpoint knows.

    Of several processes the first one writes.
    """

    def __init__(self, file: Path):
        self.file = file

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.is_world_process_zero:
            self.file.write_text("", encoding="utf-8")
            self._append(state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.is_world_process_zero:
            self._append(state.log_history[-1:])

    def _append(self, entries: Sequence[dict[str, Any]]) -> None:
        # TRL's count of tokens begins at zero again in a resumed run
        kept = [{key: value for key, value in entry.items() if key != "num_tokens"} for entry in entries]
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in kept)


MakeRows = Callable[[AnyRecipe, list[Dialogue]], list[Row]]
MakeTrainer = Callable[[AnyRecipe, Any, Any, list[Row], Path], Any]


def train(
    recipe: AnyRecipe, out: Path, resume: bool, rows: MakeRows[AnyRecipe], trainer: MakeTrainer[AnyRecipe]
) -> None:
    """Read, check, train, and save `out`/adapter or `out`/model.

    Args:
        recipe: The settings.
        out: Folder of the run.
        resume: Go on from the last checkpoint in it.
        rows: Makes what is trained on from the dialogues.
        trainer: Makes the trainer from recipe, model, tokenizer, rows and `out`.

    Raises:
        RecipeError: Before any weight moves: see `read_dialogues`, `tokens_of`, `check_folder` and `rows`.
    """
    check_folder(out, recipe, resume)
    records = read_dialogues(recipe)
    set_seed(recipe.seed)
    model, tokenizer = load(recipe)
    chat, ends = Chat(tokenizer), end_tokens(model, tokenizer)
    longest = model.config.get_text_config().max_position_embeddings
    dialogues = [tokens_of(record, recipe, chat, ends, longest) for record in records]
    made = rows(recipe, dialogues)
    if recipe.limit is not None and recipe.limit < len(made):
        made = random.Random(recipe.seed).sample(made, recipe.limit)
    common.begin(out, recipe)
    runner = trainer(recipe, model, tokenizer, made, out)
    print(f"{len(made)} rows from {len(dialogues)} dialogues", file=sys.stderr)
    runner.add_callback(Log(out / "log.jsonl"))
    runner.train(resume_from_checkpoint=resume)
    if not runner.is_world_process_zero():
        return
    if recipe.rank:
        common.save_adapter(runner.model, recipe.base, out / "adapter")
    else:
        runner.model.to(torch.bfloat16).save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")


def check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Raises: RecipeError if `out` holds another run, or nothing to resume."""
    checkpoints = out / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if not resume:
        if last:
            raise RecipeError(f"{out} holds a run already: give --resume, or another --out")
        return
    if not last:
        raise RecipeError(f"{out} holds no checkpoint to resume from")
    old, new = json.loads((out / "recipe.json").read_text(encoding="utf-8")), json.loads(recipe.model_dump_json())
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed:
        raise RecipeError(f"--resume with other settings than {out} began with: {', '.join(changed)}")


def command(
    description: str | None, kind: type[AnyRecipe], rows: MakeRows[AnyRecipe], trainer: MakeTrainer[AnyRecipe]
) -> None:
    """The command line of a method."""
    options = common.parser(description).parse_args()
    with common.plain_errors():
        recipe = common.load_recipe(kind, options.config, options.set)
        train(recipe, options.out, options.resume, rows, trainer)
