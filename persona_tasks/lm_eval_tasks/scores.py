"""Judging many dialogues at once, and one dialogue's verdicts as lm-eval's metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from logging import getLogger

from persona_tasks.judge_card import worth
from persona_tasks.lm_eval_tasks.roles import Role
from persona_tasks.metrics import coverage, dialogue_score, drift_slope, floor_score, outcome_grid
from persona_tasks.monitors import monitor
from persona_tasks.protocol.judging import DEFAULT_JUDGE, judge
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.transcript import METRICS, Judged, Transcript

logger = getLogger("lm_eval.persona_tasks")  # shown, formatted and filtered like the harness's own


def judge_all(transcripts: Sequence[Transcript], by: Role, context: bool = False) -> list[Judged]:
    """Judge dialogues: all questions about all of them in one batch, what could not be read in a second one.

    Args:
        transcripts: The dialogues.
        by: The judge.
        context: Show the judge the partner's line that each line answers.
    """
    warn_about(by.name)
    verdicts = lockstep([judge(transcript, context=context) for transcript in transcripts], by.answer)
    judged = [Judged(transcript=t, verdicts=v, judge=by.name) for t, v in zip(transcripts, verdicts, strict=True)]
    outcomes = Counter(verdict.outcome for record in judged for verdict in record.verdicts)
    if outcomes["unparsed"]:
        logger.warning("%d of %d verdicts could not be read", outcomes["unparsed"], outcomes.total())
    return judged


def drift_metrics(judged: Judged) -> dict[str, float]:
    """The metrics of one dialogue. Those that are withheld or were never asked for are missing: lm-eval has no null.

    `drift_slope` is the least-squares slope of prompt_to_line over the turns, `unparsed` the share of all verdicts.
    """
    lines = judged.of("prompt_to_line")
    found: dict[str, float | None] = {metric: dialogue_score(judged.of(metric)) for metric in METRICS}
    asked, read = map(sum, zip(*(coverage(judged.of(metric)) for metric in METRICS), strict=True))
    scores: dict[str, float | None] = {
        **found,
        "qa_without_persona": floor_score(judged.of("qa_without_persona")),
        "drift_slope": None
        if found["prompt_to_line"] is None
        else drift_slope(outcome_grid([judged], "prompt_to_line", len(lines))),
        "unparsed": 1 - read / asked if asked else None,
        **(monitor(judged.transcript) if judged.transcript.turns else {}),
    }
    return {name: score for name, score in scores.items() if score is not None}


@cache
def warn_about(judge_name: str) -> None:
    """Say once per run what the judge's verdicts are worth."""
    hint = " Name a stronger one with --metadata judge=openai:MODEL@BASE_URL." if judge_name == DEFAULT_JUDGE else ""
    logger.warning("%s.%s", worth(judge_name), hint)
