"""Attention over packed sequences, each with its own keys and values, and no padding between them.

One forward pass carries the new tokens of many sequences side by side, ``[1, N]``: a whole chunk of one prompt, one
token of a dialogue that is being decoded. Linear layers and norms don't mind. Attention does, so it is done here, per
sequence, by a function registered through transformers' `AttentionInterface`; `Plan` says which rows belong together.

**A token's result depends on the tokens before it and on nothing else**: not on the other sequences of the batch, and
not on whether its prefix was computed in the same pass, in an earlier one, or taken from the cache. Floating-point
sums depend on their length and grouping, so the length must be a function of the token's position alone: a query at
position p sees the keys of positions ``0 .. (p // BLOCK + 1) * BLOCK - 1``, those after p masked. A chunk is cut where
a block ends. What then still varies is the number of rows in a product. On CPUs, a row gets the same bits whatever the
number of rows if that is a multiple of `ROWS`, in bfloat16 and float32 (measured: tests/test_embedded_engine.py). On GPUs
cuBLAS may take another kernel for another number of rows, so there the last bits can still differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from persona_tasks.embedded.kv import BLOCK, KeyValueStore, Span
from persona_tasks.embedded.limits import UnsupportedModel

NAME = "persona_tasks_packed"
ROWS = 4  # MKL's float32 products have other kernels for the last 1 to 3 rows; bfloat16 has none, and 4 are no slower


@dataclass
class Piece:
    """Consecutive new tokens of one sequence that lie in one block: one attention call per layer.

    Attributes:
        views: Keys and values of the sequence up to the end of the block, for each layer in turn,
            each ``[1, kv_heads, length, head_dim]``.
        mask: ``[1, 1, rows, length]``, 0 or -inf.
    """

    views: Sequence[Tensor]
    mask: Tensor


@dataclass
class Plan:
    """Where the rows of one forward pass come from and go to.

    Attributes:
        store: Keys and values of all sequences.
        slots: ``[N]``, the slot that the keys and values of each packed token go to.
        rows: ``[R]``, for each attention row its place among ``token * group + head_in_group``. Rows repeat to fill up
            each piece to a multiple of `ROWS`.
        sizes: Rows of each piece; they sum to R.
        back: ``[N * group]``, the attention row of each ``token * group + head_in_group``.
    """

    store: KeyValueStore
    slots: Tensor
    rows: Tensor
    sizes: list[int]
    back: Tensor
    pieces: list[Piece]


@dataclass(frozen=True)
class Chunk:
    """`count` new tokens of the sequence in `span`, from position `first`."""

    span: Span
    first: int
    count: int


def make_plan(store: KeyValueStore, chunks: Sequence[Chunk], group: int, dtype: torch.dtype, width: int) -> Plan:
    """Plan the attention of one forward pass.

    Args:
        store: Where the sequences' keys and values are.
        chunks: What is new, in the order in which it is packed.
        group: Query heads per key/value head.
        dtype: Of the queries.
        width: N, at least the number of new tokens; those beyond are padding and write to the store's scratch slot.
    """
    slots: list[int] = []
    rows: list[int] = []
    sizes: list[int] = []
    row_positions: list[int] = []
    back: list[int] = []
    lengths: list[int] = []
    spans: list[Span] = []
    for chunk in chunks:
        position, end = chunk.first, chunk.first + chunk.count
        while position < end:
            length = (position // BLOCK + 1) * BLOCK
            count = min(end, length) - position
            token = len(slots)
            slots += range(chunk.span.start + position, chunk.span.start + position + count)
            back += range(len(rows), len(rows) + count * group)
            real = count * group
            size = -(-real // ROWS) * ROWS
            rows += range(token * group, token * group + real)
            rows += [token * group + real - 1] * (size - real)
            row_positions += [position + row // group for row in range(real)]
            row_positions += [position + count - 1] * (size - real)
            sizes.append(size)
            lengths.append(length)
            spans.append(chunk.span)
            position += count
    padding = width - len(slots)
    slots += [store.scratch] * padding
    back += [0] * (padding * group)

    device = store.device
    positions = torch.tensor(row_positions, device=device)
    hidden = torch.arange(max(lengths), device=device) > positions[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    pieces, first = [], 0
    for span, size, length in zip(spans, sizes, lengths, strict=True):
        pieces.append(Piece(store.views(span, length), mask[None, None, first : first + size, :length]))
        first += size
    return Plan(
        store=store,
        slots=torch.tensor(slots, device=device),
        rows=torch.tensor(rows, device=device),
        sizes=sizes,
        back=torch.tensor(back, device=device),
        pieces=pieces,
    )


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
    group = query.shape[1] // kv_heads
    # [1, heads, N, d] -> [N * group, kv_heads, d]; models keep queries token-major, so this is one copy at most
    by_token = query[0].unflatten(0, (kv_heads, group)).permute(2, 1, 0, 3).reshape(tokens * group, kv_heads, head_dim)
    taken = by_token.index_select(0, packed.rows).transpose(0, 1).unsqueeze(0)
    done = []
    for part, piece in zip(taken.split(packed.sizes, dim=2), packed.pieces, strict=True):
        keys, values = piece.views[2 * layer], piece.views[2 * layer + 1]
        out = scaled_dot_product_attention(part, keys, values, attn_mask=piece.mask, scale=scaling)
        done.append(out.transpose(1, 2))
    result = torch.cat(done, dim=1)[0].index_select(0, packed.back)
    return result.view(1, tokens, group, kv_heads, head_dim).transpose(2, 3).reshape(1, tokens, -1, head_dim), None


AttentionInterface.register(NAME, packed_attention)
