"""The blind reading: what is drawn tells nothing, what is scored is right, and an overclaiming judge comes first."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from persona_tasks.transcript import Judged, Transcript, Turn, Verdict, append_jsonl
from training import reading
from training.reading import Item, Key, ReadingError, draw, read_sheet, report, score

PEOPLE = ("ann", "ben", "cat", "dan", "eve", "fay")


def dialogues(file: Path, model: str, turns: int = 5, bad: int = 0, judge: str = "persona/judge") -> Path:
    """One dialogue per person; the judge calls the first `bad` lines of each contradictions."""
    for person in PEOPLE:
        said = Transcript(
            id=f"{person}/0",
            persona_id=person,
            persona_text=f"You are {person}, and you are old.",
            scenario="chat",
            turns=[Turn(partner=f"Question {n}?", line=f"{person} {model[:1]}{n}") for n in range(1, turns + 1)],
            model=model,
            seed=0,
        )
        verdicts = [
            Verdict(metric="prompt_to_line", turn=n, outcome="contradicts" if n <= bad else "consistent")
            for n in range(1, turns + 1)
        ]
        append_jsonl(file, [Judged(transcript=said, verdicts=verdicts if judge else [], judge=judge)])
    return file


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The judge: four of five lines contradict before, one of five after."""
    return dialogues(tmp_path / "b.jsonl", "xbase-model", bad=4), dialogues(tmp_path / "a.jsonl", "ytuned-model", bad=1)


def test_both_sides_are_drawn_at_the_same_places_spread_over_people(files: tuple[Path, Path]) -> None:
    items, key = draw(*files, lines=12, seed=3)
    places = {
        side: sorted((p.dialogue, p.turn) for p in key.places.values() if p.side == side)
        for side in ("before", "after")
    }
    assert sorted(places["before"]) == sorted(places["after"]) and len(set(places["before"])) == 12
    assert Counter(dialogue for dialogue, _ in places["before"]) == {f"{person}/0": 2 for person in PEOPLE}
    for item in items:
        place = key.places[item.id]
        letter = {"before": "x", "after": "y"}[place.side]
        assert item.line == f"{place.persona_id} {letter}{place.turn}"
        assert [turn.line[-1] for turn in item.earlier] == [str(n) for n in range(1, place.turn)]
        assert item.partner == f"Question {place.turn}?" and place.persona_id in item.persona
    sides = [key.places[item.id].side for item in items]
    assert 3 < sum(a != b for a, b in pairwise(sides)) < 20  # neither in blocks nor alternating
    assert draw(*files, lines=12, seed=3) == (items, key) != draw(*files, lines=12, seed=4)


def test_the_sheet_tells_nothing_of_model_and_verdict(files: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    sheet, key = tmp_path / "sheet.jsonl", tmp_path / "apart" / "key.json"
    run(monkeypatch, "draw", "--before", files[0], "--after", files[1], "--lines", 30, "--out", sheet, "--key", key)
    text = sheet.read_text()
    for telling in ("model", "before", "after", "contradicts", "consistent", "judge"):
        assert telling not in text
    assert len(text.splitlines()) == 60 and all(json.loads(line)["label"] is None for line in text.splitlines())
    assert Key.model_validate_json(key.read_text()).models == {"before": "xbase-model", "after": "ytuned-model"}
    with pytest.raises(SystemExit, match="is there already"):  # labels would be lost
        run(monkeypatch, "draw", "--before", files[0], "--after", files[1], "--out", sheet, "--key", key)


def test_too_few_lines_and_dialogues_that_are_there_twice(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ReadingError, match="share 30 lines"):
        draw(*files, lines=31, seed=0)
    dialogues(files[0], "again")
    with pytest.raises(ReadingError, match=r"b\.jsonl: dialogue ann/0 is in it twice"):
        draw(*files, lines=5, seed=0)
    with pytest.raises(ReadingError, match="no such file"):
        draw(tmp_path / "none.jsonl", files[1], lines=5, seed=0)


# ----------------------------------------------------------------------------------------------------------- scoring


def labelled(items: list[Item], key: Key, before: int, after: int, unclear: int = 0) -> dict:  # type: ignore[type-arg]
    """The first `before` (`after`) lines of each person contradict, the last `unclear` before are unclear."""
    labels = {}
    for item in items:
        place = key.places[item.id]
        bad = place.turn <= (before if place.side == "before" else after)
        vague = place.side == "before" and place.turn > 5 - unclear
        labels[item.id] = "unclear" if vague else "contradicts" if bad else "consistent"
    return labels


def test_shares_and_reduction_worked_by_hand(files: tuple[Path, Path]) -> None:
    items, key = draw(*files, lines=30, seed=0)
    result = score(labelled(items, key, before=3, after=2, unclear=1), key)
    assert (result.before.contradicts, result.before.consistent, result.before.unclear) == (18, 6, 6)
    assert result.before.share.value == pytest.approx(18 / 24)
    assert result.after.share.value == pytest.approx(12 / 30)
    reduction = 1 - (12 / 30) / (18 / 24)
    assert result.reduction.value == pytest.approx(reduction)
    assert result.reduction.interval == pytest.approx((reduction, reduction))  # all people are alike
    claim = 1 - (6 / 30) / (24 / 24)  # the judge on the lines with a clear label
    assert result.judge_reduction is not None and result.judge_reduction.value == pytest.approx(claim)
    assert result.excess is not None and result.excess.value == pytest.approx(claim - reduction)
    assert result.personas == 6


def test_people_who_differ_widen_the_interval(files: tuple[Path, Path]) -> None:
    items, key = draw(*files, lines=30, seed=0)
    labels = labelled(items, key, before=5, after=0)
    for item in items:
        place = key.places[item.id]
        if place.side == "after" and place.persona_id in PEOPLE[:3]:
            labels[item.id] = "contradicts"
    result = score(labels, key)
    assert result.reduction.value == pytest.approx(0.5) and result.reduction.interval is not None
    low, high = result.reduction.interval
    assert low is not None and high is not None and low < 0.2 and high > 0.8


def test_a_judge_that_claims_much_more_is_said_first(files: tuple[Path, Path]) -> None:
    items, key = draw(*files, lines=30, seed=0)
    over = score(labelled(items, key, before=4, after=3), key)  # 25 % fewer; the judge: 75 %
    assert over.overclaimed
    assert report(over).startswith("The judge claims much more than the reading finds: persona/judge claims 75 %")
    assert "50 [50, 50] points more" in report(over).splitlines()[0]
    fair = score(labelled(items, key, before=4, after=1), key)
    assert not fair.overclaimed and report(fair).startswith("By reading, 80 %")
    assert fair.judge_kappa["before"].value == pytest.approx(1)
    kappa = over.judge_kappa["after"].value
    assert kappa is not None and kappa < 0.5  # 2 of 5 lines that are read as contradictions are called consistent


def test_without_verdicts_there_is_only_the_reading(tmp_path: Path) -> None:
    before, after = (dialogues(tmp_path / f"{name}.jsonl", name, judge="") for name in ("xb", "ya"))
    items, key = draw(before, after, lines=30, seed=0)
    result = score(labelled(items, key, before=4, after=1), key)
    assert result.judge_reduction is None and "No judge's verdicts" in report(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, r"line 3: id \w+ has no label; give consistent, contradicts or unclear"),
        ({"label": "bad"}, r"line 3: label: Input should be 'consistent', 'contradicts' or 'unclear'"),
        ({"drift": "boredom"}, r"line 3: drift: Input should be"),
        ({"id": "0"}, r"line 3: id 0 is not in the key"),
        ({"note": "x"}, r"line 3: note: Extra inputs"),
        ("broken", r"line 3: not JSON"),
        ("twice", r"line 61: id \w+ is there twice"),
        ("missing", r"1 of 60 items are missing"),
    ],
)
def test_a_sheet_that_cannot_be_scored_says_where(
    files: tuple[Path, Path], tmp_path: Path, change: dict[str, str] | str, message: str
) -> None:
    items, key = draw(*files, lines=30, seed=0)
    labels = labelled(items, key, 4, 1)
    rows = [item.model_dump() | {"label": labels[item.id]} for item in items]
    if isinstance(change, dict):
        rows[2] |= change
    texts = [json.dumps(row) for row in rows]
    if change == "broken":
        texts[2] = texts[2][:-5]
    texts = {"twice": [*texts, texts[0]], "missing": texts[1:]}.get(str(change), texts)
    (tmp_path / "s.jsonl").write_text("\n".join(texts))
    with pytest.raises(ReadingError, match=message):
        read_sheet(tmp_path / "s.jsonl", key)


def test_the_commands_from_drawing_to_the_numbers(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, key = tmp_path / "sheet.jsonl", tmp_path / "key.json"
    run(monkeypatch, "draw", "--before", files[0], "--after", files[1], "--lines", 30, "--out", sheet, "--key", key)
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    labels = labelled([Item.model_validate(row) for row in rows], Key.model_validate_json(key.read_text()), 4, 2)
    sheet.write_text("".join(json.dumps(row | {"label": labels[row["id"]]}) + "\n" for row in rows))
    run(monkeypatch, "score", "--sheet", sheet, "--key", key, "--out", tmp_path / "reading.json")
    assert "contradict the persona: 50 % [50, 50] fewer" in capsys.readouterr().out
    assert json.loads((tmp_path / "reading.json").read_text())["reduction"]["value"] == pytest.approx(0.5)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["reading", *map(str, arguments)])
    reading.main()
