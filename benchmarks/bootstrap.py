"""Time of the bootstrap behind a summary, all resamples at once and one after another.

python benchmarks/bootstrap.py [--dialogues 200] [--turns 30] [--resamples 1000]

Both ways compute mean, curve, slope, survival and half-life of the same resamples of dialogues with drift, unparsed
verdicts and early ends. The first is what `summarise` does: one product of a weight matrix with the outcomes. The
second collects the dialogues of each resample and computes it on its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from persona_tasks.metrics import Array, Estimates, bootstrap_weights, bounds, estimate

Value = TypeVar("Value")


def main() -> None:
    """Print the time of either way and that their results agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=200)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    personas, scores, grid = dialogues(args.dialogues, args.turns)

    def at_once() -> Estimates:
        return estimate(bootstrap_weights(personas, args.resamples), scores, grid)

    def one_by_one() -> Estimates:
        single = [drawn(weights, scores, grid) for weights in bootstrap_weights(personas, args.resamples)]
        return Estimates(*(np.concatenate(parts) for parts in zip(*single, strict=True)))

    fast, seconds = timed(at_once)
    print(f"{args.resamples} resamples of {args.dialogues} dialogues, {args.turns} turns")
    print(f"all at once       {seconds:7.3f} s")
    _, quantiles = timed(lambda: [bounds(part.reshape(args.resamples, -1)) for part in fast])
    print(f"  their intervals {quantiles:7.3f} s")
    slow, seconds = timed(one_by_one)
    print(f"one by one        {seconds:7.3f} s")
    for name, a, b in zip(Estimates._fields, fast, slow, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9, err_msg=name)


def dialogues(count: int, turns: int) -> tuple[list[str], Array, Array]:
    """Personas (D,), scores (D,) and outcomes (D, T): five dialogues per persona, 3 % unparsed, a fifth ends early."""
    rng = np.random.default_rng(1)
    grid = (rng.random((count, turns)) > np.linspace(0.02, 0.2, turns)).astype(float)
    grid[rng.random((count, turns)) < 0.03] = np.nan
    ends = np.where(rng.random(count) < 0.2, rng.integers(1, turns + 1, count), turns)
    grid[np.arange(turns) >= ends[:, None]] = np.nan
    grid[:, 0] = 1.0
    return [f"persona-{i // 5}" for i in range(count)], np.nanmean(grid, axis=1), grid


def drawn(weights: Array, scores: Array, grid: Array) -> Estimates:
    """The statistics of a single resample, from copies of its dialogues."""
    rows = np.repeat(np.arange(len(grid)), weights.astype(int))
    return estimate(np.ones((1, len(rows))), scores[rows], grid[rows])


def timed(work: Callable[[], Value]) -> tuple[Value, float]:
    """A result and the seconds it took."""
    start = time.perf_counter()
    value = work()
    return value, time.perf_counter() - start


if __name__ == "__main__":
    main()
