"""One request on its way through the engine."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from persona_tasks.embedded.kv import Ids, TokenSequence
from persona_tasks.embedded.request import Completion, Request, StopReason
from persona_tasks.embedded.sampling import TokenLogprob, penalised, random_source, sample, token_logprob


@dataclass(eq=False)
class Job:
    """A request, what it has generated so far, and who waits for it.

    Attributes:
        limit: At most so many tokens are generated.
        limited_by_context: The limit is where the context ends, not what the request asked for.
        sequence: Its keys and values; None while it waits.
        leader: A running sequence that is about to compute the first `shared` tokens of this prompt too.
        reused: Prompt tokens that needed no computing.
    """

    request: Request
    prompt: Ids
    limit: int
    limited_by_context: bool
    future: Future[Completion] = field(default_factory=Future)
    started: float = field(default_factory=time.monotonic)
    sequence: TokenSequence | None = None
    leader: TokenSequence | None = None
    shared: int = 0
    reused: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    among: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._random = random_source(self.request.seed, self.prompt)

    def take(self, logits: Tensor, likeliest: int, tokenizer: Any, end: frozenset[int]) -> Completion | None:
        """Choose the next token.

        Args:
            logits: ``[vocabulary]``, float32.
            likeliest: Their argmax.
            end: Tokens that end a completion.

        Returns:
            The completion if this was its last token; else None, and the sequence is one token longer.
        """
        request, token = self.request, likeliest
        if request.frequency_penalty:
            logits = penalised(logits, self.ids, request.frequency_penalty)
            token = int(logits.argmax())
        if request.allowed:
            among = logits[list(request.allowed)]
            token = request.allowed[int(among.argmax())]
            self.among = tuple(among.softmax(-1).tolist())
        elif request.temperature > 0:
            token = sample(logits, request.temperature, request.top_p, request.top_k, self._random.random())
        self.ids.append(token)
        if request.logprobs is not None:
            self.logprobs.append(token_logprob(logits, token, request.logprobs, tokenizer))
        if token in end:
            return self._completion(_text(self.ids[:-1], tokenizer), "stop")
        if (text := self._stopped(tokenizer)) is not None:
            return self._completion(text, "stop")
        if len(self.ids) == self.limit:
            reason: StopReason = "model_length" if self.limited_by_context else "max_tokens"
            return self._completion(_text(self.ids, tokenizer), reason)
        assert self.sequence is not None
        self.sequence.ids[self.sequence.length] = token
        self.sequence.length += 1
        return None

    def _stopped(self, tokenizer: Any) -> str | None:
        """The text before the first stop sequence, if there is one."""
        stops = self.request.stop
        if not stops:
            return None
        # a token has at least one byte and a character at most four: no need to decode everything at each step
        tail = _text(self.ids[-4 * max(map(len, stops)) - 4 :], tokenizer)
        if not any(stop in tail for stop in stops):
            return None
        text = _text(self.ids, tokenizer)
        cuts = [position for stop in stops if (position := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else None

    def _completion(self, text: str, reason: StopReason) -> Completion:
        logprobs = self.logprobs if self.request.logprobs is not None else None
        seconds = time.monotonic() - self.started
        return Completion(text, self.ids, reason, len(self.prompt), self.reused, logprobs, seconds, self.among)


def _text(ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
