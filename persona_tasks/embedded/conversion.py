"""From GGUF, as an installed package carries it, to what transformers loads fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from rich.console import Console
from tokenizers import pre_tokenizers
from transformers.utils import logging


def convert(gguf: Path, target: Path, title: str) -> None:
    """Write a GGUF file as bfloat16 safetensors, with its configuration and tokenizer.

    Args:
        target: A folder that does not exist yet.
        title: Name of the model, for the message.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"persona-tasks: converting {title} from {gguf.name}, once (about 20 s)")
    with console.status("reading the tokenizer") as status, quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # GGUF names this rule ("smollm") without spelling it out, and transformers doesn't know it: digits stand alone
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(target)
        status.update("reading the weights")
        # newer transformers keep the weights quantized, which cannot be saved
        dense = getattr(transformers, "GgufConfig", None)
        options = {"quantization_config": dense(dequantize=True)} if dense else {}
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options
        )
        status.update("writing safetensors")
        model.save_pretrained(target)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
