"""The conversation, written once. A driver answers its asks: `lockstep`, or that of a harness."""

from __future__ import annotations

import re
from collections.abc import Sequence

from persona_tasks.personas import Persona, Question, Scenario
from persona_tasks.protocol.asks import Answer, Ask, Dialogue, Failure, Message
from persona_tasks.protocol.partners import Partner
from persona_tasks.protocol.prompts import persona_text, render, simulator_prompt
from persona_tasks.transcript import Probe, ProbeMode, Transcript, Turn

THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
# Some APIs and templates refuse an empty message. The transcript keeps the empty line; the model sees this.
SILENCE = "…"


def spoken(text: str) -> str:
    """What was said aloud: without the thoughts that some models leave in their text."""
    return THINKING.sub("", text).strip()


def default_probes(turns: int) -> tuple[int, ...]:
    """Ask the questions after the first, the middle and the last turn.

    >>> default_probes(8), default_probes(2), default_probes(1)
    ((1, 4, 8), (1, 2), (1,))
    """
    return tuple(sorted({1, max(1, turns // 2), turns}))


def play(
    persona: Persona,
    scenario: Scenario,
    partner: Partner,
    turns: int,
    probes: Sequence[int] | None = None,
    mode: ProbeMode = "open",
    seed: int = 0,
    transcript: Transcript | None = None,
) -> Dialogue[Transcript]:
    """Hold a conversation of `turns` turns and put the persona's questions after the turns in `probes`.

    Args:
        persona: Who the simulator plays.
        scenario: Where the conversation takes place.
        partner: Who talks to it.
        turns: How many lines the simulator says.
        probes: After which turns the questions are asked, on forks; None for first, middle and last, () for never.
        mode: "open" puts the question as the partner would, "choice" adds five lettered options.
        seed: The partner's seed, for the record.
        transcript: Filled turn by turn, for drivers that must keep a dialogue which is cut short; see `blank`.

    Returns:
        The transcript. If an answer is a `Failure`, the dialogue ends there and `ended` says why.
    """
    after = default_probes(turns) if probes is None else tuple(probes)
    transcript = transcript or blank(persona, scenario, partner, seed)
    system = Message("system", simulator_prompt(persona, scenario))
    if after and persona.questions:
        yield from _probe(transcript, (_nobody(scenario),), 0, mode, persona=False)

    for turn in range(1, turns + 1):
        heard = partner.line(turn)
        if heard is None:
            said = [(t.partner, t.line or SILENCE) for t in transcript.turns]
            [reply] = yield [Ask("partner", partner.view(said), "reply", turn)]
            if isinstance(reply, Failure):
                transcript.ended = f"partner, turn {turn}: {reply.reason}"
                break
            heard = spoken(reply) or SILENCE
        messages = (system, *_history(transcript), Message("user", heard))
        [answer] = yield [Ask("simulator", messages, "line", turn)]
        if isinstance(answer, Failure):
            transcript.ended = f"simulator, turn {turn}: {answer.reason}"
            break
        transcript.turns.append(Turn(partner=heard, line=spoken(answer)))
        if turn in after and persona.questions:
            yield from _probe(transcript, (system, *_history(transcript)), turn, mode)
    return transcript


def blank(persona: Persona, scenario: Scenario, partner: Partner, seed: int = 0) -> Transcript:
    """The transcript of a dialogue in which nothing has been said yet."""
    return Transcript(
        id=f"{persona.id}/{seed}",
        persona_id=persona.id,
        persona_text=persona_text(persona),
        scenario=scenario.id,
        setting=scenario.setting,
        questions=list(persona.questions),
        partner="scripted" if partner.prompt is None else "model",
        seed=seed,
    )


def _history(transcript: Transcript) -> list[Message]:
    """The conversation so far as the simulator sees it."""
    messages = []
    for turn in transcript.turns:
        messages += [Message("user", turn.partner), Message("assistant", turn.line or SILENCE)]
    return messages


def _nobody(scenario: Scenario) -> Message:
    return Message(
        "system",
        render("simulator_without_persona", setting=scenario.setting, role=scenario.simulator_role),
    )


def _probe(
    transcript: Transcript, fork: tuple[Message, ...], turn: int, mode: ProbeMode, persona: bool = True
) -> Dialogue[None]:
    """Put every question on its own copy of the conversation. A failed probe keeps its place with an empty answer."""
    asked = [question_text(question, mode) for question in transcript.questions]
    answers: list[Answer] = yield [Ask("simulator", (*fork, Message("user", text)), "probe", turn) for text in asked]
    for number, answer in enumerate(answers):
        text = "" if isinstance(answer, Failure) else spoken(answer)
        transcript.probes.append(Probe(turn=turn, question=number, mode=mode, answer=text, persona=persona))


def question_text(question: Question, mode: ProbeMode) -> str:
    """The question as the simulator hears it."""
    return question.question if mode == "open" else render("choice", question=question)
