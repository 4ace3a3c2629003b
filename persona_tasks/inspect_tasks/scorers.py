"""The scorers: three metrics over one stored dialogue, and the monitors beside them."""

from __future__ import annotations

from functools import cache
from logging import getLogger
from textwrap import shorten
from typing import Any

from inspect_ai.scorer import Metric as InspectMetric
from inspect_ai.scorer import Reference, Score, Scorer, Target, ci, mean, scorer, stderr
from inspect_ai.solver import TaskState

from persona_tasks.inspect_tasks.driver import ask_judge, drive, role_model
from persona_tasks.inspect_tasks.record import line_messages, recorded
from persona_tasks.judge_card import worth
from persona_tasks.metrics import CHANCE, dialogue_score, floor_score
from persona_tasks.monitors import monitor
from persona_tasks.protocol.asks import Answer, Ask
from persona_tasks.protocol.judging import DEFAULT_JUDGE, judge
from persona_tasks.protocol.limits import VERDICT_TOKENS
from persona_tasks.protocol.prompts import prompts_hash
from persona_tasks.transcript import Metric, Transcript, Verdict

logger = getLogger(__name__)

CLUSTERED: list[InspectMetric] = [mean(), stderr(cluster="persona_id"), ci(cluster="persona_id")]
SHOWN = 140  # characters of a line in the table of verdicts; the viewer links the whole
MARKS = {"consistent": "consistent", "contradicts": "**contradicts**", "unparsed": "unparsed"}


@scorer(metrics=CLUSTERED)
def prompt_to_line(context: bool = False, resume: bool = False) -> Scorer:
    """Global drift: the share of lines that do not contradict the persona (eq. 1 of arXiv 2511.00222).

    Args:
        context: Show the judge the partner's line that each line answers.
        resume: Take the judge's earlier answers from Inspect's cache and ask only for what is missing.
    """

    async def score(state: TaskState, target: Target) -> Score:
        verdicts, metadata = await _judged(state, "prompt_to_line", resume, context)
        return _score(state, "prompt_to_line", verdicts, metadata)

    return score


@scorer(metrics=CLUSTERED)
def line_to_line(resume: bool = False) -> Scorer:
    """Local drift: the share of lines that contradict none of the lines before them (eq. 2 of arXiv 2511.00222).

    Args:
        resume: Take the judge's earlier answers from Inspect's cache and ask only for what is missing.
    """

    async def score(state: TaskState, target: Target) -> Score:
        verdicts, metadata = await _judged(state, "line_to_line", resume)
        return _score(state, "line_to_line", verdicts, metadata)

    return score


@scorer(metrics={"qa": CLUSTERED, "qa_without_persona": [mean()], "qa_chance": [mean()]})
def qa(resume: bool = False) -> Scorer:
    """Factual drift: the share of the simulator's answers about its persona that are right (eq. 3 of arXiv 2511.00222).

    Beside it the floors: the same questions put to the model without a persona, and chance.

    Args:
        resume: Take the judge's earlier answers from Inspect's cache and ask only for what is missing.
    """

    async def score(state: TaskState, target: Target) -> Score:
        verdicts, metadata = await _judged(state, "qa", resume)
        score = _score(state, "qa", [v for v in verdicts if v.metric == "qa"], metadata)
        guessed = [verdict for verdict in verdicts if verdict.metric == "qa_without_persona"]
        floor = floor_score(guessed)
        nothing = float("nan")
        score.metadata = {**(score.metadata or {}), "verdicts": [v.model_dump(exclude_defaults=True) for v in verdicts]}
        score.value = {
            "qa": score.value if isinstance(score.value, float) else nothing,
            "qa_without_persona": nothing if floor is None else floor,
            "qa_chance": CHANCE if guessed else nothing,
        }
        return score

    return score


@scorer(
    metrics={
        name: [mean(), stderr(cluster="persona_id")]
        for name in ("line_length", "distinct_2", "self_repetition", "persona_copying", "role_flips")
    }
)
def monitors() -> Scorer:
    """What a cheating simulator would show: length, diversity, repetition, persona copying, role flips."""

    async def score(state: TaskState, target: Target) -> Score:
        return Score(value=dict(monitor(recorded(state))))

    return score


async def _judged(
    state: TaskState, metric: Metric, resume: bool, context: bool = False
) -> tuple[list[Verdict], dict[str, Any]]:
    transcript = recorded(state)
    model = role_model("judge", VERDICT_TOKENS, DEFAULT_JUDGE)
    warn_about(str(model))

    async def answer(asks: list[Ask]) -> list[Answer]:
        return await ask_judge(model, asks, cache=resume)

    verdicts = await drive(judge(transcript, [metric], context=context), answer)
    return verdicts, {"judge": str(model), "prompts": prompts_hash()}


def _score(state: TaskState, metric: Metric, verdicts: list[Verdict], metadata: dict[str, Any]) -> Score:
    """One metric of one dialogue, with a table for people and the verdicts for machines."""
    transcript = recorded(state)
    unparsed = sum(verdict.outcome == "unparsed" for verdict in verdicts)
    cites = Cites(state)
    metadata |= {
        "verdicts": [verdict.model_dump(exclude_defaults=True) for verdict in verdicts],
        "unparsed": unparsed,
        "scanner_references": cites.references(),
    }
    if not verdicts:
        return Score.unscored(reason="no_response", explanation="There is nothing to judge.", metadata=metadata)
    table = "\n".join(
        ["| turn | verdict | said | why |", "|---|---|---|---|", *(_row(transcript, v, cites) for v in verdicts)]
    )
    value = dialogue_score(verdicts)
    if value is None:
        explanation = f"{unparsed} of {len(verdicts)} verdicts could not be read: no score.\n\n{table}"
        return Score.unscored(reason="grader_failed", explanation=explanation, metadata=metadata)
    read = len(verdicts) - unparsed
    return Score(value=value, answer=f"{value:.3f} ({read} verdicts)", explanation=table, metadata=metadata)


def _row(transcript: Transcript, verdict: Verdict, cites: Cites) -> str:
    if verdict.probe is None:
        where, said = cites.of(verdict.turn), transcript.turns[verdict.turn - 1].line
    else:
        probe = transcript.probes[verdict.probe]
        where = f"after {verdict.turn}" if probe.persona else "without persona"
        said = f"{transcript.questions[probe.question].question} — {probe.answer}"
    why = " ".join([*(cites.of(turn) for turn in verdict.conflicts), verdict.reason])
    mark = MARKS[verdict.outcome] + (f", {verdict.drift}" if verdict.drift else "")
    cells = (where, mark, shorten(said, SHOWN, placeholder=" …"), why)
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


class Cites:
    """`[M<n>]`, n the message number of a line: the only form that the viewer links."""

    def __init__(self, state: TaskState):
        self.messages = line_messages(state)

    def of(self, turn: int) -> str:
        return f"[M{self.messages[turn - 1][0]}]" if turn <= len(self.messages) else f"turn {turn}"

    def references(self) -> list[dict[str, Any]]:
        return [
            Reference(type="message", id=message_id, cite=f"[M{number}]").model_dump()
            for number, message_id in self.messages
        ]


@cache
def warn_about(judge_name: str) -> None:
    """Say once per run what the judge's verdicts are worth."""
    hint = " Name a stronger one with --model-role judge=MODEL." if judge_name == DEFAULT_JUDGE else ""
    logger.warning("%s.%s", worth(judge_name), hint)
