"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from persona_tasks.embedded.sampling import TokenLogprob

StopReason = Literal["stop", "max_tokens", "model_length"]

DEFAULT_MAX_TOKENS = 2048  # for requests that name no limit; a small model that repeats itself never ends


class ContextOverflow(ValueError):
    """The prompt and what may be generated don't fit the context. Never truncated: that would cut off the persona."""


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    Attributes:
        prompt: Token ids, as `Engine.chat` renders them.
        max_tokens: At most so many are generated; None for as many as the context leaves, up to `DEFAULT_MAX_TOKENS`.
        temperature: 0 takes the likeliest token.
        top_p, top_k: Truncate what is sampled from; None or 0 for no limit.
        frequency_penalty: Taken from a token's logit for each time it has been generated in this completion; the
            definition of OpenAI's API. 0 for none.
        seed: With a seed, the same prompt gets the same completion, whatever else runs; None is random.
        stop: Texts that end the completion; they are not part of it.
        logprobs: None for none, 0 for those of the chosen tokens, k for the k likeliest tokens with each of them.
        allowed: Ids that may be generated; empty for all. Their log-probabilities are still those among all tokens.
    """

    prompt: Sequence[int]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    allowed: Sequence[int] = ()


@dataclass(frozen=True)
class Completion:
    """What was generated.

    Attributes:
        text: Without special tokens, and without the stop sequence that ended it.
        ids: All generated tokens, the one that ended it included.
        stop_reason: "stop" for the end token or a stop sequence, "model_length" if the context is full.
        reused_tokens: Of `prompt_tokens`, those whose keys and values were there already.
        logprobs: One for each of `ids`, if asked for.
        seconds: From submission to the end.
        among: Probabilities of the request's `allowed` tokens among themselves, for the last token; empty without any.
    """

    text: str
    ids: list[int]
    stop_reason: StopReason
    prompt_tokens: int
    reused_tokens: int
    logprobs: list[TokenLogprob] | None
    seconds: float
    among: tuple[float, ...] = ()

    @property
    def completion_tokens(self) -> int:
        return len(self.ids)


@dataclass
class Stats:
    """Counts since the engine was made. Prompt tokens are either reused or computed."""

    requests: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
