"""The task class behind `persona_drift_*`: personas in, one request per dialogue, judged transcripts, metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import datasets
import torch
from lm_eval.api.task import ConfigurableTask

from persona_tasks.lm_eval_tasks.roles import open_role
from persona_tasks.lm_eval_tasks.rollout import REQUEST_TYPE, DialogueRequest
from persona_tasks.lm_eval_tasks.scores import drift_metrics, judge_all
from persona_tasks.lm_eval_tasks.settings import kept, read_settings
from persona_tasks.personas import load_bank
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.prompts import persona_text, simulator_prompt
from persona_tasks.transcript import Judged, Transcript

Doc = dict[str, Any]


def process_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """Named in the YAML, so that lm-eval takes our metric names; `results` is what `apply_filters` left."""
    return drift_metrics(Judged.model_validate_json(results[0]))


def mean_of_scored(values: list[float | None]) -> float:
    """The mean over the dialogues that have a score."""
    scored = [value for value in values if value is not None]
    return sum(scored) / len(scored)


class PersonaDrift(ConfigurableTask):  # type: ignore[misc]
    """One scenario (the YAML's `dataset_name`): each document is a persona, each request a whole dialogue."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        given = {name: value for name, value in (config or {}).items() if name != "class"}
        self.settings = read_settings(given["task"], given.get("metadata") or {})
        self.judge = open_role(
            self.settings.judge, "judge", self.settings.endpoint_connections, self.settings.endpoint_timeout
        )
        if self.settings.partner != "scripted":
            open_role(self.settings.partner, "partner").prepare()
        self.system_instruction = ""
        self.form = "auto"
        self.placeholders: set[str] = set()
        self.incomplete: set[str] = set()
        # lm-eval has merged --model_args into the metadata, and writes it to the results: API keys too.
        given["metadata"] = kept(given.get("metadata") or {}, self.settings)
        super().__init__(config=given)
        self.OUTPUT_TYPE = REQUEST_TYPE  # so that data-parallel ranks are padded with our requests

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """The personas of the bank; nothing is downloaded."""
        chosen = self.settings
        bank = load_bank(chosen.personas)
        docs = []
        for persona in bank.select(self.config.dataset_name, chosen.split):
            scenario = bank.scenarios[persona.scenario]
            script = bank.scripts.get(scenario.id)
            opening = make_partner(persona, scenario, script, chosen.turns, chosen.seed, "scripted").script[0]
            docs.append(
                {
                    "persona_id": persona.id,
                    "scenario": scenario.id,
                    "split": persona.split,
                    "persona": persona_text(persona),
                    "system": simulator_prompt(persona, scenario),
                    "opening": opening,
                }
            )
        self.dataset = datasets.DatasetDict({self.config.test_split: datasets.Dataset.from_list(docs)})

    def build_all_requests(self, **options: Any) -> None:
        # The key of lm-eval's request cache leaves out --metadata: cached requests could carry other settings.
        options |= {"cache_requests": False, "rewrite_requests_cache": False}
        self.system_instruction = options.get("system_instruction") or ""
        if self.settings.format == "plain":
            self.form = "plain"
        else:
            self.form = "chat" if options.get("apply_chat_template") else "auto"
        if not self.predict_only:
            self.judge.prepare()
        super().build_all_requests(**options)

    def fewshot_context(self, doc: Doc, *_: Any, **__: Any) -> str:
        """What the simulator is told first, for the log."""
        return "\n\n".join(filter(None, (self.system_instruction, doc["system"], doc["opening"])))

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> DialogueRequest:
        settings = self.settings.in_rollout() | {"form": self.form, "system_instruction": self.system_instruction}
        arguments = (ctx, deepcopy(self.config.generation_kwargs), settings)
        return DialogueRequest(REQUEST_TYPE, doc, arguments, 0, metadata=kwargs["metadata"])

    @property
    def predict_only(self) -> bool:
        return "bypass" in self._metric_fn_list

    def apply_filters(self) -> None:
        """Judge. lm-eval calls this once per task and process, between generation and `process_results`."""
        super().apply_filters()
        if self.predict_only:
            return
        [name] = [ensemble.name for ensemble in self._filters]
        transcripts = [Transcript.model_validate_json(request.filtered_resps[name]) for request in self._instances]
        if idle_process(self._instances[0].lm):
            judged = [Judged(transcript=transcript) for transcript in transcripts]
        else:
            judged = judge_all(transcripts, self.judge, self.settings.context)
        for request, record in zip(self._instances, judged, strict=True):
            request.filtered_resps[name] = record.model_dump_json(exclude_defaults=True)
        self._agree_on_metrics(judged)

    def _agree_on_metrics(self, judged: list[Judged]) -> None:
        """Between data-parallel ranks: lm-eval merges their scores by rank 0's names and fails where one is missing.

        A metric that some dialogue has on any rank gets a placeholder where it is withheld.
        """
        lm = self._instances[0].lm
        if lm.world_size == 1:
            return
        found = [drift_metrics(record) for record in judged]
        names = list(super().aggregation())
        counts = [len(judged), *(sum(name in scores for scores in found) for name in names)]
        gathered = lm.all_gather(torch.tensor([counts], device=lm.device))
        total, *scored = gathered.reshape(-1, len(counts)).sum(dim=0).tolist()
        self.placeholders = {name for name, count in zip(names, scored, strict=True) if count}
        self.incomplete = {name for name, count in zip(names, scored, strict=True) if 0 < count < total}

    def process_results(self, doc: Doc, results: list[str]) -> dict[str, float | None]:
        if self.predict_only:
            return {"bypass": None}
        scores = process_results(doc, results)
        return {name: scores.get(name) for name in [*scores, *sorted(self.placeholders - scores.keys())]}

    def aggregation(self) -> dict[str, Callable[[list[Any]], float]]:
        ours = dict.fromkeys(self.incomplete, mean_of_scored)
        return {**super().aggregation(), **ours}


def idle_process(lm: Any) -> bool:
    """Whether this is one of the tensor-parallel processes whose results lm-eval throws away: it needs no judge."""
    return lm.world_size == 1 and int(os.environ.get("LOCAL_RANK", "0")) > 0
