"""What the engine must know about a model: the shape of its keys and values, and how long a text it can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

GIB = 1024**3


class UnsupportedModel(ValueError):
    """The model needs something that the engine does not have. Inspect's `hf` provider may run it."""


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder-only model.

    Attributes:
        group: Query heads per key/value head.
        max_length: Tokens, prompt and completion together.
    """

    layers: int
    kv_heads: int
    head_dim: int
    group: int
    max_length: int

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Read a transformers configuration.

        Raises:
            UnsupportedModel: Some layers are not attention, or positions are scaled by the length of the text.
        """
        config = config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if other := kinds - {"full_attention", "sliding_attention"}:
            raise UnsupportedModel(f"{config.model_type} has layers of the kind {sorted(other)[0]}")
        rope = getattr(config, "rope_parameters", None) or {}
        for part in (rope, *(part for part in rope.values() if isinstance(part, dict))):
            if part.get("rope_type") in ("dynamic", "longrope"):
                # a position's rotation then changes as the text grows, and kept keys would be wrong
                raise UnsupportedModel(f"{config.model_type} has {part['rope_type']} positions")
        max_length = int(config.max_position_embeddings)
        window = getattr(config, "sliding_window", None)
        if window and (getattr(config, "layer_types", None) is None or "sliding_attention" in kinds):
            max_length = min(max_length, int(window))  # up to there, sliding attention is full attention
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return cls(int(config.num_hidden_layers), kv_heads, head_dim, heads // kv_heads, max_length)

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Memory of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * int(dtype.itemsize)


def default_kv_bytes(device: torch.device) -> int:
    """Half of what is free on a GPU; on a CPU a quarter of the available memory, which is taken only when used.

    What has no room is computed again when needed. With 2 GiB, a run of 40 dialogues of
    8 turns read 435,000 tokens of prompts anew, by an estimate four times as many as with enough room.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return max(int(psutil.virtual_memory().available) // 4, GIB)
