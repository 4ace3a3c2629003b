"""The solvers: hold a dialogue with the evaluated model as the simulator, or take up a recorded one."""

from __future__ import annotations

from typing import Literal

from inspect_ai.event import timeline_branch, timeline_build
from inspect_ai.log import transcript as log_transcript
from inspect_ai.model import ChatMessageAssistant, GenerateConfig, ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect, span, suspend_turn_limit

from persona_tasks.inspect_tasks.driver import (
    answer_of,
    chat_message,
    drive,
    role_model,
    same_messages,
)
from persona_tasks.inspect_tasks.record import DriftRecord
from persona_tasks.personas import load_bank
from persona_tasks.protocol.asks import Answer, Ask, Failure, Message
from persona_tasks.protocol.limits import PROBE_TOKENS, REPLY_TOKENS
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.play import SILENCE, blank, play
from persona_tasks.transcript import ProbeMode, Transcript


@solver
def simulated_dialogue(
    turns: int = 8,
    probes: list[int] | None = None,
    probe_mode: ProbeMode = "open",
    partner: Literal["scripted", "model"] = "scripted",
    seed: int = 0,
    bank: str | None = None,
) -> Solver:
    """Hold one dialogue per sample: the evaluated model plays the persona, the partner talks to it.

    Every answer goes into the store at once, so a sample that hits a limit is scored on what was said.

    Args:
        turns: Lines the simulator says.
        probes: Turns after which the persona's questions are asked on forks; None for first, middle and last.
        probe_mode: "open" questions, or "choice" between five lettered options.
        partner: "scripted", or the "model" bound to the role `partner`.
        seed: Seed of the partner's lines in the first epoch; each further epoch takes the next.
        bank: Folder of a bank of your own; None for ours.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        everyone = load_bank(bank)
        persona = everyone.persona(state.metadata["persona_id"])
        scenario = everyone.scenarios[persona.scenario]
        epoch_seed = seed + state.epoch - 1
        other = make_partner(persona, scenario, everyone.scripts.get(scenario.id), turns, epoch_seed, partner)
        if partner == "model":
            role_model("partner", REPLY_TOKENS)  # a missing role must show before anything is said
        record = state.store_as(DriftRecord)
        transcript = blank(persona, scenario, other, epoch_seed)
        transcript.model = str(state.model)
        transcript.metadata = {"epoch": state.epoch, "split": persona.split}
        answerer = _Answerer(state, generate)
        try:
            # The partner's spans and the question branches are direct children of one agent span: that is what the
            # viewer reads as lanes and forks, and it reads them only from a stored timeline.
            async with span("simulator", type="agent"):
                dialogue = play(persona, scenario, other, turns, probes, probe_mode, epoch_seed, transcript)
                await drive(dialogue, answerer)
        finally:
            record.transcript = transcript
            log_transcript().add_timeline(timeline_build(list(log_transcript().events), name="Conversation"))
        if transcript.ended:
            state.metadata["ended"] = transcript.ended
        return state

    return solve


class _Answerer:
    """Answers the asks of one dialogue; `play` yields asks of one purpose at a time."""

    def __init__(self, state: TaskState, generate: Generate):
        self.state, self.generate = state, generate

    async def __call__(self, asks: list[Ask]) -> list[Answer]:
        purpose = asks[0].purpose
        if purpose == "line":
            return [await self.line(asks[0])]
        if purpose == "reply":
            return [await self.reply(asks[0])]
        return await self.probes(asks)

    async def line(self, ask: Ask) -> Answer:
        self.state.messages = same_messages(self.state.messages, ask.messages)
        self.state = await self.generate(self.state)
        answer = answer_of(self.state.output)
        if isinstance(answer, Failure) and isinstance(self.state.messages[-1], ChatMessageAssistant):
            self.state.messages.pop()  # nothing was said
        return answer

    async def reply(self, ask: Ask) -> Answer:
        with suspend_turn_limit():
            async with span("partner", type="agent"):
                model = role_model("partner", REPLY_TOKENS)
                return answer_of(await model.generate([chat_message(message) for message in ask.messages]))

    async def probes(self, asks: list[Ask]) -> list[Answer]:
        """Every question on its own fork of the conversation; `state.messages` never sees them."""
        known = self.state.messages

        async def one(ask: Ask) -> Answer:
            output: ModelOutput = await get_model().generate(
                same_messages(known, ask.messages), config=GenerateConfig(max_tokens=PROBE_TOKENS)
            )
            return answer_of(output)

        without_persona = asks[0].turn == 0
        name = "questions without persona" if without_persona else f"questions after turn {asks[0].turn}"
        anchor = "start" if without_persona else known[-1].id or ""
        with suspend_turn_limit():
            async with timeline_branch(name=name, from_anchor=anchor):
                return list(await collect(*[one(ask) for ask in asks]))


@solver
def recorded_dialogue() -> Solver:
    """Take up a dialogue that was held elsewhere: nothing is generated."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        transcript = Transcript.model_validate(state.metadata["transcript"])
        state.store_as(DriftRecord).transcript = transcript
        messages = [Message("system", transcript.persona_text)]
        for turn in transcript.turns:
            messages += [Message("user", turn.partner)] if turn.partner else []
            messages += [Message("assistant", turn.line or SILENCE)]
        state.messages = [chat_message(message) for message in messages]
        state.output = ModelOutput.from_content("recorded", transcript.lines[-1] if transcript.turns else "")
        return state

    return solve
