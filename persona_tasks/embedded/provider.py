"""Inspect's `persona/...` models: embedded ones and local folders, through one engine per set of weights.

    inspect eval persona_tasks/drift --model persona/smollm2-135m
    inspect eval persona_tasks/drift --model persona//home/me/checkpoint -M dtype=float32 -M device=cpu

Whatever roles use a model, it is loaded once per process, at the first request. Requests of all samples and roles share
a batch and the prefixes that are already computed; `input_tokens_cache_read` says how much of a prompt was.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from persona_tasks.embedded.weights import check_name

if TYPE_CHECKING:
    from persona_tasks.embedded.engine import Completion, Engine, Request
    from persona_tasks.embedded.sampling import TokenLogprob
    from persona_tasks.protocol.asks import Chosen

CONNECTIONS = 64


@modelapi(name="persona")
def persona() -> type[ModelAPI]:
    """Inspect finds the provider by this function. Nothing heavy is imported until a model generates."""
    return PersonaAPI


class PersonaAPI(ModelAPI):
    """`persona/<name of an embedded model>` or `persona/<path of a folder>`.

    Without a temperature the model talks as it is known to (`weights.MODELS`) or as its generation configuration says,
    as in transformers; a folder without one takes the likeliest token. Temperature 0 is plain greedy decoding.

    Args:
        dtype: "bfloat16", "float16" or "float32"; "auto" for what the device computes fastest in. Each output says which.
        device: Default: the GPU if there is one.

    Raises:
        WeightsError: There is no such model.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (the signature that Inspect asks for)
        dtype: str = "auto",
        device: str | None = None,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        check_name(model_name)
        self.dtype, self.device = dtype, device

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        if tools:
            raise ValueError("persona/ models cannot call tools")
        from persona_tasks.embedded.engine import ContextOverflow

        engine = await self.engine()
        try:
            if (guided := await _guided(engine, input, config)) is not None:
                chosen, usage = guided
                output = ModelOutput.from_content(self.model_name, str(chosen))
                made = {"dtype": engine.dtype, "weights": dict(chosen.weights)}
                return output.model_copy(update={"usage": usage, "metadata": made})
            completion = await engine.complete(_request(engine, input, config))
        except ContextOverflow as error:
            output = ModelOutput.from_content(self.model_name, "", stop_reason="model_length", error=str(error))
            output.usage = ModelUsage()
            return output
        output = _output(self.model_name, completion)
        return output.model_copy(update={"metadata": {"dtype": engine.dtype}})

    async def engine(self) -> Engine:
        """The engine behind this model; loads it if nobody has."""
        from persona_tasks.embedded.engine import Engine

        load = partial(Engine.shared, self.model_name, self.dtype, self.device)
        # loading takes seconds: not with the threads that everybody else needs
        return await anyio.to_thread.run_sync(load, limiter=anyio.CapacityLimiter(1))

    async def count_text_tokens(self, text: str) -> int:
        engine = await self.engine()
        return len(engine.tokenizer(text, add_special_tokens=False)["input_ids"])

    def max_connections(self) -> int:
        return CONNECTIONS

    def connection_key(self) -> str:
        return f"persona/{self.model_name}"


async def _guided(engine: Engine, input: list[ChatMessage], config: GenerateConfig) -> tuple[Chosen, ModelUsage] | None:
    """A reply chosen among all those that the response schema allows, and its cost; None if they cannot be listed."""
    from persona_tasks.embedded.guided import choose, possible_replies

    if config.response_schema is None:
        return None
    replies = possible_replies(config.response_schema.json_schema.model_dump(exclude_none=True))
    if replies is None:
        return None
    usage = ModelUsage()
    choice = choose(_prompt(engine, input), replies, engine.tokenizer)
    request = next(choice)
    while True:
        completion = await engine.complete(request)
        usage += _usage(completion)
        try:
            request = choice.send(completion)
        except StopIteration as end:
            return end.value, usage


def _prompt(engine: Engine, input: list[ChatMessage]) -> list[int]:
    return engine.chat.ids([{"role": message.role, "content": message.text} for message in input])


def _request(engine: Engine, input: list[ChatMessage], config: GenerateConfig) -> Request:
    from persona_tasks.embedded.engine import Request

    prompt = _prompt(engine, input)
    own = engine.sampling
    if config.temperature == 0:  # greedy is greedy, whatever the model would do by itself
        own = replace(own, temperature=0.0, frequency_penalty=0.0)
    return Request(
        prompt,
        max_tokens=config.max_tokens,
        temperature=own.temperature if config.temperature is None else config.temperature,
        top_p=own.top_p if config.top_p is None else config.top_p,
        top_k=own.top_k if config.top_k is None else config.top_k,
        frequency_penalty=own.frequency_penalty if config.frequency_penalty is None else config.frequency_penalty,
        seed=config.seed,
        stop=tuple(config.stop_seqs or ()),
        logprobs=(config.top_logprobs or 0) if config.logprobs else None,
    )


def _output(model: str, completion: Completion) -> ModelOutput:
    logprobs = None
    if completion.logprobs is not None:
        logprobs = Logprobs(
            content=[
                Logprob(
                    token=entry.token,
                    logprob=entry.logprob,
                    bytes=list(entry.token.encode()),
                    top_logprobs=[_top(other) for other in entry.top] or None,
                )
                for entry in completion.logprobs
            ]
        )
    message = ChatMessageAssistant(content=completion.text, model=model, source="generate")
    return ModelOutput(
        model=model,
        choices=[ChatCompletionChoice(message=message, stop_reason=completion.stop_reason, logprobs=logprobs)],
        usage=_usage(completion),
        time=completion.seconds,
    )


def _usage(completion: Completion) -> ModelUsage:
    return ModelUsage(
        input_tokens=completion.prompt_tokens - completion.reused_tokens,
        input_tokens_cache_read=completion.reused_tokens,
        output_tokens=completion.completion_tokens,
        total_tokens=completion.prompt_tokens + completion.completion_tokens,
    )


def _top(entry: TokenLogprob) -> TopLogprob:
    return TopLogprob(token=entry.token, logprob=entry.logprob, bytes=list(entry.token.encode()))
