"""The lockstep driver's answers from an engine: every ask of a round in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict

from persona_tasks.embedded.engine import Engine
from persona_tasks.embedded.guided import Choice, choose, possible_replies
from persona_tasks.embedded.request import Completion, ContextOverflow, Request
from persona_tasks.embedded.weights import Sampling
from persona_tasks.protocol.asks import Answer, Ask, Failure
from persona_tasks.protocol.limits import LINE_TOKENS, PROBE_TOKENS, REPLY_TOKENS, VERDICT_TOKENS

GREEDY = Sampling()
MAX_TOKENS = {"line": LINE_TOKENS, "probe": PROBE_TOKENS, "reply": REPLY_TOKENS, "verdict": VERDICT_TOKENS}


def engine_answers(
    engine: Engine, sampling: Sampling = GREEDY, seed: int | None = None
) -> Callable[[Sequence[Ask]], list[Answer]]:
    """An answer function for `lockstep`. Verdicts are greedy, and chosen among those that their schema allows.

    Args:
        engine: Who answers, whatever the role.
        sampling: How lines are chosen; `engine.sampling` for the model's own way. Default: greedy.
        seed: With a seed the same prompt gets the same answer.
    """

    def prompt(ask: Ask) -> list[int]:
        return engine.chat.ids([message._asdict() for message in ask.messages])

    def submit(request: Request) -> Future[Completion] | Failure:
        try:
            return engine.submit(request)
        except ContextOverflow as error:
            return Failure(f"the context window is full: {error}")

    def free(asks: Sequence[Ask]) -> list[Answer]:
        jobs = [submit(Request(prompt(ask), MAX_TOKENS[ask.purpose], **asdict(sampling), seed=seed)) for ask in asks]
        return [job if isinstance(job, Failure) else job.result().text for job in jobs]

    def guided(asks: Sequence[Ask]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        running: dict[int, tuple[Choice, Request]] = {}
        for index, ask in enumerate(asks):
            assert ask.schema is not None
            replies = possible_replies(ask.schema.model_json_schema())
            if replies is None:
                answers[index] = Failure("an embedded judge needs a schema with few possible replies")
                continue
            choice = choose(prompt(ask), replies, engine.tokenizer)
            running[index] = (choice, next(choice))
        while running:
            jobs = {index: submit(request) for index, (_, request) in running.items()}
            for index, job in jobs.items():
                choice, _ = running.pop(index)
                if isinstance(job, Failure):
                    answers[index] = job
                    continue
                try:
                    running[index] = (choice, choice.send(job.result()))
                except StopIteration as end:
                    answers[index] = end.value
        return [answers[index] for index in range(len(asks))]

    def answer(asks: Sequence[Ask]) -> list[Answer]:
        judged = iter(guided([ask for ask in asks if ask.schema is not None]))
        said = iter(free([ask for ask in asks if ask.schema is None]))
        return [next(said) if ask.schema is None else next(judged) for ask in asks]

    return answer
