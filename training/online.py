"""What training on fresh dialogues needs, whatever the method: the recipe's common keys, the checks, the run.

Everything that can be known to go wrong is found out by `prepare`, before any weight moves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import get_last_checkpoint, set_seed
from trl import GRPOConfig

from persona_tasks.embedded.limits import ModelShape
from persona_tasks.embedded.weights import fitting_dtype, known, load_model
from persona_tasks.lm_eval_tasks.roles import open_role
from persona_tasks.personas import Persona, load_bank
from persona_tasks.protocol.limits import LINE_TOKENS
from persona_tasks.protocol.partners import Partner
from persona_tasks.protocol.play import blank
from persona_tasks.protocol.prompts import simulator_prompt
from persona_tasks.transcript import ProbeMode
from training import recipe as common
from training.dialogue_trainer import DialogueTrainer, forget_after
from training.recipe import RecipeError
from training.rewards import JudgeError, Rewards, RewardSettings, sample_dialogue
from training.rollout import Rollout, Template


class Recipe(common.Recipe):
    """Settings of training on fresh dialogues; unknown keys are errors."""

    personas: str | None = Field(None, description="Folder of a bank of your own.")
    scenario: str = Field("all", description="A scenario, or all.")
    split: str = Field("train", description="Which personas, and which of the partner's lines.")
    start: Path | None = Field(None, description=common.START)
    turns: int = Field(6, gt=0, description="Lines that the simulator says in a dialogue.")
    dialogues: int = Field(32, gt=0, description="Dialogues per step, of all processes together.")
    group: int = Field(8, gt=1, description="Dialogues per persona and step; they are compared with one another.")
    steps: int = Field(60, gt=0, description="How often dialogues are held.")
    updates: int = Field(1, gt=0, description="How often the weights are updated with the dialogues of a step.")
    batch: int = Field(2, gt=0, description="Dialogues per forward and backward pass and process; memory.")
    line_tokens: int = Field(LINE_TOKENS, gt=0, description="At most so many tokens a line.")
    questions: int = Field(3, ge=0, description="Questions about itself after the last turn, if rewards.qa is not 0.")
    probe_mode: ProbeMode = Field("choice", description="How they are put: with five options, or open.")
    partner: str = Field("scripted", description="scripted, or a model: persona/..., a folder, openai:MODEL@URL.")
    judge: str = Field("persona/judge-135m", description="Who judges: persona/..., a folder, openai:MODEL@URL.")
    connections: int = Field(16, gt=0, description="Requests in flight to a judge or partner behind a URL.")
    rewards: RewardSettings = Field(RewardSettings(), description="Weights and settings of the rewards.")
    temperature: float = Field(0.7, gt=0, description="Of sampling; part of the policy.")
    frequency_penalty: float = Field(
        0.6, ge=0, description="Per time that a token was said in the line, off its logit; part of the policy."
    )
    generation: Literal["engine", "vllm", "transformers"] = Field(
        "engine", description="engine: ours, in this process; vllm; transformers: slow, for models that neither runs."
    )
    vllm_server: str | None = Field(None, description="Address of a vLLM server; none: vLLM in this process.")
    vllm_memory: float = Field(0.3, gt=0, lt=1, description="Share of the GPU for vLLM in this process.")
    beta: float = Field(0.02, ge=0, description="Weight of the KL divergence from the base.")
    clip: float = Field(0.2, gt=0, description="How far the ratio of probabilities may move from 1 in one step.")
    learning_rate: float = Field(1e-4, gt=0, description="Of AdamW.")
    warmup: int = Field(0, ge=0, description="Steps in which the learning rate rises from 0.")
    rank: int = Field(16, ge=0, description="Of the LoRA adapter; 0 trains all weights.")
    first_layer: int = Field(0, ge=0, description="Layers below this one stay as they are, and need no gradients.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Of the base (an adapter is float32). auto: what the device is fast in; float32 for rank 0."
    )
    gradient_checkpointing: bool = Field(False, description="Less memory, a third more computing.")
    save_every: int = Field(5, gt=0, description="Steps from checkpoint to checkpoint.")
    sample_every: int = Field(5, gt=0, description="Steps from one dialogue in the log to the next.")


@dataclass
class Prepared:
    """All that a run needs, checked."""

    model: Any
    tokenizer: Any
    rollout: Rollout
    rewards: Rewards
    personas: list[Persona]


def prepare(recipe: Recipe, processes: int = 1) -> Prepared:
    """Load what the recipe names, and find out whether it can work together.

    Raises:
        RecipeError: It cannot; the message says which key is wrong.
        RolloutError: The model's chat template cannot be used.
        JudgeError: The judge gives no verdicts.
        WeightsError, BankError: There is no such model, persona or scenario.
    """
    bank = load_bank(recipe.personas)
    personas = bank.select(recipe.scenario, recipe.split)
    questions = recipe.questions if recipe.rewards.qa else 0
    _check_sizes(recipe, len(personas), processes)
    if recipe.rewards.qa and not recipe.questions:
        raise RecipeError("rewards.qa is not 0 but questions is: nothing is asked that could be rewarded")
    if questions and (without := [persona.id for persona in personas if not persona.questions]):
        raise RecipeError(f"rewards.qa is not 0 but these personas have no questions: {', '.join(without[:5])}")
    if recipe.generation == "transformers" and recipe.frequency_penalty:
        raise RecipeError("generation=transformers knows no frequency_penalty: set it to 0, or use the engine or vllm")
    if not recipe.rewards.weights():
        raise RecipeError("rewards: all weights are 0, so nothing would be learned")
    common.check_start(recipe.start, recipe.rank)

    rewards = Rewards(recipe.rewards, open_role(recipe.judge, "judge", recipe.connections))
    partner = None if recipe.partner == "scripted" else open_role(recipe.partner, "partner", recipe.connections)
    if partner is not None:
        partner.prepare()
    model, tokenizer = load_policy(
        recipe.base, "float32" if recipe.dtype == "auto" and not recipe.rank else recipe.dtype
    )
    if recipe.start is not None:
        model = common.load_adapter(model, recipe.base, recipe.start)
    ends = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
    rollout = Rollout(
        {persona.id: persona for persona in personas},
        bank,
        Template(tokenizer, ends),
        ModelShape.of(model.config).max_length,
        recipe.turns,
        recipe.seed,
        partner,
        questions,
        recipe.probe_mode,
        recipe.line_tokens,
    )
    if (longest := rollout.longest()) > rollout.max_length:
        raise RecipeError(
            f"turns={recipe.turns}, line_tokens={recipe.line_tokens}: a dialogue may take {longest} tokens, but the "
            f"context of {recipe.base} has {rollout.max_length}"
        )
    first = personas[0]
    rewards.check(sample_dialogue(blank(first, bank.scenarios[first.scenario], Partner([]))))
    return Prepared(model, tokenizer, rollout, rewards, personas)


def _check_sizes(recipe: Recipe, personas: int, processes: int) -> None:
    if recipe.dialogues % recipe.group:
        raise RecipeError(f"dialogues={recipe.dialogues} is no multiple of group={recipe.group}")
    if recipe.dialogues % (recipe.batch * processes):
        raise RecipeError(
            f"dialogues={recipe.dialogues} cannot be split into passes of batch={recipe.batch} in {processes} processes"
        )
    if (needed := recipe.dialogues // recipe.group) > personas:
        raise RecipeError(
            f"dialogues={recipe.dialogues} in groups of {recipe.group} need {needed} personas a step; scenario="
            f"{recipe.scenario}, split={recipe.split} has {personas}"
        )


def load_policy(base: str, dtype: str) -> tuple[Any, Any]:
    """The model that is trained, and its tokenizer: embedded, from a folder, or from the Hub."""
    if dtype == "auto":
        dtype = fitting_dtype("cuda" if torch.cuda.is_available() else "cpu")
    if known(base) or Path(base).is_dir():
        return load_model(base, dtype, "cpu")  # the trainer moves it
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(base)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def arguments(recipe: Recipe, out: Path, processes: int, longest: int) -> GRPOConfig:
    """The recipe in TRL's words."""
    cpu = not torch.cuda.is_available()
    vllm: dict[str, Any] = {}
    if recipe.generation == "vllm":
        vllm = {
            "use_vllm": True,
            "vllm_mode": "server" if recipe.vllm_server else "colocate",
            "vllm_server_base_url": recipe.vllm_server,
            "vllm_gpu_memory_utilization": recipe.vllm_memory,
            "vllm_max_model_length": longest,
            # the default drops a dialogue when the sum of its tokens' differences exceeds a bound: all long ones
            "vllm_importance_sampling_mode": "token_truncate",
            "generation_kwargs": {"frequency_penalty": recipe.frequency_penalty},
        }
    return GRPOConfig(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.dialogues // (recipe.batch * processes),
        num_generations=recipe.group,
        num_iterations=recipe.updates,
        shuffle_dataset=False,  # see _dataset
        max_steps=recipe.steps * recipe.updates,
        max_completion_length=recipe.line_tokens,
        temperature=recipe.temperature,
        top_p=1.0,
        top_k=0,
        beta=recipe.beta,
        epsilon=recipe.clip,
        loss_type="dapo",  # every token of the simulator weighs the same
        scale_rewards="none",  # of TRL's own advantages, which ours replace
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=recipe.warmup,
        bf16=False,  # no autocast: it would train another function than the engine samples from
        gradient_checkpointing=recipe.gradient_checkpointing,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
        logging_steps=1,
        save_strategy="steps",
        save_steps=recipe.save_every * recipe.updates,
        save_total_limit=2,
        seed=recipe.seed,
        disable_tqdm=True,
        report_to=[],  # TensorBoard is added with a folder of our own
        **vllm,
    )


def run(recipe: Recipe, out: Path, resume: bool, make: Callable[..., DialogueTrainer]) -> DialogueTrainer:
    """Train, and save the result.

    Args:
        make: The trainer's class, with the arguments of the method bound.

    Raises:
        JudgeError: The judge fell silent. The dialogues are in `out`, and a checkpoint to resume from.
    """
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    if not resume and (out / "log.jsonl").exists():
        raise RecipeError(f"{out} holds a run already: go on with --resume, or name another --out")
    set_seed(recipe.seed)
    ready = prepare(recipe, state.num_processes)
    if state.is_main_process:
        common.begin(out, recipe)
    state.wait_for_everyone()
    settings = arguments(recipe, out, state.num_processes, ready.rollout.longest())
    lora = None
    if recipe.rank and recipe.start is None:
        lora = common.lora(recipe.rank, recipe.first_layer, ready.model.config.num_hidden_layers)
    trainer = make(
        rollout=ready.rollout,
        rewards=ready.rewards,
        out=out,
        engine=recipe.generation == "engine",
        frequency_penalty=recipe.frequency_penalty,
        sample_every=recipe.sample_every,
        model=ready.model,
        args=settings,
        train_dataset=_dataset(ready, recipe),
        processing_class=ready.tokenizer,
        peft_config=lora,
        callbacks=[_tensorboard(out)] if state.is_main_process else [],
    )
    trainer.remove_callback(PrinterCallback)  # a hundred numbers a step; `log` prints those that matter
    trainer.reward_weights = torch.tensor(list(ready.rewards.weights.values()))
    last = get_last_checkpoint(settings.output_dir) if resume and Path(settings.output_dir).is_dir() else None
    if state.is_main_process:
        forget_after(out, int(last.rsplit("-", 1)[1]) if last else 0, recipe.updates)
    state.wait_for_everyone()
    try:
        trainer.train(resume_from_checkpoint=last)
    except JudgeError:
        if trainer.state.global_step and state.num_processes == 1:  # of several, each would have to take part
            trainer._save_checkpoint(trainer.model, trial=None)
        raise
    _save(trainer, recipe, out)
    state.wait_for_everyone()
    return trainer


def _dataset(ready: Prepared, recipe: Recipe) -> Dataset:
    """One row per group, in the order in which they are played, all steps of the run.

    TRL would shuffle anew at every epoch, and after `--resume` not as in the run that was interrupted. The prompt is
    what TRL logs; the rollout renders its own.
    """
    scenarios = ready.rollout.bank.scenarios
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "system", "content": simulator_prompt(persona, scenarios[persona.scenario])}],
                "persona_id": persona.id,
            }
            for persona in persona_order(ready.personas, recipe.dialogues // recipe.group, recipe.steps, recipe.seed)
        ]
    )


def persona_order(personas: Sequence[Persona], per_step: int, steps: int, seed: int) -> list[Persona]:
    """`per_step` different personas for each step; all are used, but for a remainder, before one comes again."""
    order: list[Persona] = []
    dealer = random.Random(seed)
    while len(order) < per_step * steps:
        shuffled = dealer.sample(personas, len(personas))
        order += shuffled[: len(personas) // per_step * per_step]
    return order[: per_step * steps]


def _tensorboard(out: Path) -> TensorBoardCallback:
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(str(out / "tensorboard")))


def _save(trainer: DialogueTrainer, recipe: Recipe, out: Path) -> None:
    folder = out / ("adapter" if recipe.rank else "model")
    main = trainer.accelerator.is_main_process
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # every process has a part of the weights
        trainer.save_model(str(folder))
        if main:
            (folder / "training_args.bin").unlink()  # a pickle
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if main and isinstance(model, PeftModel):
        common.save_adapter(model, recipe.base, folder)
    elif main:
        model.to(torch.bfloat16).save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)
