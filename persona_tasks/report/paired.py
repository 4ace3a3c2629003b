"""Is one model really more consistent than another? A paired permutation test over the personas that both played."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import permutation_test

from persona_tasks.metrics import Difference, paired_difference, scores_by_persona
from persona_tasks.transcript import Judged, Metric

PERMUTATIONS = 9999


class PairedTest(NamedTuple):
    """The difference with its interval, and the two-sided p; None with a single persona, which can show nothing."""

    difference: Difference
    p: float | None


def paired_test(before: Sequence[Judged], after: Sequence[Judged], metric: Metric, seed: int = 0) -> PairedTest | None:
    """Compare two sets of dialogues on the personas they share.

    Under the hypothesis that both are alike, each persona's two mean scores may be swapped. The statistic is the mean
    over personas of their differences; with up to 13 personas every swap is tried (the p is exact), with more 9,999 are
    drawn (scipy.stats.permutation_test, Phipson & Smyth 2010 for the p). It is not corrected for multiple comparisons.

    Returns:
        None where no persona has a score on both sides.
    """
    first, second = scores_by_persona(before, metric), scores_by_persona(after, metric)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    difference = paired_difference(before, after, metric, seed=seed)
    if len(shared) == 1:
        return PairedTest(difference, None)
    differences = np.array([np.mean(second[persona]) - np.mean(first[persona]) for persona in shared])
    found = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return PairedTest(difference, float(found.pvalue))
