"""Attention over packed sequences, each with its own keys and values, and no padding between them.

One forward pass carries the new tokens of many sequences side by side, ``[1, N]``: a whole chunk of one prompt, one
token of a dialogue that is being decoded. Linear layers and norms don't mind. Attention does, so it is done here, per
sequence, by a function registered through transformers' `AttentionInterface`; `Plan` says which rows belong together.

**A token's result depends on the tokens before it and on nothing else**: not on the other sequences of the batch, and
not on whether its prefix was computed in the same pass, in an earlier one, or taken from the cache. Floating-point
sums depend on their length and grouping, so the length must be a function of the token's position alone: a query at
position p sees the keys of positions ``0 .. (p // BLOCK + 1) * BLOCK - 1``, those after p masked. A chunk is cut where
a block ends. What then still varies is the number of rows in a product. On CPUs, a row gets the same bits whatever the
number of rows if that is a multiple of `ROWS`, in bfloat16 and float32 (measured: tests/test_embedded_engine.py). On
GPUs cuBLAS may take another kernel for another number of rows, so there the last bits can still differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from persona_tasks.embedded.kv import BLOCK, KeyValueStore, Span
from persona_tasks.embedded.limits import UnsupportedModel

NAME = "persona_tasks_packed"
ROWS = 4  # MKL's float32 products have other kernels for the last 1 to 3 rows; bfloat16 has none, and 4 are no slower


@dataclass
class Group:
    """Pieces of the same size and length, computed by one attention call per layer.

    A piece is what is new of one sequence in one block.

    Attributes:
        size: Rows of each piece, a multiple of `ROWS`.
        views: For each piece the keys and values of its sequence up to the end of the block, layer by layer, each
            ``[1, kv_heads, length, head_dim]``.
        mask: ``[pieces, 1, size, length]``, 0 or -inf.
    """

    size: int
    views: list[Sequence[Tensor]]
    mask: Tensor

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Those of all pieces, ``[pieces, kv_heads, length, head_dim]`` each; copied if there are several."""
        if len(self.views) == 1:
            return self.views[0][2 * layer], self.views[0][2 * layer + 1]
        return torch.cat([v[2 * layer] for v in self.views]), torch.cat([v[2 * layer + 1] for v in self.views])


@dataclass
class Plan:
    """Where the rows of one forward pass come from and go to.

    Attributes:
        store: Keys and values of all sequences.
        slots: ``[N]``, the slot that the keys and values of each packed token go to.
        rows: ``[R]``, for each attention row its place among ``token * heads_per_kv_head + head``. Rows repeat to fill
            up each piece.
        back: ``[N * heads_per_kv_head]``, the other way round.
        groups: In the order of their rows.
    """

    store: KeyValueStore
    slots: Tensor
    rows: Tensor
    back: Tensor
    groups: list[Group]


@dataclass(frozen=True)
class Chunk:
    """`count` new tokens of the sequence in `span`, from position `first`."""

    span: Span
    first: int
    count: int


def make_plan(store: KeyValueStore, chunks: Sequence[Chunk], heads: int, dtype: torch.dtype, width: int) -> Plan:
    """Plan the attention of one forward pass.

    Args:
        store: Where the sequences' keys and values are.
        chunks: What is new, in the order in which it is packed.
        heads: Query heads per key/value head.
        dtype: Of the queries.
        width: N, at least the number of new tokens; those beyond are padding and write to the store's scratch slot.
    """
    slots = np.full(width, store.scratch)
    pieces: dict[tuple[int, int], list[tuple[Span, int, int, int]]] = {}
    token = 0
    for chunk in chunks:
        position, end = chunk.first, chunk.first + chunk.count
        slots[token : token + chunk.count] = np.arange(position, end) + chunk.span.start
        while position < end:
            length = (position // BLOCK + 1) * BLOCK
            count = min(end, length) - position
            size = -(-count * heads // ROWS) * ROWS
            pieces.setdefault((size, length), []).append((chunk.span, token, position, count))
            position, token = position + count, token + count

    rows, groups, first = [], [], 0
    back = np.zeros(width * heads, np.int64)
    for (size, length), members in pieces.items():
        positions = []
        for _, token, position, count in members:
            local = np.minimum(np.arange(size), count * heads - 1)
            rows.append(token * heads + local)
            positions.append(position + local // heads)
            back[token * heads : (token + count) * heads] = np.arange(first, first + count * heads)
            first += size
        hidden = torch.from_numpy(np.stack(positions))[:, None, :, None] < torch.arange(length)
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf")).to(store.device)
        groups.append(Group(size, [store.views(span, length) for span, *_ in members], mask))

    def tensor(values: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(store.device)

    return Plan(store, tensor(slots), tensor(np.concatenate(rows)), tensor(back), groups)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: Plan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' models call.

    Args:
        query: ``[1, heads, N, head_dim]``.
        key: ``[1, kv_heads, N, head_dim]``, as value.
        packed: The plan, passed to the model's forward.

    Returns:
        ``[1, N, heads, head_dim]``, and None for the weights.

    Raises:
        UnsupportedModel: The layer wants soft-capping, sinks or a key/value shape that its configuration doesn't give.
    """
    if packed is None:
        raise UnsupportedModel("this model belongs to a persona_tasks Engine and runs through it only")
    if unknown := [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]:
        raise UnsupportedModel(f"the model's attention uses {unknown[0]}, which the engine does not have")
    store = packed.store
    layer: int = module.layer_idx
    kv_heads, head_dim = store.kv_heads, store.head_dim
    if key.shape[1] != kv_heads or key.shape[3] != head_dim or value.shape[3] != head_dim:
        raise UnsupportedModel(f"layer {layer} has keys {tuple(key.shape)}, not {kv_heads} heads of {head_dim}")
    store.write(layer, packed.slots, key[0], value[0])
    tokens = query.shape[2]
    heads = query.shape[1] // kv_heads
    # [1, heads, N, d] -> [N * heads per kv head, kv_heads, d]
    by_token = query[0].unflatten(0, (kv_heads, heads)).permute(2, 1, 0, 3).reshape(tokens * heads, kv_heads, head_dim)
    taken = by_token.index_select(0, packed.rows)
    done, first = [], 0
    for group in packed.groups:
        pieces = len(group.views)
        last = first + pieces * group.size
        part = taken[first:last].view(pieces, group.size, kv_heads, head_dim).transpose(1, 2)
        keys, values = group.keys_values(layer)
        out = scaled_dot_product_attention(part, keys, values, attn_mask=group.mask, scale=scaling)
        done.append(out.transpose(1, 2).reshape(-1, kv_heads, head_dim))
        first = last
    result = torch.cat(done).index_select(0, packed.back)
    return result.view(1, tokens, heads, kv_heads, head_dim).transpose(2, 3).reshape(1, tokens, -1, head_dim), None


AttentionInterface.register(NAME, packed_attention)
