"""A judge's adapter that begins where a linear probe ends.

What tells contradicting lines from consistent ones can largely be read off the untrained model's states, linearly
(LOG.md, experiments 4 and 7); the model just does not say it. So training need not look for it: a logistic regression
is fitted to what the first trained layer's MLP reads where a verdict is due, and written into one hidden unit of that
MLP for each metric::

    gate_j(x) = K,   up_j(x) = score(x) / K,   down_j = direction that moves the verdict's log-odds by 1
    silu(K) * score / K = score                (K large, and c with c.x = 1 stands for the constant)

which is a change of rank one in each of the three matrices, so LoRA can hold it: one row of its rank per metric. The
others begin at zero, as ever. The unit that the model uses least is given up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from training.judge_data import Example
from training.shared_prefix import Backbone, Group

CONSTANT = 16.0  # silu(16) = 16 in every type; a gate this far from zero is a straight line
SOME = 4  # groups on which the direction's effect is measured
LOUD = 1.0  # log-odds by which it must move them to be told from rounding

Array = NDArray[np.float64]
LogOdds = Callable[[Group, Sequence[Example]], list[float]]


def begin_with_probe(
    model: Any, backbone: Backbone, groups: Sequence[tuple[Group, list[Example]]], strength: float, log_odds: LogOdds
) -> dict[str, int]:
    """Fit a probe for each metric and write it into the adapter.

    Args:
        model: With a fresh LoRA adapter on the layers from ``backbone.learns`` on.
        backbone: Its decoder.
        groups: Prompts, and the labelled examples that they are.
        strength: Inverse regularisation C of the logistic regression, on standardised states.
        log_odds: The model's log-odds of "contradicts" for each example of a group, as it is now.

    Returns:
        For each metric, how many examples its probe was fitted to.
    """
    fitted: dict[str, int] = {}
    for row, metric in enumerate(sorted({example.item.metric for _, examples in groups for example in examples})):
        own = [pair for pair in groups if pair[1][0].item.metric == metric]
        examples = [example for _, found in own for example in found]
        states = torch.cat([mlp_inputs(backbone, *pair) for pair in own]).double().numpy()
        weights, bias = _probe(states, examples, strength)
        ends = np.cumsum([len(found) for _, found in own])
        measured = range(0, len(own), max(1, len(own) // SOME))[:SOME]
        shown = np.concatenate([np.arange(ends[number] - len(own[number][1]), ends[number]) for number in measured])
        score = states[shown] @ weights + bias

        def odds(pairs: Sequence[tuple[Group, list[Example]]] = tuple(own[number] for number in measured)) -> Array:
            with torch.no_grad():
                return np.array([value for pair in pairs for value in log_odds(*pair)])

        unit = Unit(model, backbone, row, states, _direction(model, examples))
        before, factor = odds(), 1.0
        unit.write(weights, bias, factor)
        while (moved := odds() - before).std() < LOUD and factor < 2**20:
            factor *= 2
            unit.write(weights, bias, factor)
        slope = float(np.cov(moved, score)[0, 1] / score.var(ddof=1))
        unit.write(weights, bias - float(before.mean()), factor / slope)
        fitted[metric] = len(examples)
    return fitted


@torch.no_grad()
def mlp_inputs(backbone: Backbone, group: Group, examples: Sequence[Example]) -> Tensor:
    """What the first learning layer's MLP reads where each example's verdict is due, ``[examples, hidden]``."""
    read: list[Tensor] = []
    first = backbone.part(backbone.learns, backbone.learns + 1)
    hook = first.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        backbone.computed(first, group)
    finally:
        hook.remove()
    past = len(group.prefix)
    places = [example.choices[0].place - 1 - past for example in examples]
    return torch.stack([states[place].float() for states, place in zip(read[-1], places, strict=True)]).cpu()


def _probe(states: Array, examples: Sequence[Example], strength: float) -> tuple[Array, float]:
    """Weights ``[hidden]`` and bias of a logistic regression, for states as they are."""
    scaler = StandardScaler().fit(states)
    guilty = [example.item.label == "contradicts" for example in examples]
    found = LogisticRegression(C=strength, max_iter=1000).fit(
        scaler.transform(states), guilty, sample_weight=[example.weight for example in examples]
    )
    weights: Array = found.coef_[0] / scaler.scale_
    return weights, float(found.intercept_[0] - weights @ scaler.mean_)


def _direction(model: Any, examples: Sequence[Example]) -> Tensor:
    """Where to move the last state so that tokens of contradicting verdicts gain on the others, ``[hidden]``."""
    guilty, innocent = set[int](), set[int]()
    for example in examples:
        for token, contradicts in zip(example.choices[0].allowed, example.contradicts, strict=True):
            (guilty if contradicts else innocent).add(token)
    inner = model.get_base_model()
    rows = inner.lm_head.weight.detach().float()
    wanted = rows[sorted(guilty)].mean(0) - rows[sorted(innocent)].mean(0)
    wanted = wanted * inner.model.norm.weight.detach().float()
    return wanted / wanted.square().sum()


class Unit:
    """The hidden unit that is given up for a probe.

    Args:
        model: With the adapter.
        backbone: Its decoder.
        row: Which row of the adapter's rank holds it.
        states: ``[examples, hidden]``, what the MLP reads.
        direction: ``[hidden]``, what it adds for a score of 1, but for a factor.
    """

    def __init__(self, model: Any, backbone: Backbone, row: int, states: Array, direction: Tensor):
        mlp = model.get_base_model().model.layers[backbone.learns].mlp
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.row, self.direction = row, direction
        inputs = torch.tensor(states, dtype=torch.float32)
        gate, up, down = (part.weight.detach().float().cpu() for part in (self.gate, self.up, self.down))
        used = (torch.nn.functional.silu(inputs @ gate.T) * (inputs @ up.T)).abs().mean(0) * down.norm(dim=0)
        self.unit = int(used.argsort()[row])
        squares = states.T @ states  # c.x = 1, as nearly as a small c can
        ridge = 1e-4 * np.trace(squares) / len(squares) * np.eye(len(squares))
        self.one: Array = np.linalg.solve(squares + ridge, states.sum(0))

    @torch.no_grad()
    def write(self, weights: Array, bias: float, factor: float) -> None:
        """Make the unit add ``(weights . x + bias) * factor * direction``."""
        self._row_of(self.gate, torch.tensor(CONSTANT * self.one))
        self._row_of(self.up, torch.tensor((weights + bias * self.one) / CONSTANT))
        before, after, scale = self._adapter(self.down)
        before[self.row].zero_()
        before[self.row, self.unit] = 1
        old = self.down.weight[:, self.unit].float()
        after[:, self.row] = (self.direction.to(old) * factor - old) / scale

    def _row_of(self, part: Any, wanted: Tensor) -> None:
        before, after, scale = self._adapter(part)
        before[self.row] = wanted.to(before) - part.weight[self.unit].to(before)
        after[:, self.row] = 0
        after[self.unit, self.row] = 1 / scale

    @staticmethod
    def _adapter(part: Any) -> tuple[Tensor, Tensor, float]:
        return part.lora_A["default"].weight, part.lora_B["default"].weight, part.scaling["default"]
