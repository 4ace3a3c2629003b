"""A random Llama of 60 thousand weights with a byte-level tokenizer, written to a folder in a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Template = Literal["chatml", "no_system", "ignores_system", "none"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES: dict[str, str | None] = {
    "chatml": CHATML,
    "no_system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML,
    "ignores_system": CHATML.replace("messages %}", "messages if m['role'] != 'system' %}"),
    "none": None,
}
CORPUS = [
    "You are Mina, a nurse from Leeds who never learned to drive and whose sister visits on Sundays.",
    "What do you do on Sundays, and why? I stay at home and wait for my sister.",
]


def tiny_model_folder(tmp_path: Path, template: Template = "chatml", seed: int = 0, **config: Any) -> Path:
    """Write model and tokenizer to a new folder below `tmp_path`.

    Args:
        template: "chatml" knows the system role, "no_system" raises at it, "ignores_system" drops it, "none" is a
            base model without a template.
        config: Fields of `LlamaConfig` that shall differ.
    """
    folder = tmp_path / f"tiny-{template}-{seed}-{len(list(tmp_path.iterdir()))}"
    tokenizer = tiny_tokenizer(TEMPLATES[template])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    fields = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,  # wide, so that the likeliest token is clearly ahead
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.eos_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**{**fields, **config})).save_pretrained(folder)
    return folder


def tiny_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, so that any text can be said in several ways."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template)
