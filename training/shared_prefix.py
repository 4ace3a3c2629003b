"""Prompts that begin alike, as one batch: what they share is computed, and differentiated, once.

Sixty lines about one persona cost the persona's six hundred tokens once instead of sixty times. The shared beginning
is a row of its own; its keys and values are then the past of every continuation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Group:
    """Some prompts and how they begin.

    Attributes:
        prefix: ``[P]`` token ids that all of them begin with.
        suffixes: The rest of each, at least one token.
        prompts: Which prompts these are.
    """

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """What is computed, padding included."""
        return len(self.prefix) + len(self.suffixes) * max(map(len, self.suffixes))


def group(
    prompts: Sequence[tuple[int, ...]], keys: Sequence[str], limit: int = 4096, first: Sequence[int] | None = None
) -> list[Group]:
    """Group prompts with the same key, those of similar length together.

    Args:
        prompts: Token ids of each.
        keys: Prompts with equal keys begin alike.
        first: The first place of each at which a state is wanted (see `hidden_at`); the last one if not given.
        limit: At most so many tokens, padding included, are computed at once; a longer prompt is alone.

    Returns:
        Groups that hold every prompt once.

    Raises:
        ValueError: A prompt is empty.
    """
    if not all(prompts):
        raise ValueError("an empty prompt cannot be computed")
    first = [len(prompt) for prompt in prompts] if first is None else first
    groups: list[Group] = []
    for key in sorted(set(keys)):
        waiting: list[int] = []
        for number in sorted((n for n, other in enumerate(keys) if other == key), key=lambda n: (len(prompts[n]), n)):
            if waiting and _group(prompts, first, [*waiting, number]).tokens > limit:
                groups.append(_group(prompts, first, waiting))
                waiting = []
            waiting.append(number)
        groups.append(_group(prompts, first, waiting))
    return groups


def _group(prompts: Sequence[tuple[int, ...]], first: Sequence[int], numbers: Sequence[int]) -> Group:
    chosen = [prompts[number] for number in numbers]
    shortest = min(first[number] for number in numbers) - 1  # the token at which a state is wanted is a prompt's own
    columns = enumerate(zip(*chosen, strict=False))
    shared = min(shortest, next((place for place, tokens in columns if len(set(tokens)) > 1), shortest))
    return Group(chosen[0][:shared], tuple(prompt[shared:] for prompt in chosen), tuple(numbers))


def dialogue_logits(model: Any, input_ids: Tensor, attention_mask: Tensor, columns: Tensor, prompt: int) -> Tensor:
    """Logits that predict some tokens of dialogues of which several have the same prompt.

    Args:
        model: A transformers language model, wrapped or not.
        input_ids: ``[B, prompt + T]``: prompts, padded on the left, and what follows them, padded on the right.
        attention_mask: The same shape, 0 where there is padding.
        columns: ``[C]``, which of the T tokens are to be predicted.
        prompt: Width of the prompts.

    Returns:
        ``[B, C, V]``. What is computed for padding means nothing.
    """
    prompts, which = torch.unique(input_ids[:, :prompt] * attention_mask[:, :prompt], dim=0, return_inverse=True)
    made: list[Tensor] = [torch.empty(0)] * len(input_ids)
    for number in range(len(prompts)):
        rows = (which == number).nonzero()[:, 0]
        row, past = int(rows[0]), int(attention_mask[rows[0], :prompt].sum()) - 1  # its last token predicts the first
        cache = DynamicCache()
        if past:
            prefix = input_ids[row : row + 1, prompt - 1 - past : prompt - 1]
            model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(rows))
        logits = model(
            input_ids=input_ids[rows, prompt - 1 :],
            attention_mask=torch.cat([attention_mask.new_ones(len(rows), past), attention_mask[rows, prompt - 1 :]], 1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=columns,
        ).logits
        for place, own in zip(rows.tolist(), logits, strict=True):
            made[place] = own
    return torch.stack(made)


class Backbone:
    """A decoder whose layers below `learns` never change: of a group that comes again, only the others are computed.

    Args:
        model: A transformers decoder without its head, such as ``model.model``, with or without an adapter.
        learns: The first layer that does change; 0 keeps nothing. What is kept takes two bytes, in bfloat16, times
            hidden size, for each token of each group.
    """

    def __init__(self, model: Any, learns: int = 0):
        self.model, self.learns = model, learns
        self.kept: dict[Group, tuple[Tensor, Tensor]] = {}
        self.lower, self.upper = self.part(0, learns), self.part(learns, len(model.layers))

    def part(self, start: int, stop: int) -> Any:
        """Some of the layers, shared and not copied; the last norm belongs to the last layer."""
        part = copy.copy(self.model)
        part._modules = dict(self.model._modules)
        part.layers = self.model.layers[start:stop]
        if stop < len(self.model.layers):
            part.norm = torch.nn.Identity()
        return part

    def computed(self, upper: Any, batch: Group) -> Tensor:
        """What comes out of a part that begins where layers learn, ``[prompts, longest suffix, hidden]``."""
        below = self.kept.get(batch) or _embedded(self.model, batch)
        if self.learns and batch not in self.kept:
            with torch.no_grad():
                below = self.kept[batch] = _computed(self.lower, batch, *below)
        return _computed(upper, batch, *below)[1]

    def hidden_at(self, batch: Group, places: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each prompt the last hidden states after so many of its tokens, ``[places, hidden]``.

        Args:
            batch: The prompts.
            places: For each of them, numbers of tokens; more than the prefix has.
        """
        hidden, past = self.computed(self.upper, batch), len(batch.prefix)
        wanted = [torch.tensor([place - 1 - past for place in each], device=hidden.device) for each in places]
        return [states[place] for states, place in zip(hidden, wanted, strict=True)]


def _embedded(model: Any, batch: Group) -> tuple[Tensor, Tensor]:
    """``[1, prefix, hidden]`` and ``[prompts, longest suffix, hidden]``, padded with token 0."""
    device = next(model.parameters()).device
    suffixes = torch.zeros(len(batch.suffixes), max(map(len, batch.suffixes)), dtype=torch.long, device=device)
    for row, suffix in enumerate(batch.suffixes):
        suffixes[row, : len(suffix)] = torch.tensor(suffix, device=device)
    prefix = torch.tensor([batch.prefix], dtype=torch.long, device=device)
    return model.embed_tokens(prefix), model.embed_tokens(suffixes)


def _computed(layers: Any, batch: Group, prefix: Tensor, suffixes: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out of the layers, of the same shapes; the prefix's keys and values are the past of each suffix."""
    count, longest, past, device = len(batch.suffixes), suffixes.shape[1], prefix.shape[1], suffixes.device
    cache = DynamicCache()
    if past:
        causal = torch.ones(past, past, dtype=torch.bool, device=device).tril()[None, None]
        places = torch.arange(past, device=device)[None]
        prefix = _run(layers, prefix, causal, places, cache)
        cache.batch_repeat_interleave(count)
    seen = torch.ones(longest, past + longest, dtype=torch.bool, device=device).tril(past)
    real = torch.ones(count, past + longest, dtype=torch.bool, device=device)
    for row, suffix in enumerate(batch.suffixes):
        real[row, past + len(suffix) :] = False
    mask = seen & real[:, None]  # padding sees what came before it; no row is without any place
    places = torch.arange(past, past + longest, device=device)[None].expand(count, -1)
    return prefix, _run(layers, suffixes, mask[:, None], places, cache)


def _run(layers: Any, hidden: Tensor, mask: Tensor, places: Tensor, cache: DynamicCache) -> Tensor:
    output: Tensor = layers(
        inputs_embeds=hidden, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return output
