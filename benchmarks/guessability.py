"""Can the bank's questions be answered without the persona? The embedded model picks the likeliest option.

python benchmarks/guessability.py [--split test] [--json]

An option's score is its mean log-likelihood per token as the answer to the question. Chance is 0.2. With the persona in
the prompt the score says how well this model reads; without it, how much the wording of a question gives away.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from persona_tasks.embedded.weights import load_model
from persona_tasks.personas import Persona, Question, load_bank
from persona_tasks.protocol.play import simulator_prompt
from persona_tasks.protocol.prompts import render


class Reader:
    """The embedded model, asked for likelihoods. What all questions about a persona begin with is read once."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load_model("smollm2-135m")

    def ids(self, messages: list[dict[str, str]], answer: bool) -> list[int]:
        """Token ids of the messages, up to where the assistant begins to speak if `answer`."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    @torch.inference_mode()
    def choose(self, system: str, questions: Sequence[Question]) -> list[int]:
        """For each question the index of the option with the highest mean log-likelihood per token."""
        start = [{"role": "system", "content": system}]
        shared = self.ids(start, answer=False)
        read = DynamicCache()
        self.model(torch.tensor([shared]), past_key_values=read, use_cache=True, logits_to_keep=1)
        chosen = []
        for question in questions:
            prompt = self.ids([*start, {"role": "user", "content": question.question}], answer=True)
            assert prompt[: len(shared)] == shared, "the chat template is not prefix-preserving"
            rest = prompt[len(shared) :]
            options = [self.tokenizer(option, add_special_tokens=False)["input_ids"] for option in question.options]
            batch = pad_sequence([torch.tensor(rest + option) for option in options], batch_first=True)
            past = deepcopy(read)
            past.batch_repeat_interleave(len(options))
            logits = self.model(batch, past_key_values=past, use_cache=True).logits[:, len(rest) - 1 :].float()
            scores = [
                row[range(len(option)), option].mean().item()
                for row, option in zip(logits.log_softmax(-1), options, strict=True)
            ]
            chosen.append(max(range(5), key=scores.__getitem__))
        return chosen


def accuracy(reader: Reader, personas: Sequence[Persona], with_persona: bool) -> list[bool]:
    """Right or wrong for every question of these personas."""
    bank, right = load_bank(), []
    for persona in track(personas, f"persona: {with_persona}", console=Console(stderr=True), transient=True):
        setting = bank.scenarios[persona.scenario]
        nobody = render("simulator_without_persona", setting=setting.setting, role=setting.simulator_role)
        system = simulator_prompt(persona, setting) if with_persona else nobody
        chosen = reader.choose(system, persona.questions)
        right += [option == question.answer for option, question in zip(chosen, persona.questions, strict=True)]
    return right


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test", help="train, dev, test or all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    reader, rows = Reader(), []
    for scenario in sorted(load_bank().scenarios):
        personas = load_bank().select(scenario, options.split)
        for with_persona in (False, True):
            right = accuracy(reader, personas, with_persona)
            share = sum(right) / len(right)
            error = math.sqrt(share * (1 - share) / len(right))
            rows.append({"scenario": scenario, "persona": with_persona, "right": share, "se": error, "n": len(right)})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("scenario", "persona in the prompt", "right", "± s.e.", "questions", title="chance is 0.20")
    for row in rows:
        table.add_row(row["scenario"], str(row["persona"]), f"{row['right']:.3f}", f"{row['se']:.3f}", str(row["n"]))
    Console().print(table)


if __name__ == "__main__":
    main()
