"""`persona_qa`: questions about the persona after 0, 4 or 8 turns of a written dialogue, as `multiple_choice`.

No judge and nothing generated: the five options are compared by their log-likelihood, so base models can be measured.
The partner's lines are those of `persona_drift`. The simulator's are neutral ones that say nothing about anybody
(neutral_answers.txt): what changes with the depth is only how far back the persona is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from persona_tasks.lm_eval_tasks.render import Chat, plain
from persona_tasks.lm_eval_tasks.settings import Settings, kept, read_settings
from persona_tasks.personas import Persona, load_bank
from persona_tasks.protocol.asks import Message
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.prompts import simulator_prompt

ANSWERS = Path(__file__).parent / "neutral_answers.txt"

Doc = dict[str, Any]


class PersonaQA(ConfigurableTask):  # type: ignore[misc]
    """One depth (the YAML's `dataset_name`, the number of turns): each document is a question."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        given = {name: value for name, value in (config or {}).items() if name != "class"}
        metadata = given.get("metadata") or {}
        self.settings: Settings = read_settings(given["task"], metadata)
        self.render: Chat | None = None
        ours = kept(metadata, self.settings)
        given["metadata"] = {k: ours[k] for k in ("version", "config_source", "split", "seed", "personas") if k in ours}
        super().__init__(config=given)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """The questions of the bank; nothing is downloaded."""
        bank = load_bank(self.settings.personas)
        depth = int(self.config.dataset_name)
        docs = []
        for persona in bank.select("all", self.settings.split):
            scenario = bank.scenarios[persona.scenario]
            script = bank.scripts.get(scenario.id)
            partner = make_partner(persona, scenario, script, depth, self.settings.seed, "scripted")
            said = neutral_lines(persona, depth, self.settings.seed)
            for question in persona.questions:
                docs.append(
                    {
                        "persona_id": persona.id,
                        "scenario": scenario.id,
                        "system": simulator_prompt(persona, scenario),
                        "turns": [list(turn) for turn in zip(partner.script, said, strict=True)],
                        "question": question.question,
                        "choices": list(question.options),
                        "answer": question.answer,
                        "about": question.about,
                    }
                )
        self.dataset = datasets.DatasetDict({self.config.test_split: datasets.Dataset.from_list(docs)})

    def build_all_requests(self, **options: Any) -> None:
        # The key of lm-eval's request cache leaves out --metadata: cached requests could carry other settings.
        super().build_all_requests(**options | {"cache_requests": False, "rewrite_requests_cache": False})

    def fewshot_context(
        self,
        doc: Doc,
        num_fewshot: int = 0,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., Any] | None = None,
        gen_prefix: str | None = None,
    ) -> Any:
        """The prompt before the options: a chat with `--apply_chat_template`, plain text without."""
        system = "\n\n".join(filter(None, (system_instruction, doc["system"])))
        messages = [Message("system", system)]
        for heard, said in doc["turns"]:
            messages += [Message("user", heard), Message("assistant", said)]
        messages.append(Message("user", doc["question"]))
        if not apply_chat_template or chat_template is None:
            return plain(messages)
        self.render = self.render or Chat(chat_template)
        return self.render(messages)


def neutral_lines(persona: Persona, turns: int, seed: int) -> list[str]:
    """The simulator's lines of the written dialogue, the same for every question and a longer dialogue's beginning."""
    pool = list(neutral_answers())
    random.Random(f"{persona.id}/{seed}").shuffle(pool)
    return pool[:turns]


@cache
def neutral_answers() -> tuple[str, ...]:
    """All lines that say nothing about the speaker."""
    return tuple(ANSWERS.read_text(encoding="utf-8").splitlines())
