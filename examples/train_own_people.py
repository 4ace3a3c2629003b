"""Train a simulator on people of your own, and see what that does for people it has never played.

The bank is a folder of YAML (docs/own-personas.md) with people of the splits `train` and `test`. GRPO trains on the
first, the comparison plays the second, with the base and with what was trained. Two judges: the one that rewards must
not be the one that reports. Interrupted? The same command goes on where it was.

    python examples/train_own_people.py my-bank --reward openai:gpt-5-mini --report openai:gpt-4.1 --out runs/mine
    python examples/train_own_people.py my-bank --reward openai:A@http://localhost:8000/v1 \
        --report openai:B@http://localhost:8001/v1 --base Qwen/Qwen3-0.6B --recipe training/recipes/grpo_gpu.yaml
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> None:
    """Train, compare, and say where to look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path, help="folder of your personas")
    parser.add_argument("--reward", required=True, help="judge that rewards, as in `--metadata judge=` of lm-eval")
    parser.add_argument("--report", required=True, help="judge that reports; best one of another family")
    parser.add_argument("--base", default="smollm2-135m", help="embedded model, folder or Hub id")
    parser.add_argument("--recipe", type=Path, default=ROOT / "training" / "recipes" / "grpo_cpu.yaml")
    parser.add_argument("--turns", type=int, default=8, help="of the dialogues that are compared")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings over those of the recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    chosen = parser.parse_args(arguments)

    trained, compared = chosen.out / "grpo", chosen.out / "compared"
    if not (trained / "adapter").is_dir():
        own = [f"base={chosen.base}", "start=null", f"personas={chosen.bank}", f"judge={chosen.reward}"]
        resume = ["--resume"] if (trained / "log.jsonl").is_file() else []
        run("training.grpo", chosen.recipe, trained, [*own, *chosen.set], resume)
    cells = [
        {"name": "base", "method": "base", "model": chosen.base},
        {"name": "trained", "method": "GRPO turn", "model": str(trained / "adapter"), "seed": 0},
    ]
    comparison = {
        "judge": chosen.report,
        "personas": str(chosen.bank),
        "conditions": {"main": {"turns": chosen.turns}},
        "cells": cells,
        "side_by_side": "trained",
    }
    recipe = chosen.out / "compare.yaml"
    recipe.write_text(yaml.safe_dump(comparison, sort_keys=False), encoding="utf-8")
    run("training.compare", recipe, compared)
    print(f"scores: {compared / 'results.md'}\nthe same people before and after: {compared / 'side_by_side.md'}")


def run(module: str, recipe: Path, out: Path, changes: list[str] | None = None, more: list[str] | None = None) -> None:
    """One command of the training module; its own messages say what is wrong, if anything is."""
    command = [sys.executable, "-m", module, "--config", str(recipe), "--out", str(out), *(more or [])]
    done = subprocess.run([*command, "--set", *changes] if changes else command)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
