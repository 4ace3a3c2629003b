"""Prompts that begin alike, as one batch: what they share is computed, and differentiated, once.

Sixty lines about one persona cost the persona's six hundred tokens once instead of sixty times. The shared beginning
is a row of its own; its keys and values are then the past of every continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def hidden_at(backbone: torch.nn.Module, batch: Group, places: Sequence[Sequence[int]]) -> list[Tensor]:
    """For each prompt its last hidden states after so many of its tokens, ``[places, hidden]``.

    Args:
        backbone: A transformers decoder without its head, such as ``model.model``.
        places: For each prompt of the batch, numbers of tokens; more than the prefix has.
    """
    device = next(backbone.parameters()).device
    count, longest, past = len(batch.suffixes), max(map(len, batch.suffixes)), len(batch.prefix)
    ids = torch.zeros(count, longest, dtype=torch.long, device=device)
    seen = torch.zeros(count, past + longest, dtype=torch.long, device=device)
    seen[:, :past] = 1
    for row, suffix in enumerate(batch.suffixes):
        ids[row, : len(suffix)] = torch.tensor(suffix, device=device)
        seen[row, past : past + len(suffix)] = 1
    cache = DynamicCache()
    if past:
        backbone(input_ids=torch.tensor([batch.prefix], device=device), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(count)
    positions = torch.arange(past, past + longest, device=device)[None].expand(count, -1)
    output = backbone(input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True)
    hidden: Tensor = output.last_hidden_state
    wanted = [torch.tensor([place - 1 - past for place in each], device=device) for each in places]
    return [states[place] for states, place in zip(hidden, wanted, strict=True)]
