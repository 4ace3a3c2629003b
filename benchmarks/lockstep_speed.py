"""Dialogues in lm-eval: all in lockstep (what `persona_drift` does), and one after another.

python benchmarks/lockstep_speed.py [--dialogues 16] [--turns 6] [--model FOLDER] [--dtype float32] [--batch-size 16]

Both ways hold the same dialogues with the same `hf` model of lm-eval, greedily and without a judge. The first hands
all of them to our request type at once, so that a turn of all is one call of `generate_until`; the second hands them
over singly. Prints wall time, calls and lines per second of either way, and whether they said the same.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from lm_eval.models.huggingface import HFLM

from persona_tasks.embedded.weights import embedded_folder
from persona_tasks.lm_eval_tasks.rollout import REQUEST_TYPE, DialogueRequest
from persona_tasks.lm_eval_tasks.settings import Settings
from persona_tasks.personas import load_bank
from persona_tasks.protocol.limits import LINE_TOKENS
from persona_tasks.transcript import Transcript


def main() -> None:
    """Hold the dialogues both ways and print the times side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=16)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--model", help="folder of a model; default: the embedded one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    logging.disable(logging.WARNING)

    folder = args.model or str(embedded_folder())
    lm = HFLM(pretrained=folder, dtype=args.dtype, device="cpu", batch_size=args.batch_size)
    requests = dialogue_requests(args.dialogues, args.turns)
    hold: Callable[[Sequence[DialogueRequest]], list[str]] = getattr(lm, REQUEST_TYPE)
    hold(dialogue_requests(1, 1))  # warm up

    print(
        f"{args.dialogues} dialogues of {args.turns} turns, {Path(folder).name}, {args.dtype}, {os.cpu_count()} cores"
    )
    together, fast = timed("lockstep", lm, lambda: hold(requests), args)
    singly, slow = timed("one by one", lm, lambda: [hold([request])[0] for request in requests], args)
    print(f"speed-up      {slow / fast:8.2f}x")
    pairs = zip(map(lines, together), map(lines, singly), strict=True)
    print(f"same lines    {sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True))} of ", end="")
    print(f"{args.dialogues * args.turns} (padding to one length moves the last bits of a product, and so a near tie)")


def dialogue_requests(dialogues: int, turns: int) -> list[DialogueRequest]:
    """Requests as the tasks make them, over all scenarios."""
    settings = Settings(turns=turns, probes="none").in_rollout() | {"form": "auto", "system_instruction": ""}
    options = {"do_sample": False, "temperature": 0.0, "max_gen_toks": LINE_TOKENS, "until": []}
    return [
        DialogueRequest(REQUEST_TYPE, {"persona_id": persona.id}, ("", options, settings), 0, metadata=("bench", n, 1))
        for n, persona in enumerate(load_bank().select()[:dialogues])
    ]


def timed(name: str, lm: Any, work: Callable[[], list[str]], args: argparse.Namespace) -> tuple[list[str], float]:
    """Run and print one row."""
    calls: list[int] = []
    generate = lm.generate_until

    def counted(requests: Any, **options: Any) -> Any:
        calls.append(len(requests))
        return generate(requests, disable_tqdm=True, **options)

    lm.generate_until = counted
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    lm.generate_until = generate
    rate = args.dialogues * args.turns / seconds
    print(f"{name:12s}{seconds:8.1f} s {len(calls):5d} calls of generate_until {rate:7.2f} lines/s", flush=True)
    return found, seconds


def lines(transcript: str) -> list[str]:
    """The simulator's lines of a transcript."""
    return Transcript.model_validate_json(transcript).lines


if __name__ == "__main__":
    main()
