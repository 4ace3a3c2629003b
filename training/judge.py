"""A LoRA adapter that makes the embedded model a judge.

python -m training.judge --config training/recipes/judge.yaml --out runs/judge
python -m training.judge --config training/recipes/judge_audit.yaml --out runs/judge-audit
python -m training.judge --config training/recipes/judge.yaml --out runs/judge --resume

It learns the choices that `embedded.guided` lets a judge make: the verdict on a line, and which earlier line is in
conflict. The prompts are those of every other judge. All lines about one persona share its tokens
(`training.shared_prefix`). `--resume` goes on from the last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from pydantic import Field, model_validator
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from persona_tasks.calibration import load_items
from persona_tasks.embedded.chat import Chat
from persona_tasks.embedded.weights import load_model
from persona_tasks.transcript import Outcome
from training import recipe as common
from training.judge_data import Example, SetName, balanced, example_of, fingerprint, set_name, training_items
from training.probe import begin_with_probe
from training.shared_prefix import Backbone, Group, group
from training.short import SHORT, load_short


class Recipe(common.Recipe):
    """Settings of a run; unknown keys are errors."""

    half: str = Field("all", pattern="^(even|odd|all)$", description="Which training personas.")
    derived: int = Field(3, ge=0, description="Derived lines per persona, of each kind and label.")
    weights: dict[SetName, float] = Field(
        {}, description="Of a set in the loss; 1 if not named (0 for trained and short); 0 leaves it out."
    )
    probe: float = Field(
        0, ge=0, description="Begin with a linear probe of this strength; see training.probe. 0: none."
    )
    epochs: float = Field(3, gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    detail: float = Field(0.3, ge=0, description="Weight of naming the drift, or the line, beside the verdict's 1.")
    ranking: float = Field(0.5, ge=0, description="Weight of telling a persona's lines apart, beside the verdicts'.")
    rank: int = Field(16, gt=0)
    first_layer: int = Field(0, ge=0, description="Layers below this one stay as they are, and need no gradients.")
    tokens: int = Field(4096, gt=0, description="Computed at once; see training.shared_prefix.")
    groups_per_step: int = Field(2, gt=0)

    @model_validator(mode="after")
    def _probes_fit_in(self) -> Recipe:
        if self.probe and self.rank < 2:
            raise ValueError("probe: each of two metrics takes one of the adapter's rank: rank must be 2 at least")
        return self


class Groups(Dataset[dict[str, Any]]):
    """Examples in groups of prompts that begin alike. A Trainer's batch is one group."""

    def __init__(self, examples: Sequence[Example], tokens: int):
        self.examples = list(examples)
        keys = [f"{example.item.metric} {_prefix_key(example)}" for example in self.examples]
        first = [example.choices[0].place for example in self.examples]
        self.groups = group([example.ids for example in self.examples], keys, tokens, first)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chosen = self.groups[index]
        return {"group": chosen, "examples": [self.examples[number] for number in chosen.prompts]}

    def labelled(self) -> list[tuple[Group, list[Example]]]:
        """The groups, each with its examples."""
        return [(batch["group"], batch["examples"]) for batch in (self[number] for number in range(len(self)))]


def _prefix_key(example: Example) -> str:
    """Prompts about a line begin with the persona; those about pairs, or short persons, with the same instructions."""
    item = example.item
    return item.transcript.persona_id if item.metric == "prompt_to_line" and item.set != SHORT else ""


class JudgeTrainer(Trainer):
    """Cross-entropy over the tokens that a judge chooses among; what follows a verdict weighs `detail`.

    To it comes, weighed `ranking`, how often a line that contradicts looks better than one of the same group and set
    that does not: the logistic loss of the difference of their log-odds, over all such pairs (RankNet, Burges et al.
    2005). Not across sets: whose voice it is would tell those apart.
    """

    detail: float
    ranking: float
    backbone: Backbone

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        losses = []
        odds: dict[str, dict[Outcome, list[Tensor]]] = {}
        for example, choices in zip(
            inputs["examples"], choice_logits(model, self.backbone, inputs["group"], inputs["examples"]), strict=True
        ):
            verdict, *others = (
                -(torch.tensor(choice.target, device=logits.device) * logits.log_softmax(-1)).sum()
                for choice, logits in zip(example.choices, choices, strict=True)
            )
            losses.append(example.weight * (verdict + self.detail * sum(others)))
            of_set = odds.setdefault(set_name(example.item), {"contradicts": [], "consistent": []})
            of_set[example.item.label].append(log_odds(choices[0], example))
        loss = torch.stack(losses).mean()
        pairs = [
            (torch.stack(of_set["consistent"])[None] - torch.stack(of_set["contradicts"])[:, None]).flatten()
            for of_set in odds.values()
            if all(of_set.values())
        ]
        if self.ranking and pairs:
            ranked = torch.stack([torch.nn.functional.softplus(worse).mean() for worse in pairs])
            loss = loss + self.ranking * ranked.mean()
        return loss


def log_odds(logits: Tensor, example: Example) -> Tensor:
    """Of "contradicts" against "consistent", from the logits of the first choice."""
    guilty = torch.tensor(example.contradicts, device=logits.device)
    return logits[guilty].logsumexp(0) - logits[~guilty].logsumexp(0)


def choice_logits(model: Any, backbone: Backbone, batch: Group, examples: Sequence[Example]) -> Iterator[list[Tensor]]:
    """For each example, and each of its choices, the logits of the allowed tokens, float32."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    places = [[choice.place for choice in example.choices] for example in examples]
    for states, example in zip(backbone.hidden_at(batch, places), examples, strict=True):
        rows = [inner.lm_head.weight[list(choice.allowed)] for choice in example.choices]
        yield [(row @ state).float() for row, state in zip(rows, states, strict=True)]


def log_odds_of(model: Any, backbone: Backbone, batch: Group, examples: Sequence[Example]) -> list[float]:
    """Log-odds of "contradicts" for each example."""
    chosen = zip(examples, choice_logits(model, backbone, batch, examples), strict=True)
    return [float(log_odds(logits, example)) for example, (logits, *_) in chosen]


@torch.no_grad()
def validate(model: Any, backbone: Backbone, groups: Groups) -> dict[str, float]:
    """AUC of "contradicts" for each set and metric of the verdicts in `groups`."""
    model.eval()
    seen: dict[str, list[tuple[bool, float]]] = {}
    for number in range(len(groups)):
        batch = groups[number]
        found = log_odds_of(model, backbone, batch["group"], batch["examples"])
        for example, odds in zip(batch["examples"], found, strict=True):
            seen.setdefault(set_name(example.item), []).append((example.item.label == "contradicts", odds))
    return {
        name: round(float(roc_auc_score(*zip(*pairs, strict=True))), 4)
        for name, pairs in seen.items()
        if len({label for label, _ in pairs}) == 2
    }


class Validation(TrainerCallback):
    """Validates after each epoch, and appends the result to a file."""

    def __init__(self, backbone: Backbone, groups: Groups, log: Path):
        self.backbone, self.groups, self.log = backbone, groups, log
        self.last: dict[str, float] | None = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self.last = validate(model, self.backbone, self.groups)
        result = {"epoch": round(state.epoch, 2), "step": state.global_step, **self.last}
        print(result, flush=True)
        with self.log.open("a") as file:
            file.write(json.dumps(result) + "\n")


def train(recipe: Recipe, out: Path, resume: bool) -> dict[str, float]:
    """Train, validate on the dev personas after each epoch, and save the adapter in `out`/adapter."""
    set_seed(recipe.seed)
    model, tokenizer = load_model(recipe.base)
    model.set_attn_implementation("sdpa")
    chat = Chat(tokenizer)
    items = training_items(recipe.half, recipe.seed, recipe.derived, recipe.weights)
    data = {"items": len(items), "sha256": fingerprint(items)}
    (out / "data.json").write_text(json.dumps(data) + "\n", encoding="utf-8")
    examples = balanced([example_of(item, chat, context) for item, context in items], recipe.weights)
    others = load_short(recipe.half, "dev") if recipe.weights.get("short/prompt_to_line") else []
    learned = {set_name(item) for item, _ in items}
    dev = [item for item in load_items(split="dev") if set_name(item) in learned]
    held_out = [example_of(item, chat) for item in (*dev, *others)]
    training, validation = Groups(examples, recipe.tokens), Groups(held_out, recipe.tokens)
    tokens = sum(chosen.tokens for chosen in training.groups)
    alone = sum(len(example.ids) for example in examples)
    print(f"{len(items)} items, {tokens} tokens in {len(training)} groups ({alone} unshared)")

    lora = common.lora(recipe.rank, recipe.first_layer, model.config.num_hidden_layers)
    peft_model = get_peft_model(model, lora)
    backbone = Backbone(model.model, recipe.first_layer)
    if recipe.probe and not resume:
        fitted = begin_with_probe(
            peft_model, backbone, training.labelled(), recipe.probe, partial(log_odds_of, peft_model, backbone)
        )
        print(f"probes: {fitted}", flush=True)
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.groups_per_step,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_grad_norm=1.0,
        logging_steps=10,
        save_strategy="epoch",
        save_total_limit=1,
        seed=recipe.seed,
        report_to=[],
        remove_unused_columns=False,
    )
    watch = Validation(backbone, validation, out / "validation.jsonl")
    trainer = JudgeTrainer(
        model=peft_model, args=arguments, train_dataset=training, data_collator=lambda batch: batch[0],
        callbacks=[watch],
    )  # fmt: skip
    trainer.detail, trainer.ranking, trainer.backbone = recipe.detail, recipe.ranking, backbone
    trainer.train(resume_from_checkpoint=resume)
    common.save_adapter(peft_model, recipe.base, out / "adapter")
    found: dict[str, float] = watch.last or validate(
        peft_model, backbone, validation
    )  # a resumed run may have been at its end
    return found


def main() -> None:
    """Parse the command line and train."""
    options = common.parser(__doc__).parse_args()
    with common.plain_errors():
        recipe = common.load_recipe(Recipe, options.config, options.set)
        common.begin(options.out, recipe)
        print(train(recipe, options.out, options.resume))


if __name__ == "__main__":
    main()
