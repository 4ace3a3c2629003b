"""Comparing trained models: numbers worked by hand, what is refused, and a whole run on tiny models, interrupted."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from persona_tasks.metrics import paired_difference
from persona_tasks.personas import load_bank
from persona_tasks.scoring import aggregate
from persona_tasks.transcript import Judged, Transcript, Turn, Verdict, append_jsonl, read_jsonl
from tests.tiny import tiny_model_folder
from training import compare as command
from training import compare_play
from training.compare import check_cell
from training.compare_page import _plain, _survived, side_by_side, training_frame
from training.compare_play import Cell, CompareError, Condition, Recipe
from training.compare_table import BASE, Played, Results, compare
from training.recipe import RecipeError, load_recipe

LINES = [
    "I grew up by the sea.",
    "My sister runs a small bakery.",
    "On Mondays we never open early.",
    "It rains a lot.",
]


def record(persona: str, outcomes: str, seed: int = 0, lines: Sequence[str] = LINES) -> Judged:
    """A dialogue; in `outcomes`, + is a consistent line, - a contradiction, ? an unreadable verdict."""
    names = {"+": "consistent", "-": "contradicts", "?": "unparsed"}
    turns = [Turn(partner=f"Question {n}?", line=lines[n % len(lines)]) for n in range(len(outcomes))]
    said = Transcript(id=f"{persona}/{seed}", persona_id=persona, persona_text="You are old.", turns=turns, seed=seed)
    verdicts = [
        Verdict(metric="prompt_to_line", turn=n, outcome=names[sign])  # type: ignore[arg-type]
        for n, sign in enumerate(outcomes, start=1)
    ]
    return Judged(transcript=said, verdicts=verdicts, judge="hand")


def cell(method: str, seed: int, **outcomes: str) -> Played:
    records = [record(persona, signs) for persona, signs in outcomes.items()]
    return Played(f"{method}-{seed}", method, seed, len(records), records)


BEFORE = cell(BASE, 0, ann="+---", ben="++--", cat="+---", dan="++++", eve="----")


# ------------------------------------------------------------------------------------------------------------ numbers


def test_numbers_worked_by_hand() -> None:
    after = cell("GRPO", 0, ann="++++", ben="++++", cat="+++-", dan="++++", eve="++--")
    [base, row] = compare([BEFORE, after], turns=4)
    line = row.metrics["prompt_to_line"]
    assert base.metrics["prompt_to_line"].score.value == pytest.approx(8 / 20)
    assert base.metrics["prompt_to_line"].reduction is None
    assert line.score.value == pytest.approx(17 / 20)
    assert line.reduction is not None and line.reduction.value == pytest.approx(1 - 3 / 12)
    assert line.reduction_by_seed == {0: pytest.approx(0.75)}
    assert base.metrics["prompt_to_line"].survival.value == pytest.approx(1 / 5)
    assert line.survival.value == pytest.approx(3 / 5)
    assert line.survival_ratio is not None and line.survival_ratio.value == pytest.approx(3)
    assert line.survival_gain is not None and line.survival_gain.value == pytest.approx(2 / 5)
    assert (line.n, line.personas, line.unparsed) == (5, 5, 0.0)
    assert row.metrics["qa"].score.value is None and row.metrics["qa"].reduction is None
    assert row.monitors["distinct_2"].ratio is not None
    assert row.monitors["distinct_2"].ratio.value == pytest.approx(1) and row.guards_hold


def test_with_one_seed_the_intervals_are_those_of_the_package() -> None:
    after = cell("GRPO", 0, ann="++++", ben="++-+", cat="+++-", dan="++++", eve="++--")
    line = compare([BEFORE, after], turns=4)[1].metrics["prompt_to_line"]
    known = paired_difference(BEFORE.records, after.records, "prompt_to_line")
    assert line.reduction is not None and line.absolute is not None
    assert line.reduction.interval == pytest.approx(known.reduction_ci)
    assert line.absolute.interval == pytest.approx(known.absolute_ci)
    assert line.score.interval == pytest.approx(aggregate(after.records, "prompt_to_line").ci)


def test_training_seeds_that_differ_widen_the_interval() -> None:
    people = [f"p{n}" for n in range(12)]
    before = cell(BASE, 0, **dict.fromkeys(people, "+---"))
    good, middling, bad = (dict.fromkeys(people, signs) for signs in ("++++", "+++-", "+---"))
    seeds = [cell("GRPO", n, **outcomes) for n, outcomes in enumerate((good, middling, bad))]
    line = compare([before, *seeds], turns=4)[1].metrics["prompt_to_line"]
    assert line.reduction is not None and line.reduction.interval is not None
    assert line.reduction_by_seed == {0: 1.0, 1: pytest.approx(2 / 3), 2: 0.0}
    assert line.reduction.value == pytest.approx(5 / 9)
    # every persona is alike, so all of the spread comes from the seeds: 27 draws, of which one is all bad
    assert line.reduction.interval == pytest.approx((0.0, 1.0))
    pooled = Played("GRPO", "GRPO", 0, 36, [r for one in seeds for r in one.records])
    alone = compare([before, pooled], turns=4)[1].metrics["prompt_to_line"].reduction
    assert alone is not None and alone.interval == pytest.approx((5 / 9, 5 / 9))


def test_only_people_on_both_sides_are_compared() -> None:
    after = cell("SFT", 0, ann="++++", zoe="----", ben="????")  # ben's score is withheld
    line = compare([BEFORE, after], turns=4)[1].metrics["prompt_to_line"]
    assert line.score.value == pytest.approx(0.5) and line.n == 2
    assert line.reduction is not None and line.reduction.value == pytest.approx(1)  # of ann alone: 3/4 to 0
    assert line.reduction.interval is None
    assert line.unparsed == pytest.approx(4 / 12)


def test_survival_is_a_gain_where_none_of_the_base_survives() -> None:
    rows = compare([cell(BASE, 0, ann="+-", ben="-+"), cell("GRPO", 0, ann="++", ben="-+")], turns=2)
    assert rows[1].metrics["prompt_to_line"].survival_ratio.value is None  # type: ignore[union-attr]
    assert _survived(rows[1].metrics["prompt_to_line"]).startswith("+0.500")
    rows = compare([cell(BASE, 0, ann="++", ben="-+"), cell("GRPO", 0, ann="++", ben="++")], turns=2)
    assert _survived(rows[1].metrics["prompt_to_line"]).startswith("2.00")


def test_a_simulator_that_repeats_itself_breaks_the_guards() -> None:
    records = [record(persona, "++++", lines=["I am fine."]) for persona in ("ann", "ben", "cat", "dan", "eve")]
    row = compare([BEFORE, Played("x", "KTO", 0, 5, records)], turns=4)[1]
    assert not row.guards_hold
    broken = {name for name, found in row.monitors.items() if found.holds is False}
    assert broken == {"distinct_2", "line_length", "self_repetition"}
    assert row.monitors["role_flips"].holds is None


@pytest.mark.parametrize(("words", "holds"), [(15, True), (14, False)])
def test_the_length_guard_is_at_three_quarters(words: int, holds: bool) -> None:
    """20 words before; 75 % are 15."""
    text = " ".join(f"word{n}" for n in range(20))
    before = Played("b", BASE, 0, 1, [record("ann", "+", lines=[text])])
    after = Played("a", "SFT", 0, 1, [record("ann", "+", lines=[" ".join(text.split()[:words])])])
    assert compare([before, after], turns=1)[1].monitors["line_length"].holds is holds


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run whose model is there."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(tiny_model_folder(tmp_path), folder / "model")
    return folder


def checked(run: Path, recipe: object, judge: str = "persona/judge-135m-audit") -> list[str]:
    (run / "recipe.json").write_text(json.dumps(recipe))
    return check_cell(Cell(name="c", method="m", model=str(run / "model")), judge, load_bank().select("all", "test"))


def test_a_run_on_other_people_with_another_judge_may_be_compared(run: Path) -> None:
    assert checked(run, {"split": "train", "rewards": {"judge": "persona/judge-135m"}}) == []


@pytest.mark.parametrize(
    "recipe", [{"judge": "judge-135m-audit"}, {"rewards": [{"judge": "persona/judge-135m-audit"}]}]
)
def test_the_judge_of_the_rewards_must_not_report(run: Path, recipe: object) -> None:
    with pytest.raises(CompareError, match=r"cell c: the judge that reports, persona/judge-135m-audit.*recipe\.json"):
        checked(run, recipe)


def test_the_same_judge_under_another_name_is_found_out(run: Path, tmp_path: Path) -> None:
    reward = tiny_model_folder(tmp_path, seed=5)
    report = shutil.copytree(reward, tmp_path / "audit")
    other = tiny_model_folder(tmp_path, seed=6)
    assert checked(run, {"judge": str(reward)}, f"persona/{other}") == []
    with pytest.raises(CompareError, match="gave its rewards"):
        checked(run, {"judge": str(reward)}, f"persona/{report}")


def test_a_judge_that_labelled_the_training_data_must_not_report(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    labelled = record("chat-train-01", "++").model_copy(update={"judge": "persona/judge-135m-audit"})
    append_jsonl(data, [labelled])
    with pytest.raises(CompareError, match=r"data\.jsonl"):
        checked(run, {"data": [str(data)]})
    data.unlink()
    assert "is not here" in checked(run, {"data": str(data)})[0]


@pytest.mark.parametrize("recipe", [{"data": {"split": "test"}}, {"split": "all"}, {"personas": ["therapy-test-03"]}])
def test_people_who_were_trained_on_are_refused(run: Path, recipe: object) -> None:
    with pytest.raises(CompareError, match=r"trained on \d+ of the people"):
        checked(run, recipe)


def test_people_in_the_training_data_are_refused(run: Path, tmp_path: Path) -> None:
    append_jsonl(tmp_path / "data.jsonl", [record("chat-train-01", "++"), record("chat-test-02", "++")])
    with pytest.raises(CompareError, match=r"trained on 1 of the people.*chat-test-02"):
        checked(run, {"data": str(tmp_path / "data.jsonl")})


@pytest.mark.parametrize("key", ["base", "start"])
def test_what_a_run_went_on_from_counts(run: Path, tmp_path: Path, key: str) -> None:
    later = tmp_path / "later"
    shutil.copytree(run, later)
    (run / "recipe.json").write_text(json.dumps({"split": "test"}))
    with pytest.raises(CompareError, match="trained on"):
        checked(later, {key: str(run / "model"), "split": "train"})


def test_a_model_of_unknown_making_is_told(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path)
    [note] = check_cell(Cell(name="c", method="m", model=str(model)), "persona/x", load_bank().select())
    assert "what it was trained on is not known" in note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judgement": 1}, "judgement: Extra inputs"),
        ({"cells": []}, "exactly one has the method `base`"),
        ({"side_by_side": "nobody"}, "there is no cell 'nobody'"),
        ({"conditions": {"main": {"turns": 2, "probes": "3"}}}, "between 1 and 2"),
        ({"conditions": {"../main": {}}}, "pattern"),
    ],
)
def test_a_recipe_that_cannot_be_used_says_why(tmp_path: Path, change: dict[str, object], message: str) -> None:
    data = yaml.safe_load(Path("training/recipes/compare.yaml").read_text()) | change
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(RecipeError, match=message):
        load_recipe(Recipe, tmp_path / "r.yaml")


def test_the_recipe_that_we_ship_lists_every_method() -> None:
    recipe = load_recipe(Recipe, Path("training/recipes/compare.yaml"))
    methods = {cell.method for cell in recipe.cells}
    assert methods == {
        *("base", "SFT written", "SFT judged", "KTO", "DPO line", "DPO segment", "signed", "signed read"),
        *("GRPO turn", "GRPO segment", "GRPO dialogue", "PPO"),
    }
    assert (recipe.split, recipe.judge, recipe.conditions["long"].turns) == ("test", "persona/judge-135m-audit", 16)
    for method in ("GRPO turn", "signed read"):
        assert [cell.seed for cell in recipe.cells if cell.method == method] == [0, 1, 2]


def test_a_condition_can_be_for_some_methods_or_cells_only() -> None:
    cells = [
        Cell(name=name, method=method, model="m")
        for name, method in (("b", BASE), ("s", "SFT"), ("g0", "G"), ("g1", "G"))
    ]

    def taken(*only: str) -> list[str]:
        return [cell.name for cell in cells if compare_play.taken(Condition(only=list(only)), cell)]

    assert taken() == ["b", "s", "g0", "g1"]
    assert taken("G") == ["b", "g0", "g1"]
    assert taken("s", "g1") == ["b", "s", "g1"]


# ------------------------------------------------------------------------------------------------------------ the page


def test_hostile_lines_stay_in_their_cell() -> None:
    hostile = "<script>a</script> | `b` \n\n# c ![d](e)"
    assert _plain(hostile) == r"&lt;script&gt;a&lt;/script&gt; \| \`b\` \# c !\[d\](e)"
    before, after = (Played(name, name, 0, 1, [record("ann", "+-", lines=[hostile])]) for name in (BASE, "GRPO"))
    rows = [line for line in side_by_side(before, after).splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and all(line.replace(r"\|", "").count("|") == 5 for line in rows)
    assert rows[3].count("| ✗ ") == 2 and rows[2].count("| ✗ ") == 0


def test_side_by_side_draws_the_same_dialogues_each_time() -> None:
    before, after = (cell(name, 0, **{f"p{n}": "++" for n in range(9)}) for name in (BASE, "GRPO"))
    page = side_by_side(before, after, count=4)
    assert page == side_by_side(before, after, count=4) != side_by_side(before, after, count=4, seed=1)
    assert page.count("\n## p") == 4 and "4 of 9 dialogues" in page


def test_rewards_over_training_are_the_mean_and_range_of_the_seeds(tmp_path: Path) -> None:
    cells = [cell("GRPO", 0), cell("GRPO", 1), cell("SFT", 0)]
    logs = {}
    for number, one in enumerate(cells):
        logs[one.name] = tmp_path / f"{number}.jsonl"
        entry = {"step": 1, "loss": 2.0, "seconds/judge": 1.0}
        if one.method == "GRPO":
            entry |= {"rewards/prompt_to_line/mean": 0.2 + 0.2 * number, "rewards/prompt_to_line/std": 1.0}
            entry |= {"rewards/prompt_to_line/line_1": 0.9, "monitors/line_length": 9.0, "reward_std": 0.5}
        logs[one.name].write_text(json.dumps(entry) + '\n{"step": 2, "rewards/prom')
    frame = training_frame(cells, logs).set_index(["model", "measure"])
    assert set(frame.index) == {("GRPO", "prompt_to_line"), ("GRPO", "line_length")}
    row = frame.loc[("GRPO", "prompt_to_line")]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.3, 0.2, 0.4))


# ---------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Two tiny models, one of them the result of a run, a tiny judge, and a cell that was not run."""
    models = {name: tiny_model_folder(tmp_path, seed=n, max_position_embeddings=16384) for n, name in enumerate("abj")}
    trained = tmp_path / "runs" / "grpo"
    trained.mkdir(parents=True)
    shutil.move(models["b"], trained / "model")
    (trained / "recipe.json").write_text(json.dumps({"split": "train", "judge": "persona/other"}))
    (trained / "origin.json").write_text(json.dumps({"command": "python -m training.grpo", "commit": "abc"}))
    steps = [{"step": n, "rewards/prompt_to_line": n / 10, "monitors/distinct_2": 0.8} for n in range(3)]
    (trained / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    data = {
        "judge": f"persona/{models['j']}",
        "limit": 2,
        "batch": 1,
        "sampling": {"temperature": 1.0},
        "side_by_side": "grpo-0",
        "conditions": {"main": {"turns": 2, "probes": "2"}},
        "cells": [
            {"name": "base", "method": BASE, "model": str(models["a"])},
            {"name": "grpo-0", "method": "GRPO", "model": str(trained / "model")},
            {"name": "ppo-0", "method": "PPO", "model": str(tmp_path / "runs" / "ppo" / "adapter")},
        ],
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "compare.yaml"


def go_on(recipe: Path, out: Path, *changes: str) -> None:
    compare_play.play_cells(load_recipe(Recipe, recipe, changes), out, lambda: None)


def test_a_whole_run_and_one_that_is_interrupted(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setattr(sys, "argv", ["compare", "--config", str(recipe_file), "--out", str(whole)])
    command.main()
    page = (whole / "results.md").read_text()
    assert capsys.readouterr().out.strip() == page.strip()
    results = Results.model_validate_json((whole / "results.json").read_text())
    rows = {row.method: row for row in results.conditions["main"]}
    assert rows["PPO"].cells == {"ppo-0": "not run"} and "| PPO | 0 of 1 | not run |" in page
    assert rows["GRPO"].cells == {"grpo-0": "2 dialogues"}
    assert rows["GRPO"].metrics["prompt_to_line"].n == 2
    assert rows["GRPO"].metrics["prompt_to_line"].unparsed == 0
    assert results.trained["grpo-0"]["commit"] == "abc"
    assert {"judge", "base", "grpo-0"} == set(results.weights)
    assert all(len(digest) == 64 for files in results.weights.values() for digest in files.values())
    for name in ("drift.png", "drift.pdf", "training.png", "trade_off.png", "side_by_side.md"):
        assert (whole / name).stat().st_size and (name.endswith("pdf") or f"({name})" in page)
    played = list(read_jsonl(whole / "judged" / "main" / "grpo-0.jsonl"))
    assert {load_bank().persona(r.transcript.persona_id).split for r in played} == {"test"}
    scripts = load_bank().scripts
    for found in played:
        openings = [line.split("{")[0] for line in scripts[found.transcript.scenario].pool("test").openings]
        assert any(found.transcript.turns[0].partner.startswith(line) for line in openings)

    # interrupted in the second batch of judging the base, with a line cut short
    calls = []
    real = compare_play.lockstep

    def interrupted(dialogues: object, answer: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(dialogues, answer)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(compare_play, "lockstep", interrupted)
        go_on(recipe_file, parts)
    judged = parts / "judged" / "main" / "base.jsonl"
    assert len(list(read_jsonl(judged))) == 1
    with judged.open("a") as file:
        file.write('{"transcript": {"id"')
    held = (parts / "dialogues" / "main" / "base.jsonl").read_bytes()
    go_on(recipe_file, parts)
    assert (parts / "dialogues" / "main" / "base.jsonl").read_bytes() == held
    for name in ("base", "grpo-0"):
        files = [folder / "judged" / "main" / f"{name}.jsonl" for folder in (parts, whole)]
        assert list(read_jsonl(files[0])) == list(read_jsonl(files[1]))

    # a third time there is nothing to do
    with monkeypatch.context() as patch:
        patch.setattr(compare_play, "lockstep", None)
        go_on(recipe_file, parts)

    # and what was made otherwise is not mixed in
    with pytest.raises(CompareError, match="made with other sampling"):
        go_on(recipe_file, parts, "sampling.temperature=0.5")
    other = tiny_model_folder(tmp_path, seed=9)
    with pytest.raises(CompareError, match="made with other judge"):
        go_on(recipe_file, parts, f"judge=persona/{other}")
