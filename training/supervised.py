"""TRL's supervised trainer on whole dialogues: what SFT and the signed policy gradient share.

TRL's loss reads the persona once per dialogue, and on a CPU its fused head scores every token of it. Here the prompt of
a persona's dialogues in a batch is computed once, and the vocabulary's projection only where a token is learned.
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
from transformers import DynamicCache
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from training import offline
from training.offline import IGNORED, Row


def by_persona(made: list[Row], seed: int) -> list[Row]:
    """The rows in a random order of personas, those of one persona beside each other, the shortest first.

    So branches of a dialogue lie beside each other, and a batch shares more of it than the prompt.
    """
    rng = random.Random(seed)
    people: dict[str, list[Row]] = defaultdict(list)
    for row in rng.sample(made, len(made)):
        people[row["persona"]].append(row)
    return [row for rows in people.values() for row in sorted(rows, key=lambda row: len(row["input_ids"]))]


def last_states(model: Any, input_ids: Tensor, attention_mask: Tensor, before: int) -> tuple[Tensor, int]:
    """Hidden states after the last layer, of rows that begin alike; what they share is computed once.

    Args:
        model: A transformers language model, wrapped or not.
        input_ids: ``[B, T]``, padded on the right.
        attention_mask: The same shape, 0 where there is padding.
        before: At most so many places count as shared: no state is wanted of them.

    Returns:
        ``[B, T - shared, hidden]``, and how many places are shared.
    """
    alike = (input_ids == input_ids[0]).all(0) & (attention_mask == 1).all(0)
    shared = min(int(alike.long().cumprod(0).sum()), before) if len(input_ids) > 1 else 0
    cache = DynamicCache()
    if shared:
        model(input_ids=input_ids[:1, :shared], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(input_ids))
    states: Tensor = model(
        input_ids=input_ids[:, shared:],
        attention_mask=attention_mask,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        output_hidden_states=True,
    ).hidden_states[-1]
    return states, shared


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
        # checkpointing knows no keys of an earlier pass; and each process must make as many passes as any other
        if self.args.gradient_checkpointing or self.accelerator.num_processes > 1:
            outputs = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
            return outputs.log_probs[places[:, 0], places[:, 1] - 1], places
        head, found = self.accelerator.unwrap_model(model).get_output_embeddings(), []
        for _, rows in groupby(range(len(ids)), inputs["persona"].__getitem__):
            first, *others = rows
            last = first + len(others) + 1
            own = places[(places[:, 0] >= first) & (places[:, 0] < last)]
            if not len(own):
                continue
            width = int(mask[first:last].sum(1).max())
            before = int(own[:, 1].min()) - 1
            states, shared = last_states(model, ids[first:last, :width], mask[first:last, :width], before)
            logits = head(states[own[:, 0] - first, own[:, 1] - 1 - shared]).float()
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
        args=offline.arguments(SFTConfig, recipe, out, train_sampling_strategy="sequential"),
        data_collator=Collator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(by_persona(made, recipe.seed)),
        processing_class=tokenizer,
        peft_config=offline.adapter(recipe, model),
    )
