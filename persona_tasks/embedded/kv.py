"""Keys and values of all sequences, and finding the longest prefix that is already computed.

A sequence owns one contiguous run of slots, so attention reads it without gathering. A fork copies its prefix, which
costs about a hundredth of computing it; what is *computed* once is shared by everyone who needs it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 64  # positions; see attention.py. Spans are multiples of it.
WORTH_WAITING = 16  # tokens; for less, a request does not wait until another one has computed their common prefix

Ids = npt.NDArray[np.int32]


@dataclass(eq=False)
class Span:
    """A run of slots.

    Attributes:
        start: First slot.
        size: Number of slots, a multiple of `BLOCK`.
        views: Keys and values up to the last length asked for; they change once per block, not once per token.
    """

    start: int
    size: int
    views: tuple[int, Sequence[Tensor]] = (0, ())


class KeyValueStore:
    """One tensor ``[layers, 2, kv_heads, slots, head_dim]`` and the list of its free runs."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.kv_heads, self.head_dim, self.device = kv_heads, head_dim, device
        self.slots = slots // BLOCK * BLOCK
        self.scratch = self.slots  # where padding tokens write; one more block, never read
        shape = (layers, 2, kv_heads, self.slots + BLOCK, head_dim)
        self._data = _zeros(shape, dtype, device)
        self._layers = [(data[0], data[1]) for data in self._data]
        self._free = [(0, self.slots)]  # (start, size), sorted, never adjacent

    def allocate(self, tokens: int) -> Span | None:
        """A span for `tokens` positions, or None if no free run is long enough."""
        size = -(-tokens // BLOCK) * BLOCK
        for index, (start, available) in enumerate(self._free):
            if available >= size:
                self._free[index : index + 1] = [(start + size, available - size)] if available > size else []
                return Span(start, size)
        return None

    def release(self, span: Span, keep: int = 0) -> None:
        """Give back a span, all but its first `keep` positions."""
        kept = -(-keep // BLOCK) * BLOCK
        start, end = span.start + kept, span.start + span.size
        span.size = kept
        if start == end:
            return
        merged: list[tuple[int, int]] = []
        for other_start, other_size in sorted([*self._free, (start, end - start)]):
            if merged and sum(merged[-1]) == other_start:
                merged[-1] = (merged[-1][0], merged[-1][1] + other_size)
            else:
                merged.append((other_start, other_size))
        self._free = merged

    def copy(self, source: Span, target: Span, tokens: int) -> None:
        """Copy the first `tokens` positions, in all layers."""
        data = self._data
        data[..., target.start : target.start + tokens, :] = data[..., source.start : source.start + tokens, :]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store keys and values ``[kv_heads, N, head_dim]`` of one layer in `slots`, ``[N]``."""
        keys, values = self._layers[layer]
        keys.index_copy_(1, slots, key)
        values.index_copy_(1, slots, value)

    def views(self, span: Span, length: int) -> Sequence[Tensor]:
        """Keys and values of layer 0, layer 1, ... in turn, each ``[1, kv_heads, length, head_dim]``."""
        if span.views[0] != length:
            data = self._data[..., span.start : span.start + length, :]
            span.views = (length, data.flatten(0, 1).unsqueeze(1).unbind(0))
        return span.views[1]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. Masked slots are multiplied by 0, which garbage (NaN) would survive."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros touches every page; NumPy's are mapped when first written, so unused budget costs no memory
    return torch.from_numpy(np.zeros(int(np.prod(shape)) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


@dataclass(eq=False)
class TokenSequence:
    """Token ids, and how far their keys and values are computed.

    Attributes:
        ids: Room for all tokens the sequence may get.
        length: Tokens known.
        computed: Tokens whose keys and values are in `span`; never more than length.
    """

    ids: Ids
    length: int
    span: Span
    computed: int = 0


@dataclass
class Match:
    """What the cache has for a prompt: `now` tokens from `source`, and `soon` if we wait for `leader`."""

    source: TokenSequence | None = None
    now: int = 0
    leader: TokenSequence | None = None
    soon: int = 0


@dataclass
class PrefixCache:
    """Sequences in use and, least recently used first, finished ones kept for their prefixes."""

    store: KeyValueStore
    active: list[TokenSequence] = field(default_factory=list)
    idle: OrderedDict[int, TokenSequence] = field(default_factory=OrderedDict)

    def match(self, prompt: Ids, reuse: bool = True) -> Match:
        """Find the longest computed prefix of `prompt`, short of its last token (whose logits are needed)."""
        found = Match()
        if not reuse:
            return found
        for sequence in (*self.idle.values(), *self.active):
            common = min(common_prefix(prompt, sequence.ids[: sequence.length]), len(prompt) - 1)
            if min(common, sequence.computed) > found.now:
                found.source, found.now = sequence, min(common, sequence.computed)
            if common > max(found.soon, sequence.computed):
                found.leader, found.soon = sequence, common
        if found.soon - found.now < WORTH_WAITING:
            found.leader = None
        return found

    def open(self, prompt: Ids, capacity: int, match: Match) -> TokenSequence | None:
        """Start a sequence with what `match` has, evicting finished ones as needed; None if there is no room yet."""
        while (span := self.store.allocate(capacity)) is None:
            if not self.idle:
                return None
            oldest = next((s for s in self.idle.values() if s is not match.source), match.source)
            assert oldest is not None
            self._forget(oldest)
            if oldest is match.source:
                match = Match()
        ids = np.zeros(capacity, np.int32)
        ids[: len(prompt)] = prompt
        sequence = TokenSequence(ids, len(prompt), span, match.now)
        if match.source is not None:
            self.store.copy(match.source.span, span, match.now)
            if id(match.source) in self.idle:
                self.idle.move_to_end(id(match.source))
                if match.source.computed == match.now:
                    self._forget(match.source)  # the new sequence has all of it
        self.active.append(sequence)
        return sequence

    def close(self, sequence: TokenSequence, reuse: bool = True) -> None:
        """Keep a sequence for its prefix; the room it did not use is free again."""
        self.active.remove(sequence)
        sequence.length = sequence.computed if reuse else 0
        self.store.release(sequence.span, keep=sequence.length)
        if sequence.length:
            self.idle[id(sequence)] = sequence

    def clear(self) -> None:
        """Forget all finished sequences."""
        for sequence in list(self.idle.values()):
            self._forget(sequence)

    def _forget(self, sequence: TokenSequence) -> None:
        del self.idle[id(sequence)]
        self.store.release(sequence.span)


def common_prefix(a: Ids, b: Ids) -> int:
    """Number of leading elements that are equal."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n
