"""The task `judge_agreement`: does a judge say what the labels say? The evaluated model is the judge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from inspect_ai import Task, task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, Model, get_model
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, mean, metric, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from pydantic import TypeAdapter

from persona_tasks.agreement import Row, auc, confusion, kappa
from persona_tasks.calibration import Item, load_items
from persona_tasks.foreign import FOREIGN, load_foreign
from persona_tasks.inspect_tasks.driver import ask_judge, drive
from persona_tasks.judge_card import Pass, Run
from persona_tasks.protocol.asks import Answer, Ask
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.limits import VERDICT_TOKENS
from persona_tasks.transcript import Verdict

ITEM = TypeAdapter(Item)
SAMPLES = 64  # judged at a time


@task
def judge_agreement(
    sets: str | list[str] = "calibration,on_policy,trained",
    split: str = "test",
    scenario: str = "all",
    metric: str = "all",
    count: int | None = None,
    wording: str = "default",
    order: str = "default",
) -> Task:
    """Does a judge say what the labels say? The evaluated model is the judge.

    Args:
        sets: calibration, on_policy, trained, and, with PERSONA_REFERENCE_DATA, dnli, decode or llama-70b.
        split: train, dev, test or all; a judge we ship was trained on train.
        scenario: chat, education, therapy, service, or all.
        metric: prompt_to_line, line_to_line, or all.
        count: At most so many items of each foreign set, balanced.
        wording: The judge prompts that scores are made with (`default`), or the `other` ones, to see what wording does.
        order: `reversed` lists the persona's facts and traits, or the earlier lines, the other way round.
    """
    wanted = sets if isinstance(sets, list) else sets.split(",")
    items = load_items([name for name in wanted if name not in FOREIGN], split, scenario, metric)
    for name in wanted:
        if name in FOREIGN:
            items += load_foreign(name, count)
    return agreement_task(items, wording, order)


def agreement_task(items: Sequence[Item], wording: str = "default", order: str = "default") -> Task:
    """The task on given items."""
    return Task(
        dataset=MemoryDataset([_sample(item) for item in items], name="judge-agreement"),
        solver=verdict_on_item(wording, order),
        scorer=agreement(),
        config=GenerateConfig(max_tokens=VERDICT_TOKENS, temperature=0.0),
        headline_metric="agreement",
        version="1-A",
        tags=["persona", "judge"],
        description="Does a judge of simulated users say what the labels say?",
    )


def _sample(item: Item) -> Sample:
    return Sample(
        id=item.id,
        input=item.transcript.turns[item.turn - 1].line,
        target=item.label,
        metadata={
            "set": item.set,
            "metric": item.metric,
            "scenario": item.scenario,
            "kind": item.kind,
            "item": ITEM.dump_python(item, mode="json"),
        },
    )


@solver
def verdict_on_item(wording: str = "default", order: str = "default") -> Solver:
    """Puts one item to the evaluated model, as a scorer would put it to its judge.

    Args:
        wording: "default" or "other" judge prompts.
        order: "default", or "reversed" facts and earlier lines.
    """
    if wording not in ("default", "other") or order not in ("default", "reversed"):
        raise ValueError(f"wording {wording!r}, order {order!r}: choose default or other, and default or reversed")

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        item = ITEM.validate_python(state.metadata["item"])
        if order == "reversed":
            item = reversed_item(item)

        async def answer(asks: list[Ask]) -> list[Answer]:
            return await ask_judge(get_model(), asks, cache=False)

        [verdict] = await drive(judge(item.transcript, [item.metric], turns=[item.turn], wording=wording), answer)
        state.metadata["verdict"] = verdict.model_dump()
        state.metadata["conflicts"] = list(item.conflicts)
        return state

    return solve


def reversed_item(item: Item) -> Item:
    """The same question with the persona's lists, or the earlier lines, in reverse order."""
    transcript = item.transcript.model_copy(update={"persona_text": _reversed_lists(item.transcript.persona_text)})
    if item.metric == "prompt_to_line":
        return replace(item, transcript=transcript)
    before, rest = transcript.turns[: item.turn - 1], transcript.turns[item.turn - 1 :]
    turned = transcript.model_copy(update={"turns": [*reversed(before), *rest]})
    return replace(item, transcript=turned, conflicts=tuple(sorted(item.turn - turn for turn in item.conflicts)))


def _reversed_lists(text: str) -> str:
    """Text whose runs of lines that begin with a dash are reversed."""
    runs = groupby(text.split("\n"), key=lambda line: line.startswith("- "))
    return "\n".join(line for listed, run in runs for line in (reversed(list(run)) if listed else run))


def judged_by(model: Model) -> Pass:
    """One pass of a judge over items, as `judge_card.measure` wants it: a run of the task with its log."""

    def judged(items: Sequence[Item], wording: str, order: str, repeats: int) -> Run:
        task = agreement_task(items, wording, order)
        start = time.perf_counter()
        [log] = inspect_eval(task, model=model, epochs=repeats, max_samples=SAMPLES, log_dir="logs/judge-card")
        if log.status != "success" or log.samples is None:
            raise RuntimeError(f"judging ended with status {log.status}; see {log.location}")
        rows = [
            ROW.validate_python((score.metadata or {})["row"])
            for sample in log.samples
            for score in (sample.scores or {}).values()
        ]
        usage = log.stats.model_usage.values()
        return Run(rows, time.perf_counter() - start, sum(used.total_tokens for used in usage))

    return judged


def _row(state: TaskState) -> Row:
    item = replace(ITEM.validate_python(state.metadata["item"]), conflicts=tuple(state.metadata["conflicts"]))
    return Row.of(item, Verdict.model_validate(state.metadata["verdict"]))


ROW = TypeAdapter(Row)


def rows_of(scores: Sequence[SampleScore]) -> list[Row]:
    """The verdicts beside their labels, from the scores of `agreement`."""
    return [ROW.validate_python((score.score.metadata or {})["row"]) for score in scores]


@metric
def cohens_kappa() -> Metric:
    """Agreement with the labels beyond chance; `unparsed` left out."""

    def compute(scores: list[SampleScore]) -> float:
        rows = [row for row in rows_of(scores) if row.verdict.outcome != "unparsed"]
        return float(kappa(confusion(rows))[0]) if rows else float("nan")

    return compute


@metric
def roc_auc() -> Metric:
    """Area under the ROC curve of the judge's probability of a contradiction."""

    def compute(scores: list[SampleScore]) -> float:
        rows = [row for row in rows_of(scores) if row.verdict.outcome != "unparsed"]
        return float(auc(rows)[0]) if rows else float("nan")

    return compute


@scorer(metrics=[mean(), stderr(), cohens_kappa(), roc_auc()])
def agreement() -> Scorer:
    """1 where the verdict is the label, 0 where it is not, unscored where it could not be read."""

    async def score(state: TaskState, target: Target) -> Score:
        row = _row(state)
        verdict, metadata = row.verdict, {"row": ROW.dump_python(row, mode="json")}
        why = f"label: {row.label}{f' ({row.kind})' if row.kind else ''}; judge: {verdict.outcome}. {verdict.reason}"
        if verdict.outcome == "unparsed":
            return Score.unscored(reason="grader_failed", explanation=why, metadata=metadata)
        value = float(verdict.outcome == row.label)
        return Score(value=value, answer=verdict.outcome, explanation=why, metadata=metadata)

    return score
