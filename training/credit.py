"""From rewards to token advantages, and the log-probabilities they multiply: tensors in, tensors out.

Rewards come per line, ``[dialogues, turns]``, or per dialogue, ``[dialogues, 1]``, with NaN where there is no verdict.
The G dialogues of a group stand next to each other. Every reward is centred by itself on the mean of its group at the
same turn,

    r'_{i,t} = r_{i,t} - mean_{j in group} r_{j,t}

so that what has no verdict counts as 0, not as a bad line. That baseline does not depend on the line's own tokens
given its history, up to the share 1/G of the line itself, which only scales. Line t is then credited with

    turn       sum_{k>=t} gamma^(k-t) r'_k      what it and the lines after it earned
    segment    sum_{k=t}^{t+n-1} r'_k           the same, n turns ahead (Partial Policy Gradients, arXiv 2603.06138)
    dialogue   sum_k r'_k                       everything, as if the dialogue were one answer

and in all three with the dialogue's own reward (questions).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Credit = Literal["turn", "segment", "dialogue"]
Scale = Literal["batch", "group", "none"]
EPSILON = 1e-4  # beside a standard deviation, as in TRL


def centred(rewards: Tensor, group: int) -> Tensor:
    """``[N, W]`` rewards minus the mean of their group and column; 0 where there is none."""
    grouped = rewards.view(-1, group, rewards.shape[1])
    return (grouped - grouped.nanmean(1, keepdim=True)).nan_to_num(0.0).view_as(rewards)


def returns(rewards: Tensor, credit: Credit, gamma: float = 1.0, segment: int = 2) -> Tensor:
    """What each line is credited with; ``[N, turns]`` from centred line rewards ``[N, turns]``."""
    turns = rewards.shape[1]
    if credit == "dialogue":
        return rewards.sum(1, keepdim=True).expand(-1, turns).clone()
    ahead = torch.arange(turns)[:, None] - torch.arange(turns)  # of the rewarded line, seen from the credited one
    weight = (ahead >= 0) * (gamma ** ahead.clamp(min=0)) if credit == "turn" else (ahead >= 0) & (ahead < segment)
    return rewards @ weight.to(rewards)


def scaled(credited: Tensor, scale: Scale, group: int) -> Tensor:
    """``[N, turns]`` divided by their standard deviation: of the batch, of the group at each turn, or not at all."""
    if scale == "batch":
        return credited / (credited.std() + EPSILON)
    if scale == "group":
        grouped = credited.view(-1, group, credited.shape[1])
        return (grouped / (grouped.std(1, keepdim=True) + EPSILON)).view_as(credited)
    return credited


def to_tokens(lines: Tensor, turns: Tensor) -> Tensor:
    """``[B, turns]`` of lines to ``[B, T]`` of their tokens; 0 where `turns`, ``[B, T]``, is -1."""
    return lines.gather(1, turns.clamp(min=0)) * (turns >= 0)


def line_means(values: Tensor, turns: Tensor, count: int) -> Tensor:
    """``[B, count]``, the mean of `values`, ``[B, T]``, over each line's tokens; NaN for lines without any."""
    lines = turns[:, :, None] == torch.arange(count, device=turns.device)
    return (values[:, :, None] * lines).sum(1) / lines.sum(1)


def spoken_logprobs(
    logits: Tensor, ids: Tensor, turns: Tensor, temperature: float, frequency_penalty: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token as it was sampled, and the entropy of what it was sampled from.

    The distribution is that of `training.voices`: ``softmax((logits - f * count) / T)``, where count is how often a
    token has occurred earlier in the same line.

    Args:
        logits: ``[B, T, V]``, float32, of the positions that predict `ids`. Changed in place.
        ids: ``[B, T]``.
        turns: ``[B, T]``, the line of each token, -1 for those that nobody sampled.

    Returns:
        Two tensors ``[B, T]``, 0 where the turn is -1.
    """
    mask = turns >= 0
    if frequency_penalty:
        same = (turns[:, :, None] == turns[:, None, :]) & mask[:, :, None]
        row, position, earlier = same.tril(-1).nonzero(as_tuple=True)
        penalty = logits.new_tensor(-frequency_penalty)
        logits = logits.index_put_((row, position, ids[row, earlier]), penalty, accumulate=True)
    logprobs = (logits / temperature).log_softmax(-1)
    chosen = logprobs.gather(2, ids[:, :, None])[:, :, 0]
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return chosen * mask, entropy * mask


def advantages_over_time(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438) over the simulator's tokens; ``[B, T]``, 0 elsewhere.

    delta_j = r_j + gamma * V_{j'} - V_j and A_j = delta_j + gamma * lam * A_{j'}, where j' is the next token that the
    simulator says: partner's tokens are part of the transition. After the last token V and A are 0.

    Args:
        rewards: ``[B, T]``, on the tokens that earned them.
        values: ``[B, T]``, of the contexts that the tokens were sampled in.
        mask: ``[B, T]``, the simulator's tokens.
    """
    advantages = torch.zeros_like(values)
    value = advantage = values.new_zeros(values.shape[0])
    for place in reversed(range(values.shape[1])):
        own = mask[:, place]
        delta = rewards[:, place] + gamma * value - values[:, place]
        current = delta + gamma * lam * advantage
        advantages[:, place] = torch.where(own, current, 0.0)
        advantage = torch.where(own, current, advantage)
        value = torch.where(own, values[:, place], value)
    return advantages
