"""The lockstep driver's answers from an engine: every ask of a round in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from persona_tasks.embedded.engine import Completion, ContextOverflow, Engine, Request
from persona_tasks.protocol.asks import Answer, Ask, Failure
from persona_tasks.protocol.limits import LINE_TOKENS, PROBE_TOKENS, REPLY_TOKENS, VERDICT_TOKENS

MAX_TOKENS = {"line": LINE_TOKENS, "probe": PROBE_TOKENS, "reply": REPLY_TOKENS, "verdict": VERDICT_TOKENS}


def engine_answers(
    engine: Engine, temperature: float = 0.0, top_p: float | None = None, seed: int | None = None
) -> Callable[[Sequence[Ask]], list[Answer]]:
    """An answer function for `lockstep`. Verdicts are always greedy.

    Args:
        engine: Who answers, whatever the role.
        temperature: 0 takes the likeliest token.
        top_p: Sample from the likeliest tokens that make up this much probability.
        seed: With a seed the same prompt gets the same answer.
    """

    def submit(ask: Ask) -> Future[Completion] | Failure:
        messages = [{"role": message.role, "content": message.content} for message in ask.messages]
        free = 0.0 if ask.purpose == "verdict" else temperature
        request = Request(engine.chat.ids(messages), MAX_TOKENS[ask.purpose], free, top_p, seed=seed)
        try:
            return engine.submit(request)
        except ContextOverflow as error:
            return Failure(str(error))

    def answer(asks: Sequence[Ask]) -> list[Answer]:
        pending = [submit(ask) for ask in asks]
        return [item if isinstance(item, Failure) else item.result().text for item in pending]

    return answer
