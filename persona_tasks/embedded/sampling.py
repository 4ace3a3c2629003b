"""Choosing the next token from logits."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona_tasks.embedded.kv import Ids

CANDIDATES = 256  # sorting a whole vocabulary costs more than the forward pass of a small model; these nearly always do


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the logarithm of its probability under the model, before temperature and truncation.

    Attributes:
        token: The text of this token alone. A token may be part of a character; it then reads as U+FFFD.
        top: The most likely tokens, best first, each with an empty `top`.
    """

    id: int
    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


def random_source(seed: int | None, prompt: Ids) -> random.Random:
    """One stream of random numbers per request, so that neighbours in the batch make no difference.

    With a seed, the same prompt gets the same numbers; without, never.
    """
    if seed is None:
        return random.Random()
    return random.Random(hashlib.sha256(seed.to_bytes(16, "little", signed=True) + prompt.tobytes()).digest())


def sample(logits: Tensor, temperature: float, top_p: float | None, top_k: int | None, draw: float) -> int:
    """Choose a token by temperature, then the `top_k` best, then the fewest of these that hold `top_p` together.

    Args:
        logits: ``[vocabulary]``, float32.
        temperature: Above 0.
        draw: A random number in [0, 1).
    """
    logits = logits / temperature
    vocabulary = logits.shape[0]
    if top_k and top_k > 0:
        best, ids = logits.topk(min(top_k, vocabulary))
        probabilities = best.softmax(-1)
    elif top_p is not None and top_p < 1:
        best, ids = logits.topk(min(CANDIDATES, vocabulary))
        probabilities = (best - logits.logsumexp(-1)).exp()
        if float(probabilities.sum()) < top_p:
            best, ids = logits.sort(descending=True)
            probabilities = best.softmax(-1)
    else:
        ids, probabilities = None, logits.softmax(-1)
    if ids is not None and top_p is not None and top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities[: max(1, int((before < top_p).sum()))]
    cumulative = probabilities.double().cumsum(-1)
    chosen = int(torch.searchsorted(cumulative, cumulative[-1:] * draw, right=True))
    chosen = min(chosen, len(probabilities) - 1)
    return int(ids[chosen]) if ids is not None else chosen


def penalised(logits: Tensor, generated: Sequence[int], frequency: float) -> Tensor:
    """Logits after the frequency penalty of OpenAI's API: minus `frequency` for each time a token was generated.

    Args:
        logits: ``[vocabulary]``, float32; not changed.
        generated: The tokens of this completion so far.
    """
    if not generated:
        return logits
    ids, counts = torch.tensor(generated, device=logits.device).unique(return_counts=True)
    return logits.index_add(0, ids, counts.to(logits.dtype), alpha=-frequency)


def token_logprob(logits: Tensor, chosen: int, top: int, tokenizer: Any) -> TokenLogprob:
    """The log-probability of the chosen token and of the `top` likeliest.

    Args:
        logits: ``[vocabulary]``, float32.
    """
    logprobs = logits.log_softmax(-1)

    def entry(token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token, str(tokenizer.decode([token])), logprob, top)

    values, ids = logprobs.topk(min(top, len(logprobs)))
    best = tuple(map(entry, ids.tolist(), values.tolist()))
    return entry(chosen, float(logprobs[chosen]), best)
