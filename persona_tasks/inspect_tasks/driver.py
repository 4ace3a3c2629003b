"""The async driver: answers the asks of `play` and `judge` with Inspect models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from logging import getLogger
from typing import TypeVar

import anyio
from inspect_ai.model import (
    CachePolicy,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    ResponseSchema,
    get_model,
    model_roles,
)
from inspect_ai.util import LimitExceededError, json_schema, span

from persona_tasks.protocol.asks import Answer, Ask, Chosen, Dialogue, Failure, Message

logger = getLogger(__name__)
Result = TypeVar("Result")

# After these a judge call counts as failed (`unparsed`) instead of holding up the run for ever.
JUDGE_RETRIES = 6


async def drive(dialogue: Dialogue[Result], answer: Callable[[list[Ask]], Awaitable[list[Answer]]]) -> Result:
    """Run a generator of asks to its end."""
    try:
        asks = next(dialogue)
        while True:
            asks = dialogue.send(await answer(asks))
    except StopIteration as end:
        result: Result = end.value
        return result


def chat_message(message: Message) -> ChatMessage:
    """A message of the protocol as Inspect knows it."""
    if message.role == "system":
        return ChatMessageSystem(content=message.content)
    if message.role == "user":
        return ChatMessageUser(content=message.content)
    return ChatMessageAssistant(content=message.content)


def same_messages(known: list[ChatMessage], wanted: tuple[Message, ...]) -> list[ChatMessage]:
    """`wanted` as Inspect messages, reusing the known ones: a line keeps one id all through the log."""
    messages: list[ChatMessage] = []
    for place, message in enumerate(wanted):
        old = known[place] if place < len(known) else None
        if old is None or old.role != message.role:
            messages.append(chat_message(message))
        elif old.content == message.content:
            messages.append(old)
        else:  # the model's thoughts are not part of what was said
            messages.append(old.model_copy(update={"content": message.content}))
    return messages


def answer_of(output: ModelOutput) -> Answer:
    """The text of an output, with its alternatives if the model gives them; a `Failure` where the context is full."""
    if output.stop_reason == "model_length":
        return Failure("the context window is full")
    if output.error:
        return Failure(output.error)
    weights = (output.metadata or {}).get("weights")
    return Chosen(output.completion, weights) if weights else output.completion


def role_model(role: str, max_tokens: int, default: str | None = None) -> Model:
    """The model bound to a role, greedy unless the role says otherwise; never the evaluated model by accident.

    Raises:
        PrerequisiteError: No model is bound to the role and there is no default.
        ValueError: Several models are bound to it.
    """
    bound = model_roles().get(role)
    if isinstance(bound, list):
        raise ValueError(f"bind one model to the role {role!r}, not {len(bound)}")
    name = str(bound or default or "")
    config = GenerateConfig(
        # Inspect's `hf` provider refuses temperature 0; there greedy is `model_args: {do_sample: false}`.
        temperature=None if name.startswith("hf/") else 0.0,
        max_tokens=max_tokens,
        max_retries=JUDGE_RETRIES,
    )
    if default is not None:
        return get_model(role=role, default=default, config=config)
    return get_model(role=role, required=True, config=config)


async def ask_judge(judge: Model, asks: list[Ask], cache: bool) -> list[Answer]:
    """Put all questions to the judge at once; Inspect limits the connections. A call that fails is a `Failure`.

    Args:
        judge: The model.
        asks: Questions with the schema of their reply, which the judge gets as a response schema.
        cache: Keep answers on disk, so that a second run asks only what is missing.
    """

    schemas = {ask.schema: _response_schema(ask) for ask in asks}
    answers: dict[int, Answer] = {}
    limits: list[LimitExceededError] = []

    async def one(ask: Ask) -> Answer:
        schema = schemas[ask.schema]
        try:
            async with span(f"turn {ask.turn}", type="judge"):
                output = await judge.generate(
                    [chat_message(message) for message in ask.messages],
                    config=GenerateConfig(response_schema=schema),
                    cache=CachePolicy(expiry=None) if cache else False,
                )
            return answer_of(output)
        except LimitExceededError:
            raise
        except Exception as error:  # one broken call must not cost the other verdicts of this dialogue
            logger.warning("judge call failed: %s", error)
            return Failure(f"{type(error).__name__}: {error}")

    async def keep(place: int, ask: Ask) -> None:
        try:
            answers[place] = await one(ask)
        except LimitExceededError as error:  # must leave the group as it is, not in an exception group
            limits.append(error)
            group.cancel_scope.cancel()

    # not Inspect's `collect`, which opens a second span around each of our own: hundreds of events for nothing
    async with anyio.create_task_group() as group:
        for place, ask in enumerate(asks):
            group.start_soon(keep, place, ask)
    if limits:
        raise limits[0]
    return [answers[place] for place in range(len(asks))]


def _response_schema(ask: Ask) -> ResponseSchema:
    assert ask.schema is not None
    return ResponseSchema(name=ask.schema.__name__, json_schema=json_schema(ask.schema), strict=True)
