"""TRL's supervised trainer on whole dialogues: what SFT and the signed policy gradient share.

TRL's loss reads the persona once per dialogue, and on a CPU its fused head scores every token of it. Here what the rows
of a persona in a batch begin with is computed once, and the vocabulary's projection only where a token is learned.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from training import offline, offline_run
from training.offline import IGNORED, Row
from training.token_tree import token_tree


def by_persona(made: list[Row], seed: int) -> list[Row]:
    """The rows in a random order of personas, those of one persona beside each other, the shortest first.

    So branches of a dialogue lie beside each other, and a batch shares more of it than the prompt.
    """
    rng = random.Random(seed)
    people: dict[str, list[Row]] = defaultdict(list)
    for row in rng.sample(made, len(made)):
        people[row["persona"]].append(row)
    return [row for rows in people.values() for row in sorted(rows, key=lambda row: len(row["input_ids"]))]


@dataclass
class Collator(DataCollatorForLanguageModeling):
    """TRL's collator, ``rewards`` ``[rows, tokens]`` where the rows have some, and the names in ``persona``."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        plain = [{key: example[key] for key in ("input_ids", "labels")} for example in examples]
        output: dict[str, Any] = super().torch_call(plain)
        output["persona"] = [example["persona"] for example in examples]
        if "rewards" in examples[0]:
            output["rewards"] = torch.zeros(output["input_ids"].shape)
            for row, example in enumerate(examples):
                output["rewards"][row, : len(example["rewards"])] = torch.tensor(example["rewards"])
        return output


class DialogueSFTTrainer(SFTTrainer):
    """Takes rows ``{input_ids, labels, persona}`` as they are; subclasses give the loss of a token."""

    def learned(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the labelled tokens.

        Returns:
            ``[N]`` of all of them, and where they stand, ``[N, 2]``: row, and place in its labels.
        """
        labels, ids, mask = inputs["labels"], inputs["input_ids"], inputs["attention_mask"]
        places = (labels != IGNORED).nonzero()
        places = places[places[:, 1] > 0]  # nothing predicts the first token
        # each process must make as many passes as any other, whatever personas its rows are of
        if self.accelerator.num_processes > 1:
            outputs = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
            return outputs.log_probs[places[:, 0], places[:, 1] - 1], places
        head, found = self.accelerator.unwrap_model(model).get_output_embeddings(), []
        for _, persona_rows in groupby(range(len(ids)), inputs["persona"].__getitem__):
            rows = list(persona_rows)
            tree = token_tree([ids[row][mask[row] == 1].tolist() for row in rows])
            own = places[(places[:, 0] >= rows[0]) & (places[:, 0] <= rows[-1])]
            before = [int(tree.paths[row - rows[0]][place - 1]) for row, place in own.tolist()]
            logits = head(tree.states(model)[before]).float()
            found.append(logits.log_softmax(-1).gather(1, labels[own[:, 0], own[:, 1]][:, None])[:, 0])
        return torch.cat(found), places

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean of `losses` over the labelled tokens of a step."""
        logps, places = self.learned(model, inputs)
        loss = self.losses(logps, places, inputs).sum()
        loss = loss / (max(len(logps), 1) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the tokens are those of all processes, gradients a mean
        return (loss, None) if return_outputs else loss

    def losses(self, logps: Tensor, places: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The loss of each labelled token, ``[N]``."""
        return -logps


Made = TypeVar("Made", bound=DialogueSFTTrainer)


def make(kind: type[Made], recipe: offline.Recipe, model: Any, tokenizer: Any, made: list[Row], out: Path) -> Made:
    """The trainer of a recipe. TRL's own masking of lines would need another chat template."""
    return kind(
        model=model,
        args=offline_run.arguments(SFTConfig, recipe, out, train_sampling_strategy="sequential"),
        data_collator=Collator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(by_persona(made, recipe.seed)),
        processing_class=tokenizer,
        peft_config=offline_run.adapter(recipe, model),
    )
