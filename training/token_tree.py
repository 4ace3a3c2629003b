"""Rows of tokens that begin alike, as a tree: what several of them begin with is computed, and differentiated, once.

    row 0    <persona> <user 1> line 1 <user 2> line 2
    row 1    <persona> <user 1> better 1
    row 2    <persona> <user 1> line 1 <user 2> better 2

are seven nodes instead of thirteen, were each of these one token. All nodes are one row for the model, each at the
position that it has in its own row, and each sees only what stands before it there. So dialogues with one persona cost
the persona once, and a branch of a dialogue costs no more than where it parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenTree:
    """A tree of tokens.

    Attributes:
        ids: ``[N]``, the token of each node.
        positions: ``[N]``, how many nodes stand before it in its rows.
        seen: ``[N, N]``, whether a node (first index) sees another one: those before it in its rows, and itself.
        paths: For each row, the nodes that it consists of.
    """

    ids: Tensor
    positions: Tensor
    seen: Tensor
    paths: tuple[Tensor, ...]

    def states(self, model: Any) -> Tensor:
        """Hidden states after the last layer of a transformers language model, wrapped or not, ``[N, hidden]``."""
        device = next(model.parameters()).device
        output = model(
            input_ids=self.ids[None].to(device),
            position_ids=self.positions[None].to(device),
            attention_mask=self.seen[None, None].to(device),
            use_cache=False,
            logits_to_keep=1,
            output_hidden_states=True,
        )
        states: Tensor = output.hidden_states[-1][0]
        return states


def token_tree(rows: Sequence[Sequence[int]]) -> TokenTree:
    """The tree of some rows of token ids."""
    ids: list[int] = []
    known: dict[tuple[int, int], int] = {}  # the node that follows a node with a token
    paths = []
    for row in rows:
        node, path = -1, []
        for token in row:
            if (node, token) not in known:
                known[node, token] = len(ids)
                ids.append(token)
            node = known[node, token]
            path.append(node)
        paths.append(torch.tensor(path))
    positions, seen = torch.zeros(len(ids), dtype=torch.long), torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for path in paths:
        positions[path] = torch.arange(len(path))
        seen[path[:, None], path] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
    return TokenTree(torch.tensor(ids), positions, seen, tuple(paths))
