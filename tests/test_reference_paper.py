"""The reference paper's records: reading them, the authors' formulas, and their published numbers.

The last needs the released dialogues: PERSONA_REFERENCE_DATA names the folder that holds `consistent-llms/`.
"""

import json
import os
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from persona_tasks.importers import load
from persona_tasks.metrics import dialogue_score
from persona_tasks.reference_paper import (
    first_list,
    index_lists,
    judge_answered_qa,
    pair_averaged_line_to_line,
    strict_yes,
    yes_in_any_case,
    yes_substring,
)
from persona_tasks.scoring import score_file
from persona_tasks.transcript import Judged, TranscriptError

LINES = [
    "Bo: Hello: how are you?\n",
    "Ida: Fine. Remember: I never fly.\n",
    "Bo: Why?\n",
    "Ida:\n",
    "Bo: Say something.\n",
    "Ida: I fly every day: it is great.\n",
]


def record(**changes: Any) -> dict[str, Any]:
    """Six lines; the second speaker's last line contradicts her first."""
    return {
        "task_name": "Chatting",
        "P1": "Bo is a baker.",
        "P2": "Ida never flies.",
        "conversation": [[index, line] for index, line in enumerate(LINES)],
        "pturn": 1,
        "rounds": 6,
        "eval_prompt_consistency": [
            [0, "Fits. NO"],
            [1, "Fits. NO"],
            [2, "Not a baker. YES"],
            [3, "There is no line to judge."],
            [4, "NO"],
            [5, "She flies. YES"],
        ],
        "eval_index_consistency": [[2, "[]"], [3, "Nothing said."], [4, "[0, 1]"], [5, "She flew. [1, 2, 5]"]],
        "P2_backstory_test": [["Flies?", "Eats?"], ["never", "cake"]],
        "eval_survey_consistency": [
            [LINES[1], 1, ["A) never", "B) soup"], ["YES", "NO"]],
            [LINES[3], 1, ["A) never", None], ["Yes, right.", None]],
            [LINES[5], 0, ["B) daily", "B) soup"], ["NO", "I cannot say"]],
        ],
    } | changes


def written(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(list(records)))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "sft.json", record())


def outcomes(judged: Judged, metric: Any) -> list[str]:
    return [verdict.outcome for verdict in judged.of(metric)]


# --------------------------------------------------------------------------------------------------------- reading


def test_lines_lose_the_name_only(file: Path) -> None:
    [second] = load(file)
    assert [(turn.partner, turn.line) for turn in second.transcript.turns] == [
        ("Hello: how are you?", "Fine. Remember: I never fly."),
        ("Why?", ""),
        ("Say something.", "I fly every day: it is great."),
    ]
    [first] = load(file, speaker=1)
    assert [(turn.partner, turn.line) for turn in first.transcript.turns] == [
        ("", "Hello: how are you?"),
        ("Fine. Remember: I never fly.", "Why?"),
        ("", "Say something."),
    ]
    assert (second.transcript.persona_text, first.transcript.persona_text) == ("Ida never flies.", "Bo is a baker.")
    assert second.transcript.persona_id != first.transcript.persona_id
    assert second.transcript.scenario == "chatting"


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        (["Ida: Hi.", "Note: no name here.", "Ida: Bye."], ["Hi.", "Note: no name here.", "Bye."]),
        (["Hi.", "Note: no name anywhere.", "Bye."], ["Hi.", "Note: no name anywhere.", "Bye."]),
        (["Ida: Ida: twice.", "Ida:", ""], ["Ida: twice.", "", ""]),
    ],
)
def test_a_line_without_the_name_is_kept_whole(tmp_path: Path, second: list[str], kept: list[str]) -> None:
    lines = [line for said in second for line in ("Bo: Well?", said)]
    conversation = [[index, line] for index, line in enumerate(lines)]
    changed = record(conversation=conversation, eval_survey_consistency=[])
    [judged] = load(written(tmp_path / "f.json", changed))
    assert judged.transcript.lines == kept


def test_the_second_speaker_may_begin(tmp_path: Path) -> None:
    [judged] = load(written(tmp_path / "f.json", record(pturn=2, eval_survey_consistency=[])), speaker=2)
    assert judged.transcript.lines == ["Hello: how are you?", "Why?", "Say something."]


def test_strict_reading(file: Path) -> None:
    [judged] = load(file)
    assert outcomes(judged, "prompt_to_line") == ["consistent", "unparsed", "contradicts"]
    assert outcomes(judged, "line_to_line") == ["unparsed", "contradicts"]
    assert outcomes(judged, "qa") == ["consistent", "contradicts", "unparsed", "unparsed", "contradicts", "unparsed"]
    assert [verdict.turn for verdict in judged.of("qa")] == [1, 1, 2, 2, 3, 3]
    assert judged.of("line_to_line")[1].conflicts == [
        1
    ]  # line 1 is turn 1; 2 is the other speaker's, 5 the line itself
    assert judged.of("prompt_to_line")[1].answer == "There is no line to judge."
    assert judged.of("prompt_to_line")[2].reason == "She flies. YES"


def test_authors_reading(file: Path) -> None:
    [judged] = load(file, parse="authors")
    assert outcomes(judged, "prompt_to_line") == ["consistent", "consistent", "contradicts"]
    assert outcomes(judged, "line_to_line") == ["consistent", "contradicts"]
    assert outcomes(judged, "qa") == [
        "consistent",
        "contradicts",
        "consistent",
        "unparsed",  # the API failed: nothing was said, by anybody's reading
        "contradicts",
        "contradicts",
    ]


def test_conflicts_with_the_other_speaker_are_none(file: Path) -> None:
    [first] = load(file, speaker=1)
    verdict = first.of("line_to_line")[1]
    assert (verdict.outcome, verdict.conflicts) == ("contradicts", [1])  # [0, 1] of which 1 is Ida's


def test_the_judge_answered_and_the_summary_says_so(file: Path) -> None:
    summary = score_file(file)
    assert summary.overall.metrics["qa"].score == pytest.approx(1 / 3)  # of six grades three can be read
    assert any("answered by the judge" in note for note in summary.notes)
    assert not any("answered by the judge" in note for note in score_file(file, speaker=1).notes)


@pytest.mark.parametrize(
    ("text", "strict", "authors"),
    [
        ("Fits. NO", False, False),
        ("It contradicts.\n\nYES", True, True),
        ("YES or NO? Both.", None, True),
        ("There is no contradiction.", None, False),
        ("NOTE: fine", None, False),
        ("EYES", None, True),
        ("", None, False),
        (None, None, None),
    ],
)
def test_yes_and_no(text: str | None, strict: bool | None, authors: bool | None) -> None:
    assert strict_yes(text) is strict
    assert yes_substring(text) is authors


def test_grades_in_any_case() -> None:
    assert [yes_in_any_case(text) for text in ("Yes.", "no", "Answer: yes", None)] == [True, False, True, None]


@pytest.mark.parametrize(
    ("text", "lists", "first"),
    [
        ("so [1, 3,]\n", [[1, 3]], [1, 3]),
        ("[ ]", [[]], []),
        ("[2 is not a line of hers] [3]", [[3]], []),
        ("[None] [\"1\"] [__import__('os')] [1.5] [-1]", [], []),
        ("[1] but rather []", [[1], []], [1]),
        (f"[{'9' * 5000}]", [], []),
        ("none", [], []),
    ],
)
def test_index_lists(text: str, lists: list[list[int]], first: list[int]) -> None:
    assert index_lists(text) == lists
    assert first_list(text) == first


@pytest.mark.parametrize(
    ("text", "outcome"),
    [("[1] and again [1]", "contradicts"), ("[1], or rather []", "unparsed"), ("[0] []", "consistent")],
)
def test_lists_that_differ_are_unparsed(tmp_path: Path, text: str, outcome: str) -> None:
    [judged] = load(written(tmp_path / "f.json", record(eval_index_consistency=[[5, text]])))
    assert outcomes(judged, "line_to_line") == [outcome]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "dialogue 1: record: Input should be a valid dictionary"),
        (record(conversation=[[0, 5]]), "dialogue 1: conversation.0.1: Input should be a valid string"),
        (record(conversation=[[0, "A: b"], [2, "C: d"]]), "dialogue 1: conversation: the lines are not numbered"),
        (record(pturn=3), "dialogue 1: pturn: Input should be 1 or 2"),
        (record(eval_prompt_consistency=[[6, "NO"]]), "dialogue 1: eval_prompt_consistency: there is no line 6"),
        (record(eval_survey_consistency=[["Who?", 1, [], []]]), "eval_survey_consistency: its lines are not those"),
        (
            record(eval_survey_consistency=[[LINES[i], 1, ["A"], ["YES", "NO"]] for i in (1, 3, 5)]),
            "eval_survey_consistency: 1 answers but 2 grades",
        ),
    ],
)
def test_broken_records_are_named(tmp_path: Path, value: Any, reason: str) -> None:
    path = written(tmp_path / "broken.json", value)
    with pytest.raises(TranscriptError) as caught:
        load(path, "consistent-llms")
    assert str(path) in str(caught.value) and reason in str(caught.value)


# ------------------------------------------------------------------------------------------------ authors' formulas


def test_pair_average_rises_with_length_where_eq_2_does_not(tmp_path: Path) -> None:
    def always_conflicting(turns: int) -> Judged:
        conversation = [[i, f"{'Ida' if i % 2 else 'Bo'}: line {i}"] for i in range(2 * turns)]
        index = [[i, f"[{i - 2}]"] for i in range(3, 2 * turns, 2)]
        changed = record(
            conversation=conversation,
            eval_prompt_consistency=[],
            eval_index_consistency=index,
            eval_survey_consistency=[],
        )
        return load(written(tmp_path / "f.json", changed))[0]

    short, long = always_conflicting(5), always_conflicting(20)
    assert pair_averaged_line_to_line(short) == pytest.approx(1 - 4 / 10)
    assert pair_averaged_line_to_line(long) == pytest.approx(0.9)
    assert dialogue_score(short.of("line_to_line")) == dialogue_score(long.of("line_to_line")) == 0


def test_authors_formulas_of_nothing(tmp_path: Path) -> None:
    [judged] = load(written(tmp_path / "f.json", record(eval_index_consistency=[], eval_survey_consistency=[])))
    assert (pair_averaged_line_to_line(judged), judge_answered_qa(judged)) == (None, None)


def test_judge_answered_qa_counts_unreadable_grades_as_wrong(file: Path) -> None:
    [judged] = load(file)
    assert judge_answered_qa(judged) == pytest.approx(1 / 6)
    [judged] = load(file, parse="authors")
    assert judge_answered_qa(judged) == pytest.approx(2 / 6)


# ----------------------------------------------------------------------------------------------- published numbers

DATA = os.environ.get("PERSONA_REFERENCE_DATA")
reference = pytest.mark.skipif(not DATA, reason="PERSONA_REFERENCE_DATA is not set")


def released(pattern: str) -> list[Path]:
    files = sorted(Path(DATA or "", "consistent-llms").glob(pattern))
    assert files, f"no {pattern} in {DATA}"
    return files


@reference
@pytest.mark.parametrize(
    ("pattern", "files", "score"),
    [
        ("chatting/sft_*.json", 4, 0.980),
        ("chatting/llama-8b-sft-ppo-*.json", 4, 0.981),
        ("therapy/sft_*.json", 1, 0.561),
    ],
)
def test_prompt_to_line_of_table_7(pattern: str, files: int, score: float) -> None:
    paths = released(pattern)
    assert len(paths) == files
    metric = score_file(paths, "consistent-llms", speaker=2, parse="authors").overall.metrics["prompt_to_line"]
    assert metric.score is not None and round(metric.score, 3) == score


@reference
@pytest.mark.parametrize(
    ("pattern", "pairs", "eq_2"),
    [("chatting/gemma-2-2b-it_0_20_*.json", 0.858, 0.718), ("therapy/sft_*.json", 0.857, 0.667)],
)
def test_line_to_line_of_dialogues_of_20_lines(pattern: str, pairs: float, eq_2: float) -> None:
    dialogues = [
        judged
        for path in released(pattern)
        for judged in load(path, parse="authors")
        if len(judged.transcript.turns) == 10
    ]
    by_pairs = [pair_averaged_line_to_line(judged) for judged in dialogues]
    by_eq_2 = [dialogue_score(judged.of("line_to_line")) for judged in dialogues]
    assert round(fmean(score for score in by_pairs if score is not None), 3) == pairs
    assert round(fmean(score for score in by_eq_2 if score is not None), 3) == eq_2


@reference
@pytest.mark.parametrize(
    ("pattern", "speaker"), [("chatting/*.json", 1), ("chatting/*.json", 2), ("therapy/*.json", 2)]
)
def test_scores_stored_in_the_files(pattern: str, speaker: int) -> None:
    """What the authors' code stored with each dialogue is what our reading of their verdicts gives."""
    compared = 0
    for path in released(pattern):
        records = load(path, speaker=speaker, parse="authors")
        for stored, judged in zip(json.loads(path.read_text()), records, strict=True):
            qa = judge_answered_qa(judged)
            found = {
                "prompt_consistency_score": dialogue_score(judged.of("prompt_to_line")),
                "index_consistency_score": pair_averaged_line_to_line(judged),
                "survey_consistency_score": None if qa is None else 5 * qa,
            }
            for field in found:
                if (key := f"P{speaker}_{field}") in stored:
                    assert found[field] == pytest.approx(stored[key]), f"{judged.transcript.id}: {key}"
                    compared += 1
    assert compared > 100


@reference
def test_strict_reading_of_the_released_verdicts_is_close_but_not_equal() -> None:
    [path] = released("therapy/sft_*.json")
    strict, authors = (
        score_file(path, parse=parse).overall.metrics["prompt_to_line"] for parse in ("strict", "authors")
    )
    assert strict.unparsed == pytest.approx(3 / 685)
    assert authors.unparsed == 0
    assert strict.score is not None and authors.score is not None and 0 < authors.score - strict.score < 0.005
