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

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence

from persona_tasks.embedded.weights import load_model
from persona_tasks.personas import Persona, Question, load_bank
from persona_tasks.protocol.play import simulator_prompt
from persona_tasks.protocol.prompts import render


class Reader:
    """The embedded model, asked for likelihoods."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load_model("smollm2-135m", "bfloat16", None)

    @torch.inference_mode()
    def choose(self, system: str, question: Question) -> int:
        """Index of the option with the highest mean log-likelihood per token."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question.question}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        options = [self.tokenizer(option, add_special_tokens=False)["input_ids"] for option in question.options]
        rows = [torch.tensor(prompt + option) for option in options]
        batch = pad_sequence(rows, batch_first=True)
        logits = self.model(batch, logits_to_keep=batch.shape[1] - len(prompt) + 1).logits.float()
        scores = []
        for row, option in zip(logits.log_softmax(-1), options, strict=True):
            scores.append(row[range(len(option)), option].mean().item())
        return max(range(5), key=scores.__getitem__)


def accuracy(reader: Reader, personas: Sequence[Persona], with_persona: bool) -> list[bool]:
    """Right or wrong for every question of these personas."""
    bank, right = load_bank(), []
    for persona in track(personas, f"persona: {with_persona}", console=Console(stderr=True), transient=True):
        setting = bank.scenarios[persona.scenario]
        nobody = render("simulator_without_persona", setting=setting.setting, role=setting.simulator_role)
        system = simulator_prompt(persona, setting) if with_persona else nobody
        right += [reader.choose(system, question) == question.answer for question in persona.questions]
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
