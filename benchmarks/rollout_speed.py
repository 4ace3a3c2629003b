"""Rollouts in training: in lockstep against one by one, and where the seconds of a GRPO step go.

python benchmarks/rollout_speed.py [--dialogues 32] [--group 8] [--turns 6] [--model FOLDER] [--judge persona/...]
python benchmarks/rollout_speed.py --quick        # a tiny random model, to see that this script works

Both ways hold the same dialogues with the same engine, seeds and weights (an adapter on top), and must say the same.
Then one real step of `training.grpo` is made. Tokens of the update are counted for our rows (a dialogue is one row)
and for the flattened form (one row per line, each with its history again).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from peft import get_peft_model

from training.grpo import Recipe, train
from training.online import prepare
from training.recipe import lora
from training.rollout import Spoken
from training.voices import EngineVoice


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--line-tokens", type=int, default=96)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--judge", default="persona/smollm2-135m")
    parser.add_argument("--first-layer", type=int, default=10, help="layers below need no gradients")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.quick:
            from tests.training_world import tiny_world

            args.model = args.judge = str(tiny_world(Path(scratch)))
            args.dialogues, args.group, args.turns, args.line_tokens, args.first_layer = 8, 4, 2, 12, 0
        recipe = Recipe(
            base=args.model,
            personas=str(Path(scratch) / "bank") if args.quick else None,
            judge=args.judge,
            dialogues=args.dialogues,
            group=args.group,
            turns=args.turns,
            line_tokens=args.line_tokens,
            first_layer=args.first_layer,
            steps=1,
            sample_every=1_000,
        )
        print(f"{args.dialogues} dialogues of {args.turns} turns, {Path(args.model).name}, {os.cpu_count()} cores")
        compare_rollouts(recipe)
        share_of_a_step(recipe, Path(scratch) / "run")


def compare_rollouts(recipe: Recipe) -> None:
    """Hold the dialogues both ways."""
    with contextlib.redirect_stderr(io.StringIO()):
        ready = prepare(recipe)
    model = get_peft_model(ready.model, lora(recipe.rank, recipe.first_layer, ready.model.config.num_hidden_layers))
    voice = EngineVoice(model, ready.tokenizer, recipe.temperature, recipe.frequency_penalty)
    chosen = ready.personas[: recipe.dialogues // recipe.group]
    names = [persona.id for persona in chosen for _ in range(recipe.group)]

    def together() -> list[Spoken]:
        with voice:
            return ready.rollout.hold(names, 1, voice)

    def singly() -> list[Spoken]:
        spoken = []
        for number, name in enumerate(names):
            with voice:
                spoken += ready.rollout.hold([name], 1, voice, first=number)
        return spoken

    first, fast = timed("lockstep", voice, together)
    second, slow = timed("one by one", voice, singly)
    print(f"speed-up       {slow / fast:8.2f}x")
    print(f"same tokens    {sum(a.ids == b.ids for a, b in zip(first, second, strict=True))} of {len(first)} dialogues")
    whole = sum(len(one.context) for one in first)
    flat = sum(map(flattened, first))
    print(f"update         {whole} tokens forwarded, {flat} in the flattened form ({flat / whole:.2f} times as many)")


def timed(name: str, voice: EngineVoice, work: Callable[[], list[Spoken]]) -> tuple[list[Spoken], float]:
    """Run and print one row."""
    before = voice.engine.stats.computed_tokens + voice.engine.stats.generated_tokens
    begun = time.perf_counter()
    spoken = work()
    seconds = time.perf_counter() - begun
    said = sum(turn >= 0 for one in spoken for turn in one.turns)
    computed = voice.engine.stats.computed_tokens + voice.engine.stats.generated_tokens - before
    print(f"{name:12s}{seconds:10.1f} s {said / seconds:8.1f} tokens/s {computed:8d} tokens computed", flush=True)
    return spoken, seconds


def flattened(one: Spoken) -> int:
    """Tokens of one row per line: each line with all that came before it."""
    ends = {turn: place + 1 for place, turn in enumerate(one.turns) if turn >= 0}
    return sum(len(one.prompt) + end for end in ends.values())


def share_of_a_step(recipe: Recipe, out: Path) -> None:
    """Make one step and print where its seconds went."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(recipe, out)
    [step] = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    parts = ("generation", "judging", "update")
    total = sum(step[f"seconds/{part}"] for part in parts)
    for part in parts:
        seconds = step[f"seconds/{part}"]
        print(f"{part:12s}{seconds:10.1f} s {seconds / total:8.0%} of the step")
    print(f"judge calls    {step['judge/calls']:.0f} with equal ones asked once, {step['judge/asks']:.0f} without")
    print(f"peak memory    {step['memory/peak_gib']:.2f} GiB")


if __name__ == "__main__":
    main()
