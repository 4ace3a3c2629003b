"""Scores, curves, survival and intervals, against values computed by hand and against plain loops."""

import io
import json
import math
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest
from inspect_ai.scorer import SampleScore, Score, stderr

from persona_tasks.metrics import (
    Array,
    bootstrap_weights,
    bounds,
    clustered_stderr,
    dialogue_score,
    drift_slope,
    estimate,
    floor_score,
    interval,
    kaplan_meier,
    outcome_grid,
    paired_difference,
)
from persona_tasks.reference_paper import pair_averaged_line_to_line
from persona_tasks.scoring import Summary, aggregate, summarise
from persona_tasks.tables import show, summary_tables
from persona_tasks.transcript import Judged, Metric, Outcome, Probe, Transcript, Turn, Verdict

SIGNS: dict[str, Outcome] = {"c": "consistent", "x": "contradicts", "?": "unparsed"}


def judged(
    signs: str, persona: str = "p", metric: Metric = "prompt_to_line", scenario: str = "chat", name: str = "d"
) -> Judged:
    """A dialogue with one verdict per turn: c consistent, x contradicts, ? unparsed, . none."""
    return Judged(
        transcript=Transcript(
            id=name,
            persona_id=persona,
            persona_text="You are Ada.",
            scenario=scenario,
            turns=[Turn(partner="And?", line=f"I say {n}.") for n in range(len(signs))],
        ),
        verdicts=[
            Verdict(metric=metric, turn=turn, outcome=SIGNS[sign])
            for turn, sign in enumerate(signs, start=1)
            if sign != "."
        ],
    )


def grid_of(*rows: str) -> Array:
    return outcome_grid([judged(row) for row in rows], "prompt_to_line", max(map(len, rows)))


def survival_of(*rows: str) -> list[float]:
    return list(kaplan_meier(np.ones((1, len(rows))), grid_of(*rows))[0])


def random_rows(count: int, turns: int, seed: int, unparsed: float = 0.1) -> list[str]:
    rng = random.Random(seed)
    weights = [0.7, 0.3 - unparsed, unparsed]
    return ["".join(rng.choices("cx?", weights, k=rng.randint(turns // 2, turns))) for _ in range(count)]


# ---------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("signs", "score"),
    [("ccxc", 3 / 4), ("c?xc", 2 / 3), ("cx??", 1 / 2), ("c???", None), ("????", None), ("", None), ("xxxx", 0)],
)
def test_dialogue_score(signs: str, score: float | None) -> None:
    assert dialogue_score(judged(signs).verdicts) == (None if score is None else pytest.approx(score))


def test_worked_example_of_the_docs() -> None:
    assert dialogue_score(judged("cccx").verdicts) == pytest.approx(0.75)
    record = judged(".cxx", metric="line_to_line")
    record.verdicts[1].conflicts, record.verdicts[2].conflicts = [2], [1]
    assert dialogue_score(record.verdicts) == pytest.approx(1 / 3)
    assert pair_averaged_line_to_line(record) == pytest.approx(2 / 3)
    assert dialogue_score(judged(".c?x", metric="line_to_line").verdicts) == pytest.approx(1 / 2)


@pytest.mark.parametrize("seed", range(20))
def test_unparsed_never_changes_a_score(seed: int) -> None:
    signs = random_rows(1, 12, seed, unparsed=0.2)[0]
    if 2 * signs.count("?") <= len(signs):
        assert dialogue_score(judged(signs).verdicts) == dialogue_score(judged(signs.replace("?", "")).verdicts)
    else:
        assert dialogue_score(judged(signs).verdicts) is None


@pytest.mark.parametrize("seed", range(5))
def test_order_of_verdicts_does_not_matter(seed: int) -> None:
    verdicts = judged(random_rows(1, 12, seed)[0]).verdicts
    before = dialogue_score(verdicts)
    random.Random(seed).shuffle(verdicts)
    assert dialogue_score(verdicts) == before


def test_line_to_line_has_no_first_turn() -> None:
    record = judged("xccx", metric="line_to_line")
    assert dialogue_score(record.verdicts) == pytest.approx(2 / 3)  # T - 1 = 3
    assert np.isnan(outcome_grid([record], "line_to_line", 4)[0, 0])


def with_questions(answers: Sequence[tuple[int, Outcome, bool]]) -> Judged:
    """Four turns, and probes given as (after turn, outcome, asked with the persona)."""
    record = judged("....")
    for turn, outcome, persona in answers:
        metric: Metric = "qa" if persona else "qa_without_persona"
        number = len(record.transcript.probes)
        record.transcript.probes.append(Probe(turn=turn, question=0, mode="open", answer="yes", persona=persona))
        record.verdicts.append(Verdict(metric=metric, turn=turn, probe=number, outcome=outcome))
    return record


QUESTIONS = [
    (0, "consistent", False),
    (0, "contradicts", False),
    (0, "unparsed", False),
    (1, "consistent", True),
    (1, "consistent", True),
    (4, "consistent", True),
    (4, "contradicts", True),
    (4, "unparsed", True),
]


def test_qa_is_a_share_over_probes_and_a_mean_per_depth() -> None:
    record = with_questions(QUESTIONS)
    assert dialogue_score(record.of("qa")) == pytest.approx(3 / 4)
    np.testing.assert_equal(outcome_grid([record], "qa", 4), [[1, np.nan, np.nan, 0.5]])


def test_floor_counts_no_answer_as_wrong() -> None:
    record = with_questions(QUESTIONS)
    assert floor_score(record.of("qa_without_persona")) == pytest.approx(1 / 3)
    assert floor_score([]) is None
    assert summarise([record]).overall.qa_without_persona == pytest.approx(1 / 3)


def test_grid_leaves_out_what_lies_beyond_it() -> None:
    np.testing.assert_equal(
        outcome_grid([judged("cx?c"), judged("x")], "prompt_to_line", 3), [[1, 0, np.nan], [0, np.nan, np.nan]]
    )


# ------------------------------------------------------------------------------------------------ slope, survival


def test_slope_is_least_squares_over_readable_verdicts() -> None:
    rows = random_rows(6, 10, seed=3)
    points = [(turn, sign == "c") for row in rows for turn, sign in enumerate(row, start=1) if sign != "?"]
    turns, outcomes = zip(*points, strict=True)
    assert drift_slope(grid_of(*rows)) == pytest.approx(np.polyfit(turns, np.array(outcomes, float), 1)[0])


def test_slope_of_one_turn_is_unknown() -> None:
    assert drift_slope(grid_of("c?", "x?")) is None


def test_survival_without_censoring_is_the_plain_share() -> None:
    assert survival_of("cccc", "ccxc", "xccx", "cxxx") == pytest.approx([3 / 4, 2 / 4, 1 / 4, 1 / 4])


def test_survival_censors_unparsed_verdicts_and_early_ends() -> None:
    # turn 2: at risk are all but the third (unreadable there), one of three contradicts; turn 3: only the first is left
    assert survival_of("ccx", "cxc", "c?x", "cc") == pytest.approx([1, 2 / 3, 0])


def test_survival_is_unknown_once_nobody_is_at_risk() -> None:
    survival = survival_of("xcc", "c")
    assert survival[0] == pytest.approx(1 / 2)
    assert all(map(math.isnan, survival[1:]))


def test_turns_nobody_was_asked_about_leave_survival_as_it_is() -> None:
    assert survival_of(".c.x", ".x.c") == pytest.approx([1, 1 / 2, 1 / 2, 0])


def test_one_wrong_answer_ends_survival_of_qa() -> None:
    record = with_questions(QUESTIONS)
    assert [p.value for p in aggregate([record], "qa").survival] == [1, 1, 1, 0]


def test_half_life() -> None:
    six = ["c" * t + "x" * (8 - t) for t in range(1, 7)]  # they contradict on turns 2, 3, ..., 7
    assert aggregate([judged(row) for row in six], "prompt_to_line").half_life == 4  # S = 5/6 · 4/5 · 3/4 = 1/2
    assert aggregate([judged("cccc"), judged("cccc"), judged("cccx")], "prompt_to_line").half_life is None


def test_half_life_interval_is_open_where_many_resamples_never_get_there() -> None:
    records = [judged("cxxx" if n % 2 else "cccc", persona=f"p{n}") for n in range(10)]
    summary = aggregate(records, "prompt_to_line")
    assert summary.half_life == 2
    assert summary.half_life_ci == (2, None)


# ------------------------------------------------------------------------------------------------------- bootstrap


def naive(rows: Sequence[Sequence[float]], scores: Sequence[float]) -> dict[str, list[float]]:
    """All statistics of a list of dialogues, in plain loops. NaN stands for what is missing."""
    turns = range(len(rows[0]))
    readable = [[row[t] for row in rows if not math.isnan(row[t])] for t in turns]
    points = [(t + 1, value) for t in turns for value in readable[t]]
    x_mean = sum(x for x, _ in points) / len(points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    survival, alive, nobody_left = [], 1.0, False
    at_risk = list(rows)
    for t in turns:
        if ASKED[t]:
            at_risk = [row for row in at_risk if not math.isnan(row[t])]
            nobody_left |= not at_risk and alive > 0
            if at_risk:
                alive *= sum(row[t] == 1 for row in at_risk) / len(at_risk)
            at_risk = [row for row in at_risk if row[t] == 1]
        survival.append(math.nan if nobody_left else alive)
    known = [score for score in scores if not math.isnan(score)]
    return {
        "mean": [sum(known) / len(known) if known else math.nan],
        "curve": [sum(values) / len(values) if values else math.nan for values in readable],
        "slope": [sum((x - x_mean) * y for x, y in points) / spread if spread else math.nan],
        "survival": survival,
        "half_life": [next((t + 1 for t in turns if survival[t] <= 0.5 + 1e-9), math.inf)],
    }


ASKED = [True, True, False, True, True, True]
ROWS = ["cc.c?x", "cx.xcc", "cc.ccc", "x?.c", "cc.cc", "??.?cc", "cc.ccx", "cc.x"]
PERSONAS = ["a", "a", "b", "b", "c", "c", "c", "d"]


def test_bootstrap_equals_a_plain_loop() -> None:
    grid = grid_of(*ROWS)
    scores = np.array([dialogue_score(judged(row).verdicts) for row in ROWS], dtype=float)
    assert np.isnan(scores).any(), "a withheld score is part of the test"
    weights = bootstrap_weights(PERSONAS, resamples=200, seed=5)
    found = estimate(weights, scores, grid)._asdict()
    for r, weight in enumerate(weights):
        drawn = [d for d, times in enumerate(weight) for _ in range(int(times))]
        for name, value in naive(grid[drawn].tolist(), scores[drawn].tolist()).items():
            np.testing.assert_allclose(
                np.atleast_1d(found[name][r]), value, atol=1e-12, err_msg=f"{name}, resample {r}"
            )


def test_bootstrap_draws_personas_with_all_their_dialogues() -> None:
    weights = bootstrap_weights(PERSONAS, resamples=300, seed=0)
    assert weights.shape == (300, 8)
    for persona in "abcd":
        mine = weights[:, [p == persona for p in PERSONAS]]
        assert (mine == mine[:, :1]).all()
    assert (weights[:, [0, 2, 4, 7]].sum(axis=1) == 4).all()  # one dialogue of each: four draws
    assert abs(weights.mean() - 1) < 0.1


def test_bootstrap_is_seeded() -> None:
    np.testing.assert_array_equal(bootstrap_weights(PERSONAS, 9, seed=1), bootstrap_weights(PERSONAS, 9, seed=1))
    assert (bootstrap_weights(PERSONAS, 9, seed=1) != bootstrap_weights(PERSONAS, 9, seed=2)).any()


def test_interval_of_the_mean_is_the_percentile_of_naive_means() -> None:
    records = [judged(row, persona) for row, persona in zip(ROWS, PERSONAS, strict=True)]
    found = [(dialogue_score(r.verdicts), p) for r, p in zip(records, PERSONAS, strict=True)]
    means = []
    for weight in bootstrap_weights(PERSONAS, resamples=400, seed=7):
        drawn = [s for (s, _), times in zip(found, weight, strict=True) for _ in range(int(times)) if s is not None]
        if drawn:
            means.append(sum(drawn) / len(drawn))
    means.sort()
    low, high = means[math.ceil(0.025 * len(means)) - 1], means[math.ceil(0.975 * len(means)) - 1]
    assert aggregate(records, "prompt_to_line", resamples=400, seed=7).ci == (pytest.approx(low), pytest.approx(high))


def test_repeating_every_dialogue_does_not_narrow_the_interval() -> None:
    records = [judged(row, f"p{n}") for n, row in enumerate(random_rows(10, 8, seed=1))]
    once, five_times = aggregate(records, "prompt_to_line"), aggregate(records * 5, "prompt_to_line")
    assert once.ci == pytest.approx(five_times.ci)
    assert once.stderr == pytest.approx(five_times.stderr)
    assert (once.n, five_times.n, once.clusters, five_times.clusters) == (10, 50, 10, 10)


def test_stderr_is_inspects() -> None:
    values, personas = [0.2, 0.9, 0.4, 1.0, 0.7], ["a", "b", "a", "c", "c"]
    scores = [
        SampleScore(score=Score(value=value), sample_metadata={"persona_id": persona})
        for value, persona in zip(values, personas, strict=True)
    ]
    assert clustered_stderr(values, personas) == pytest.approx(stderr(cluster="persona_id")(scores))


def test_infinite_and_undefined_resamples() -> None:
    assert interval(np.array([np.nan, np.nan])) is None
    assert interval(np.full(100, np.inf)) is None
    assert interval(np.array([1.0] * 50 + [np.inf] * 50)) == (1.0, None)
    np.testing.assert_equal(bounds(np.array([[1.0, np.nan], [np.nan, np.nan]])), [[1, np.nan], [1, np.nan]])


def test_thousand_resamples_take_less_than_a_second() -> None:
    rows = random_rows(200, 30, seed=0, unparsed=0.03)
    grid, scores = grid_of(*rows), np.array([dialogue_score(judged(row).verdicts) for row in rows], dtype=float)
    start = time.perf_counter()
    found = estimate(bootstrap_weights([f"p{n // 5}" for n in range(200)], 1000), scores, grid)
    intervals = [bounds(part.reshape(1000, -1)) for part in found]
    assert time.perf_counter() - start < 1
    assert [part.shape[1] for part in intervals] == [1, 30, 1, 30, 1]


# ------------------------------------------------------------------------------------------------------- summaries


def mixed() -> list[Judged]:
    rows = random_rows(12, 8, seed=2)
    return [
        judged(row, persona=f"p{n % 4}", scenario="chat" if n % 2 else "therapy", name=f"d{n}")
        for n, row in enumerate(rows)
    ]


def test_summary_does_not_depend_on_the_order_of_dialogues() -> None:
    records = mixed()
    a = summarise(records, resamples=100)
    b = summarise(random.Random(0).sample(records, len(records)), resamples=100)
    assert a.overall.monitors == pytest.approx(b.overall.monitors)
    for group_a, group_b in [(a.overall, b.overall), *((a.scenarios[s], b.scenarios[s]) for s in ("chat", "therapy"))]:
        one, other = group_a.metrics["prompt_to_line"], group_b.metrics["prompt_to_line"]
        assert (one.score, one.slope, one.half_life) == (
            pytest.approx(other.score),
            pytest.approx(other.slope),
            other.half_life,
        )
        assert one.ci == pytest.approx(other.ci)
        assert [p.value for p in one.survival] == pytest.approx([p.value for p in other.survival])


def test_summary_is_json_without_nan() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    records = [*mixed(), judged("????"), judged("", scenario="empty"), judged("xc", metric="line_to_line")]
    text = summarise(records, resamples=50).model_dump_json()
    assert Summary.model_validate(json.loads(text, parse_constant=refuse)) == summarise(records, resamples=50)


def test_withheld_dialogues_are_counted_and_not_averaged() -> None:
    summary = aggregate([judged("cccx", "a"), judged("c???", "b"), judged("cccc", "c")], "prompt_to_line")
    assert (summary.n, summary.withheld, summary.clusters, summary.asked) == (2, 1, 2, 12)
    assert summary.score == pytest.approx((3 / 4 + 1) / 2)
    assert summary.unparsed == pytest.approx(3 / 12)
    assert summary.coverage == pytest.approx(9 / 12)


def test_below_half_coverage_overall_there_is_no_number() -> None:
    summary = aggregate([judged("cc", "a"), judged("c", "b"), judged("????????", "c")], "prompt_to_line")
    assert (summary.score, summary.ci, summary.slope, summary.curve) == (None, None, None, [])
    assert (summary.n, summary.withheld, summary.coverage) == (2, 1, pytest.approx(3 / 11))


def test_one_persona_has_no_intervals() -> None:
    summary = summarise([judged("ccxc", "a"), judged("xccc", "a")])
    metric = summary.overall.metrics["prompt_to_line"]
    assert metric.score == pytest.approx(3 / 4)
    assert (metric.ci, metric.stderr, metric.slope_ci, metric.half_life_ci) == (None, None, None, None)
    assert {(p.low, p.high) for p in metric.curve + metric.survival} == {(None, None)}
    assert "one persona" in " ".join(summary.notes)


def test_one_persona_with_a_score_has_no_intervals_either() -> None:
    summary = aggregate([judged("ccxcccxc", "a"), judged("c???", "b")], "prompt_to_line")
    assert (summary.n, summary.clusters, summary.withheld, summary.ci, summary.slope_ci) == (1, 1, 1, None, None)


def test_a_single_persona_cannot_be_drawn() -> None:
    assert bootstrap_weights(["a", "a"]).shape == (0, 2)


def test_dialogues_that_were_not_judged_are_not_withheld() -> None:
    summary = aggregate([judged("cx", "a"), judged("..", "b"), judged("", "c")], "prompt_to_line")
    assert (summary.n, summary.withheld, summary.asked) == (1, 0, 2)


def test_dialogues_without_lines_are_not_in_the_monitors() -> None:
    summary = summarise([judged("cc", "a"), judged("", "b")])
    assert summary.overall.dialogues == 2
    assert summary.overall.monitors["line_length"] == 3


def test_no_band_where_a_single_persona_is_left() -> None:
    records = [judged("ccxc", "a"), judged("xxcc", "a"), judged("cx", "b"), judged("xc", "c")]
    curve = aggregate(records, "prompt_to_line").curve
    assert [p.low is None for p in curve] == [False, False, True, True]
    assert [p.n for p in curve] == [4, 4, 2, 2]


def test_summaries_of_nothing() -> None:
    assert summarise([]).notes == ["there are no dialogues"]
    bare = summarise([judged("..")])
    assert bare.overall.metrics["prompt_to_line"].score is None
    assert bare.overall.monitors["line_length"] == 3
    assert "no verdicts" in bare.notes[0]


# --------------------------------------------------------------------------------------------------- two summaries


def test_reduction_is_the_drop_of_inconsistency() -> None:
    before = [judged("cccx", "a"), judged("cxcx", "b"), judged("xxxx", "only before")]
    after = [judged("cccc", "a"), judged("cccx", "b")]
    found = paired_difference(before, after, "prompt_to_line")
    assert (found.score_before, found.score_after) == (pytest.approx(5 / 8), pytest.approx(7 / 8))
    assert found.absolute == pytest.approx(1 / 4)
    assert found.reduction == pytest.approx(2 / 3)  # inconsistency 3/8 -> 1/8
    assert (found.clusters, found.unpaired) == (2, 1)


def test_paired_interval_equals_a_plain_loop() -> None:
    before = [judged(row, f"p{n // 2}") for n, row in enumerate(random_rows(12, 8, seed=4, unparsed=0))]
    after = [judged(row.replace("x", "c", 1), f"p{n // 2}") for n, row in enumerate(random_rows(12, 8, 9, 0))]
    found = paired_difference(before, after, "prompt_to_line", resamples=300, seed=3)
    gains, reductions = [], []
    for weight in bootstrap_weights([f"p{n}" for n in range(6)], resamples=300, seed=3):
        drawn = [d for d in range(12) for _ in range(int(weight[d // 2]))]
        a, b = (np.mean([dialogue_score(records[d].verdicts) for d in drawn]) for records in (before, after))
        gains.append(b - a)
        reductions.append(1 - (1 - b) / (1 - a))
    assert found.absolute_ci == pytest.approx(interval(np.array(gains)))
    assert found.reduction_ci == pytest.approx(interval(np.array(reductions)))


def test_pairing_uses_that_personas_are_the_same() -> None:
    """Every persona gains exactly a quarter: the difference is certain although the personas differ widely."""
    before = [judged(row, f"p{n}") for n, row in enumerate(["xxxx", "cxxx", "ccxx", "cccx"])]
    after = [judged(row, f"p{n}") for n, row in enumerate(["cxxx", "ccxx", "cccx", "cccc"])]
    found = paired_difference(before, after, "prompt_to_line")
    assert found.absolute_ci == (pytest.approx(1 / 4), pytest.approx(1 / 4))
    low, high = aggregate(before, "prompt_to_line").ci or (None, None)
    assert low is not None and high is not None and high - low > 0.3


def test_reduction_of_nothing_is_unknown() -> None:
    perfect, worse = [judged("cc", "a"), judged("cc", "b")], [judged("cx", "a"), judged("cc", "b")]
    found = paired_difference(perfect, worse, "prompt_to_line")
    assert (found.reduction, found.reduction_ci) == (None, None)
    assert found.absolute == pytest.approx(-1 / 4)


def test_nothing_in_common_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no persona has a prompt_to_line score in both"):
        paired_difference([judged("c", "a")], [judged("c", "b")], "prompt_to_line")


# ---------------------------------------------------------------------------------------------------------- tables


def shown(summary: Summary, as_json: bool) -> str:
    out = io.StringIO()
    show(summary, as_json, *summary_tables(summary), file=out)
    return out.getvalue()


def test_table_in_a_pipe_is_plain() -> None:
    text = shown(summarise([*mixed(), judged("c???", scenario="poor")], resamples=50), as_json=False)
    assert "\x1b" not in text and "─" not in text
    header, *rows = [line.split() for line in text.splitlines()]
    assert header[:3] == ["dialogues", "metric", "score"]
    assert [row[:2] for row in rows[:4]] == [[name, "prompt_to_line"] for name in ("all", "chat", "poor", "therapy")]
    assert rows[2][2] == "withheld"


def test_json_of_a_table() -> None:
    summary = summarise(mixed(), resamples=50)
    assert Summary.model_validate_json(shown(summary, as_json=True)) == summary
