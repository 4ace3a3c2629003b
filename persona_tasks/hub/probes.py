"""The benchmark's fixed-prefix questions in a log of `inspect eval hf/...`: complete, ours, and how many were right.

An answer from which no letter can be read is not right, as Inspect counts it; its share is kept beside the score.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from persona_tasks.hub.entries import Task, Value
from persona_tasks.hub.registry import Registry
from persona_tasks.metrics import RESAMPLES, bootstrap_weights, interval

LETTERS = "ABCDE"
DIGITS = 4


class Answered(NamedTuple):
    """One question as it was answered."""

    persona: str
    scenario: str
    question: str
    choices: tuple[str, ...]
    target: str
    right: bool
    read: bool


def probe_task(registry: Registry, name: str) -> Task | None:
    """The registry's task behind Inspect's name for it.

    That is `hf/NAMESPACE/NAME[/TASK][@REVISION]` as the user gave it, and the task once more.
    """
    path = re.sub(r"@[^/]+", "", name).removeprefix("hf/").split("/")
    benchmark = registry.benchmark.repository.partition("/")[2]
    if len(path) < 3 or path[1] != benchmark:
        return None
    return next((task for task in registry.tasks if task.on_hub and task.id == path[-1]), None)


def read_answers(log: Path) -> list[Answered]:
    """What was asked and answered, epoch by epoch."""
    from inspect_ai.log import read_eval_log

    answered = []
    for sample in read_eval_log(str(log), exclude_fields={"events", "timelines"}).samples or []:
        asked = sample.input if isinstance(sample.input, str) else sample.input[-1].text
        score = (sample.scores or {}).get("choice")
        answered.append(
            Answered(
                persona=str(sample.metadata.get("persona_id")),
                scenario=str(sample.metadata.get("scenario")),
                question=asked,
                choices=tuple(sample.choices or ()),
                target=str(sample.target),
                right=score is not None and score.value == "C",
                read=bool(score and score.answer),
            )
        )
    return answered


def problem(task: Task, answered: Sequence[Answered], epochs: int) -> str | None:
    """What keeps these answers from being a score: they must be to all of our questions, and to no others."""
    from persona_tasks.hub.benchmark import probes

    depth = int(task.id.removeprefix("probes_depth"))
    wanted = sorted(
        (row["persona_id"], row["messages"][-1]["content"], tuple(row["choices"]), LETTERS[row["answer"]])
        for row in probes(depth)
        for _ in range(epochs)
    )
    found = sorted((answer.persona, answer.question, answer.choices, answer.target) for answer in answered)
    if len(found) != len(wanted):
        return f"{len(found)} of {len(wanted)} questions were answered: run without a limit"
    return None if found == wanted else "the questions are not those of this version of the benchmark"


def values(answered: Sequence[Answered]) -> list[Value]:
    """Accuracy over all scenarios and in each, with intervals over personas."""
    scenarios = sorted({answer.scenario for answer in answered})
    groups = {"all": list(answered)} | {s: [a for a in answered if a.scenario == s] for s in scenarios}
    return [_accuracy(scenario, group) for scenario, group in groups.items()]


def _accuracy(scenario: str, answered: Sequence[Answered]) -> Value:
    right = np.array([float(answer.right) for answer in answered])
    personas = [answer.persona for answer in answered]
    weights = bootstrap_weights(personas, RESAMPLES)
    found = interval((weights @ right) / weights.sum(axis=1)) if len(weights) else None
    return Value(
        metric="accuracy",
        scenario=scenario,
        value=round(float(right.mean()), DIGITS),
        interval=None if found is None else tuple(None if end is None else round(end, DIGITS) for end in found),
        n=len(answered),
        personas=len(set(personas)),
        unparsed=round(sum(not answer.read for answer in answered) / len(answered), DIGITS),
    )
