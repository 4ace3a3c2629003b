"""The lockstep driver: all dialogues advance together, so that one turn of all of them is one batched call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from persona_tasks.protocol.asks import Answer, Ask, Dialogue

Result = TypeVar("Result")


def lockstep(
    dialogues: Sequence[Dialogue[Result]],
    answer: Callable[[list[Ask]], Sequence[Answer]],
    finished: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Run generators of asks to their ends, answering one ask list of each at a time, all in one call.

    Args:
        dialogues: What `play` or `judge` returned, not yet started.
        answer: Answers a batch of asks, in their order.
        finished: Called with the index and result of each dialogue as soon as it ends, to save it.

    Returns:
        The results in the order of `dialogues`.

    Raises:
        RuntimeError: `answer` did not return as many answers as there were asks.
    """
    results: dict[int, Result] = {}
    waiting: dict[int, list[Ask]] = {}

    def step(index: int, answers: list[Answer] | None) -> None:
        try:
            waiting[index] = next(dialogues[index]) if answers is None else dialogues[index].send(answers)
        except StopIteration as end:
            waiting.pop(index, None)
            results[index] = end.value
            if finished:
                finished(index, end.value)

    for index in range(len(dialogues)):
        step(index, None)
    while waiting:
        batch = [(index, ask) for index, asks in waiting.items() for ask in asks]
        answers = list(answer([ask for _, ask in batch])) if batch else []
        if len(answers) != len(batch):
            raise RuntimeError(f"{len(batch)} asks got {len(answers)} answers")
        grouped: dict[int, list[Answer]] = {index: [] for index in waiting}
        for (index, _), text in zip(batch, answers, strict=True):
            grouped[index].append(text)
        for index, own in grouped.items():
            step(index, own)
    return [results[index] for index in range(len(dialogues))]
