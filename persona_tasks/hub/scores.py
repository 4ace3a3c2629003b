"""From the log of a run to a `Score`: what was run, whether it is complete, and the numbers computed anew.

The numbers come from the verdicts in the log, by `scoring.summarise`; what the harness printed is not used. A run
counts only if it is whole: every persona of the scenarios it covers, as the bank has it now, in every epoch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from persona_tasks.embedded.weights import sha256
from persona_tasks.hub import probes
from persona_tasks.hub.entries import Checkpoint, Score, Value
from persona_tasks.hub.registry import Registry, RegistryError, check_values
from persona_tasks.hub.runs import Run, ScoreError, read_run
from persona_tasks.metrics import Interval
from persona_tasks.transcript import METRICS, Judged

DIGITS = 4  # of a published number: finer than any interval here


class Measured(NamedTuple):
    """A score, and the dialogues it was computed from."""

    score: Score
    records: list[Judged]


def read_score(registry: Registry, log: Path, purpose: Literal["registry", "submission"]) -> Measured:
    """The score that a log holds, and its dialogues.

    Args:
        registry: Task versions, checkpoints and metrics.
        log: An Inspect log of `persona_tasks/drift`, or lm-eval's `results_*.json` with its samples beside it.
        purpose: A registry score is of one of our checkpoints; a submission is of any model, with a usable judge.

    Raises:
        ScoreError: The log is incomplete, of another task version, or of a model the registry does not know.
    """
    run = read_run(log)
    try:
        checkpoint = find_checkpoint(registry, run)
        if purpose == "registry" and checkpoint is None:
            raise ScoreError(
                f"{run.model} is no checkpoint of the registry; others' models enter by `persona-tasks submit`"
            )
        task = _task(registry, run)
        values = _answer_values(registry, task, run) if run.answers else _drift_values(registry, task, run, purpose)
        score = Score(
            model=run.model if checkpoint is None else checkpoint.id,
            checkpoint=checkpoint.id if checkpoint else None,
            weights_sha256=checkpoint.weights if checkpoint else None,
            task=task,
            task_version=registry.task(task).version,
            prompts=run.prompts,
            split=run.settings["split"],
            turns=run.settings["turns"],
            partner=run.settings["partner"],
            probe_mode=run.settings["probe_mode"],
            seeds=[run.settings["seed"] + epoch for epoch in range(run.epochs)],
            judge=run.judge,
            generation=run.generation,
            harness=run.harness,
            command=run.command.replace(str(run.folder), checkpoint.repository) if checkpoint else run.command,
            commit=run.commit,
            date=run.on,
            logs=[{"name": path.name, "sha256": sha256(path)} for path in run.logs],
            values=values,
        )
        check_values(registry, score)
    except ScoreError as error:
        raise ScoreError(f"{log}: {error}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        raise ScoreError(f"{log}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    except (RegistryError, ValueError) as error:
        raise ScoreError(f"{log}: {error}") from None
    if purpose == "submission" and run.records:
        _check_nothing_withheld(log, score)
    return Measured(score, run.records)


def add(registry: Registry, score: Score) -> Registry:
    """The registry with a score, in place of an earlier one of the same measurement."""
    others = [old for old in registry.scores if old.key != score.key]
    return Registry.model_validate(
        {**registry.model_dump(), "scores": [*(old.model_dump() for old in others), score.model_dump()]}
    )


def find_checkpoint(registry: Registry, run: Run) -> Checkpoint | None:
    """The checkpoint that was run: by its id, its repository on the Hub, or the weights in the folder."""
    _, _, name = run.model.partition("/")
    for checkpoint in registry.checkpoints:
        published = [p.repository for p in (checkpoint.published, checkpoint.merged) if p]
        names = {checkpoint.id, *published}
        if not checkpoint.package:  # the packaged base is quantised: not the weights of its repository
            names |= {checkpoint.repository, f"{checkpoint.repository}-merged"}
        if name in names or run.model in names:
            return checkpoint
    return next((c for c in registry.checkpoints if c.weights and c.weights == _weights(run.folder)), None)


def _weights(folder: Path | None) -> str | None:
    """The checksum by which the registry knows the weights in a folder; of the embedded model, its source."""
    if folder is None:
        return None
    from persona_tasks.embedded.weights import RECORD

    adapter, record = folder / "adapter_model.safetensors", folder / RECORD
    if adapter.is_file():
        return sha256(adapter)
    if record.is_file():
        source: str | None = json.loads(record.read_text(encoding="utf-8")).get("sha256")
        return source
    return None


def _task(registry: Registry, run: Run) -> str:
    if asked := probes.probe_task(registry, run.task):
        return asked.id
    for task in registry.tasks:
        inspect, lm_eval = run.task == task.inspect, task.lm_eval is not None and run.task.startswith(task.lm_eval)
        if not inspect and not lm_eval:
            continue
        if lm_eval and run.version != task.lm_eval_version:
            raise ScoreError(f"made with version {run.version} of {run.task}; the registry has {task.lm_eval_version}")
        if inspect and str(run.version).split("-")[0] != task.version.split("-")[0]:
            raise ScoreError(f"made with version {run.version} of {run.task}, not comparable with {task.version}")
        return task.id
    raise ScoreError(f"of task {run.task!r}, which the registry does not know")


def _answer_values(registry: Registry, task: str, run: Run) -> list[Value]:
    if wrong := probes.problem(registry.task(task), run.answers, run.epochs):
        raise ScoreError(wrong)
    return probes.values(run.answers)


def _drift_values(registry: Registry, task: str, run: Run, purpose: str) -> list[Value]:
    scenarios = _check_complete(run)
    _check_judge(registry, run, purpose)
    return _values(registry, task, run.records, scenarios)


def _check_complete(run: Run) -> list[str]:
    """The scenarios covered."""
    from persona_tasks.personas import load_bank
    from persona_tasks.protocol.prompts import persona_text, prompts_hash

    if run.settings.get("personas"):
        raise ScoreError("played personas of another bank")
    if run.settings.get("context"):
        raise ScoreError("judged with context=true, which other scores are not")
    if run.prompts is not None and run.prompts != prompts_hash():
        raise ScoreError(f"made with prompts {run.prompts}; this version of persona-tasks has {prompts_hash()}")
    bank = load_bank()
    covered = sorted({record.transcript.scenario for record in run.records})
    split = run.settings["split"]
    wanted = {p.id: p for scenario in covered for p in bank.select(scenario, split)} if covered else {}
    played = Counter(record.transcript.persona_id for record in run.records)
    if not wanted:
        raise ScoreError("no dialogue was held")
    if missing := sorted(set(wanted) - set(played)):
        raise ScoreError(
            f"{len(missing)} of {len(wanted)} personas are missing ({missing[0]} ...): run without a limit"
        )
    for record in run.records:
        transcript = record.transcript
        persona = wanted.get(transcript.persona_id)
        if persona is None or transcript.persona_text != persona_text(persona):
            raise ScoreError(f"{transcript.persona_id} is not the persona of this id in the bank")
        if len(transcript.turns) < run.settings["turns"] and not transcript.ended:
            raise ScoreError(f"the dialogue of {transcript.persona_id} has {len(transcript.turns)} turns, not all")
    if wrong := [persona for persona, times in played.items() if times != run.epochs]:
        raise ScoreError(f"{wrong[0]} was played {played[wrong[0]]} times in {run.epochs} epochs")
    return covered


def _check_judge(registry: Registry, run: Run, purpose: str) -> None:
    judges = {record.judge for record in run.records if record.verdicts}
    if len(judges) != 1 or run.judge is None:
        raise ScoreError("the dialogues are not all judged, or not by one judge")
    known = registry.judge(run.judge)
    if purpose == "registry" and known is None:
        raise ScoreError(f"judge {run.judge!r} is not in the registry; describe it under `judges` first")
    if purpose == "submission" and known is not None and not known.usable:
        raise ScoreError(f"judge {run.judge} is no usable judge ({known.note}); judge again with another one")


def _check_nothing_withheld(log: Path, score: Score) -> None:
    for metric in METRICS:
        if score.value(metric, score.values[0].scenario) is None:
            raise ScoreError(f"{log}: no {metric}: too few verdicts could be read, or no questions were asked")


def _values(registry: Registry, task: str, records: Sequence[Judged], scenarios: Sequence[str]) -> list[Value]:
    """All numbers. `all` means all scenarios of the registry; a run of some of them has only theirs."""
    from persona_tasks.scoring import Group, summarise

    summary = summarise(records)
    groups: dict[str, Group] = dict(summary.scenarios)
    if set(scenarios) == {scenario.id for scenario in registry.scenarios}:
        groups = {"all": summary.overall, **groups}
    values = [value for name, group in groups.items() for value in _of_group(name, group)]
    known = registry.task(task).metrics
    values = [value for value in values if value.metric in known]
    if not any(value.metric in METRICS for value in values):
        raise ScoreError("every score is withheld: under half of the verdicts could be read")
    return values


def _of_group(scenario: str, group: Any) -> list[Value]:
    values: list[Value] = []
    for metric in METRICS:
        found = group.metrics[metric]
        if found.score is None:
            continue
        points = [
            {"turn": p.turn, "value": _round(p.value), "low": _round(p.low), "high": _round(p.high)}
            for p in found.curve
            if p.value is not None
        ]
        fields = {
            "n": found.n,
            "personas": found.clusters,
            "unparsed": _round(found.unparsed),
            "withheld": found.withheld,
        }
        interval = _bounds(found.ci)
        values.append(
            Value(
                metric=metric, scenario=scenario, value=_round(found.score), interval=interval, curve=points, **fields
            )
        )
    beside = {"qa_without_persona": group.qa_without_persona, **group.monitors}
    for metric, number in beside.items():
        if number is not None:
            values.append(
                Value(
                    metric=metric,
                    scenario=scenario,
                    value=round(number, DIGITS),
                    n=group.dialogues,
                    personas=group.personas,
                )
            )
    return values


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, DIGITS)


def _bounds(interval: Interval | None) -> Interval | None:
    return None if interval is None else (_round(interval[0]), _round(interval[1]))
