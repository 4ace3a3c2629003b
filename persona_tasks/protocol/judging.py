"""The judging, written once: all questions about a transcript in one round, one repair round for unreadable answers.

Polarity, stated once: a judge is asked whether something *contradicts*; the metrics score what is *consistent*.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from persona_tasks.protocol.asks import Answer, Ask, Chosen, Dialogue, Failure, Message
from persona_tasks.protocol.prompts import render
from persona_tasks.protocol.verdicts import (
    NO_DRIFT,
    ConflictReply,
    LineReply,
    OptionReply,
    Reply,
    Unreadable,
    conflict_reply,
    match_letter,
    match_text,
    read_reply,
)
from persona_tasks.transcript import METRICS, Metric, Outcome, Probe, Transcript, Verdict

# Needs no network and no key. Every run says in one line what it is worth.
DEFAULT_JUDGE = "persona/judge-135m"


@dataclass(frozen=True)
class Item:
    """One question to the judge: the verdict it will fill, the ask, the reply's form, and what the judged texts are."""

    verdict: Verdict
    ask: Ask
    form: type[Reply]
    material: tuple[str, ...]
    settle: Callable[[Verdict, Reply], Verdict]


def judge(
    transcript: Transcript,
    metrics: Collection[Metric] = METRICS,
    *,
    context: bool = False,
    turns: Collection[int] | None = None,
    wording: str = "default",
) -> Dialogue[list[Verdict]]:
    """Judge a transcript by the given metrics (eq. 1-3 of arXiv 2511.00222 are computed from the verdicts).

    A reply that cannot be read is asked for once more, with what was wrong with it. After that, and where the judge
    fails or there is nothing to judge (an empty line), the verdict is `unparsed`.

    Args:
        transcript: The dialogue.
        metrics: Which metrics to judge; `qa` includes its floor, the questions asked without a persona.
        context: Show the judge the partner's line that a line answers (prompt_to_line).
        turns: Judge the lines of these turns only; None for all.
        wording: "other" takes a second wording of the same instructions, to see what the wording does to a judge.

    Returns:
        Verdicts in the order of metrics, turns and probes.
    """
    verdicts: list[Verdict | Item] = []
    suffix = "" if wording == "default" else f"_{wording}"
    wanted = range(1, len(transcript.turns) + 1) if turns is None else sorted(turns)
    if "prompt_to_line" in metrics:
        verdicts += _prompt_to_line(transcript, wanted, context, suffix)
    if "line_to_line" in metrics:
        verdicts += _line_to_line(transcript, [turn for turn in wanted if turn > 1], suffix)
    if "qa" in metrics:
        verdicts += [_option(transcript, number) for number in range(len(transcript.probes))]

    items = [item for item in verdicts if isinstance(item, Item)]
    answers = (yield [item.ask for item in items]) if items else []
    settled: list[Verdict] = []
    again: list[tuple[int, Item, str, str]] = []
    for item, answer in zip(items, answers, strict=True):
        verdict, problem = _settle(item, answer)
        settled.append(verdict)
        if problem:
            again.append((len(settled) - 1, item, str(answer), problem))
    if again:
        repaired = yield [_repair(item.ask, said, problem) for _, item, said, problem in again]
        for (place, item, _, _), answer in zip(again, repaired, strict=True):
            settled[place], _ = _settle(item, answer)

    queue = iter(settled)
    return [next(queue) if isinstance(entry, Item) else entry for entry in verdicts]


def _prompt_to_line(transcript: Transcript, wanted: Iterable[int], context: bool, suffix: str) -> list[Verdict | Item]:
    about = {"setting": transcript.setting, "persona_text": transcript.persona_text}
    head = Message("system", render(f"prompt_to_line{suffix}", **about))
    entries: list[Verdict | Item] = []
    for number in wanted:
        turn = transcript.turns[number - 1]
        verdict = Verdict(metric="prompt_to_line", turn=number, outcome="unparsed", reason="empty line")
        if not turn.line:
            entries.append(verdict)
            continue
        heard = turn.partner if context and turn.partner else None
        body = Message("user", render("prompt_to_line_question", line=turn.line, partner_line=heard))
        ask = Ask("judge", (head, body), "verdict", number, LineReply)
        material = (turn.line, turn.partner, transcript.persona_text)
        entries.append(Item(verdict, ask, LineReply, material, _settle_line))
    return entries


def _line_to_line(transcript: Transcript, wanted: Iterable[int], suffix: str) -> list[Verdict | Item]:
    head = Message("system", render(f"line_to_line{suffix}"))
    entries: list[Verdict | Item] = []
    for number in wanted:
        line = transcript.lines[number - 1]
        verdict = Verdict(metric="line_to_line", turn=number, outcome="unparsed", reason="empty line")
        history = [(i, said) for i, said in enumerate(transcript.lines[: number - 1], start=1) if said]
        if not line or not history:
            entries.append(verdict)
            continue
        body = Message("user", render("line_to_line_question", line=line, history=history))
        ask = Ask("judge", (head, body), "verdict", number, conflict_reply(number - 1))
        material = (line, *(said for _, said in history))
        entries.append(Item(verdict, ask, ConflictReply, material, _settle_conflicts(dict(history))))
    return entries


def _option(transcript: Transcript, number: int) -> Verdict | Item:
    probe: Probe = transcript.probes[number]
    question = transcript.questions[probe.question]
    metric: Metric = "qa" if probe.persona else "qa_without_persona"
    verdict = Verdict(metric=metric, turn=probe.turn, probe=number, outcome="unparsed", reason="no answer")
    match = match_letter if probe.mode == "choice" else match_text
    option = match(probe.answer, question)
    if option is not None:
        return _chosen(verdict, option, question.answer, "by its text")
    if not probe.answer or probe.mode == "choice":
        return verdict
    head = Message("system", render("match_option"))
    body = Message("user", render("match_option_question", question=question, answer=probe.answer))

    def settle(open_verdict: Verdict, reply: Reply) -> Verdict:
        assert isinstance(reply, OptionReply)
        if reply.option == 0:
            return open_verdict.model_copy(update={"reason": f"says none of the options: {reply.reason}"})
        return _chosen(open_verdict, reply.option - 1, question.answer, reply.reason)

    ask = Ask("judge", (head, body), "verdict", probe.turn, OptionReply)
    return Item(verdict, ask, OptionReply, (probe.answer,), settle)


def _chosen(verdict: Verdict, option: int, right: int, reason: str) -> Verdict:
    outcome: Outcome = "consistent" if option == right else "contradicts"
    return verdict.model_copy(update={"outcome": outcome, "reason": f"option {'ABCDE'[option]}, {reason}"})


def _settle_line(verdict: Verdict, reply: Reply) -> Verdict:
    assert isinstance(reply, LineReply)
    drift = reply.drift if reply.verdict == "contradicts" and reply.drift != NO_DRIFT else None
    return verdict.model_copy(update={"outcome": reply.verdict, "drift": drift, "reason": reply.reason})


def _settle_conflicts(history: dict[int, str]) -> Callable[[Verdict, Reply], Verdict]:
    def settle(verdict: Verdict, reply: Reply) -> Verdict:
        assert isinstance(reply, ConflictReply)
        conflicts = sorted({number for number in reply.conflicts if number in history})
        if reply.conflicts and not conflicts:
            raise Unreadable(f"conflicts: none of {reply.conflicts} is the number of an earlier line")
        outcome: Outcome = "contradicts" if conflicts else "consistent"
        return verdict.model_copy(update={"outcome": outcome, "conflicts": conflicts, "reason": reply.reason})

    return settle


def _settle(item: Item, answer: Answer) -> tuple[Verdict, str]:
    """The verdict an answer gives, and what is wrong with the answer if asking again may help."""
    if isinstance(answer, Failure):
        return item.verdict.model_copy(update={"reason": f"judge failed: {answer.reason}"}), ""
    try:
        verdict = item.settle(item.verdict, read_reply(answer, item.form, item.material))
        return verdict.model_copy(update={"p_contradicts": _p_contradicts(item, answer)}), ""
    except Unreadable as error:
        return item.verdict.model_copy(update={"reason": f"unreadable: {error}", "answer": answer}), str(error)


def _p_contradicts(item: Item, answer: str) -> float | None:
    """The probability of all possible replies that would have settled as `contradicts`, where the judge gives one."""
    if not isinstance(answer, Chosen) or item.form is OptionReply:
        return None
    settled = {text: item.settle(item.verdict, read_reply(text, item.form)) for text in answer.weights}
    total = sum(p for text, p in answer.weights.items() if settled[text].outcome == "contradicts")
    return round(min(total, 1.0), 6)


def _repair(ask: Ask, said: str, problem: str) -> Ask:
    """The same question with what was wrong, never the same prompt again: a greedy judge would repeat itself."""
    more = (Message("assistant", said or "…"), Message("user", render("repair", problem=problem)))
    return Ask(ask.role, (*ask.messages, *more), ask.purpose, ask.turn, ask.schema)
