"""The judging: polarity, repair, what is never a verdict, and material that talks to the judge."""

import json
import re

import pytest
import yaml

from persona_tasks.personas import BANK
from persona_tasks.protocol.asks import Answer, Ask, Failure
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.play import play
from persona_tasks.protocol.prompts import quoted, render
from persona_tasks.protocol.verdicts import (
    ConflictReply,
    LineReply,
    Unreadable,
    match_letter,
    match_text,
    read_reply,
)
from persona_tasks.transcript import Probe, Transcript, Turn
from tests.scripted import PERSONA, SCENARIO, SCRIPTED, echo, judging

ATTACKS = yaml.safe_load((BANK / "calibration" / "injections.yaml").read_text())
GOOD = json.dumps({"reason": "fits", "verdict": "consistent"})
BAD = json.dumps({"reason": "does not fit", "verdict": "contradicts"})


def dialogue(*lines: str) -> Transcript:
    return Transcript(
        id="t", persona_id="p", persona_text="You are Mina.", turns=[Turn(partner="Hm?", line=line) for line in lines]
    )


def verdicts(transcript, reply, metrics=("prompt_to_line",), **options):
    asked: list[Ask] = []

    def answer(ask: Ask) -> Answer:
        asked.append(ask)
        return reply(ask)

    [result] = lockstep([judge(transcript, metrics, **options)], judging(answer))
    return result, asked


def test_polarity_of_prompt_to_line():
    [good], _ = verdicts(dialogue("I am Mina."), lambda ask: GOOD)
    [bad], _ = verdicts(dialogue("I am Mina."), lambda ask: BAD)
    assert (good.outcome, bad.outcome) == ("consistent", "contradicts")


def test_polarity_of_line_to_line_and_numbers_outside_the_history():
    def reply(ask: Ask) -> str:
        return json.dumps({"reason": "r", "conflicts": {2: [], 3: [1, 2, 9]}[ask.turn]})

    found, asked = verdicts(dialogue("a b", "c d", "e f"), reply, ["line_to_line"])
    assert [(v.turn, v.outcome, v.conflicts) for v in found] == [(2, "consistent", []), (3, "contradicts", [1, 2])]
    assert '1: "a b"' in asked[-1].messages[-1].content and "Mina" not in str(asked[-1].messages)

    [invented], _ = verdicts(dialogue("a", "b"), lambda ask: '{"reason": "r", "conflicts": [7]}', ["line_to_line"])
    assert invented.outcome == "unparsed", "a number that is no earlier line is not a contradiction, nor its absence"


def test_the_partners_line_is_shown_only_on_request():
    _, [without] = verdicts(dialogue("Yes."), lambda ask: GOOD)
    _, [shown] = verdicts(dialogue("Yes."), lambda ask: GOOD, context=True)
    assert "Hm?" not in without.messages[-1].content and '"Hm?"' in shown.messages[-1].content


GARBAGE = ["", "It depends.", '{"verdict": "maybe", "reason": ""}', "{" * 3000, '{"reason": 1}']


@pytest.mark.parametrize("garbage", GARBAGE)
def test_one_repair_turn_then_unparsed(garbage):
    [still], asked = verdicts(dialogue("Hi."), lambda ask: garbage)
    assert still.outcome == "unparsed" and still.reason.startswith("unreadable") and still.answer == garbage
    assert len(asked) == 2 and asked[0].messages != asked[1].messages and asked[1].messages[:2] == asked[0].messages
    [repaired], _ = verdicts(dialogue("Hi."), lambda ask: BAD if len(ask.messages) > 2 else garbage)
    assert repaired.outcome == "contradicts"


def test_a_judge_that_fails_for_good_is_not_asked_again():
    [failed], asked = verdicts(dialogue("Hi."), lambda ask: Failure("HTTP 500"))
    assert failed.outcome == "unparsed" and "HTTP 500" in failed.reason and len(asked) == 1


def test_an_empty_line_is_not_judged():
    found, asked = verdicts(dialogue("", "Hi.", ""), lambda ask: GOOD)
    assert [v.outcome for v in found] == ["unparsed", "consistent", "unparsed"] and len(asked) == 1
    found, asked = verdicts(dialogue("", "Hi.", "Ho."), lambda ask: '{"reason": "", "conflicts": []}', ["line_to_line"])
    assert [v.outcome for v in found] == ["unparsed", "consistent"]


@pytest.mark.parametrize("line", ["🙂‍↔️ 👩🏽‍🚀", "שלום, אני מינה ‮evil", "x " * 10_000, 'He said "}{"\\ \n\t\0 end'])
def test_odd_lines_reach_the_judge_as_one_json_string(line):
    [verdict], [ask] = verdicts(dialogue(line), lambda ask: GOOD)
    body = ask.messages[-1].content
    string = re.search(r"^The line: (.*)$", body, re.M)
    assert string and json.loads(string[1]) == line
    assert verdict.outcome == "consistent"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a["id"])
def test_material_is_never_read_as_a_verdict(attack):
    line = attack["line"]
    prompt = render("prompt_to_line_question", line=line, partner_line=None)
    assert not re.search(r"[{}]", prompt.split("Reply with")[0])
    repeats = [line, f"The line is {line}", f"```\n{line}\n```", f"It says {quoted(line)}", line.replace(" ", "")]
    for repeat in repeats:  # a judge that only repeats the material has not judged
        for form in (LineReply, ConflictReply):
            with pytest.raises(Unreadable):
                read_reply(repeat, form, (line,))
        # and a judge that repeats it, and decides, is read as it decided
        told = json.dumps({"reason": f"The line says {line}", "verdict": "contradicts"})
        for answer in (f"{repeat}\n{BAD}", told, f"{BAD}\nThe line was: {repeat}"):
            assert read_reply(answer, LineReply, (line,)).verdict == "contradicts"


@pytest.mark.parametrize(
    ("said", "drift"),
    [
        ({"verdict": "contradicts", "drift": "helper_voice"}, "helper_voice"),
        ({"verdict": "contradicts", "drift": "none"}, None),
        ({"verdict": "contradicts", "drift": "sarcasm"}, None),
        ({"verdict": "contradicts", "drift": None}, None),
        ({"verdict": "contradicts", "drift": ["helper_voice"]}, None),
        ({"verdict": "contradicts", "drift": "self_contradiction"}, None),
        ({"verdict": "consistent", "drift": "helper_voice"}, None),
        ({"verdict": "consistent"}, None),
    ],
)
def test_a_drift_is_named_with_a_contradiction_and_never_costs_a_verdict(said, drift):
    [found], asked = verdicts(dialogue("Hi."), lambda ask: json.dumps({"reason": "r", **said}))
    assert (found.outcome, found.drift, len(asked)) == (said["verdict"], drift, 1)


def test_there_are_twenty_attacks():
    assert len({attack["line"] for attack in ATTACKS}) == 20


def test_the_last_valid_verdict_counts_and_words_do_not():
    assert read_reply(f"First I thought {GOOD} but no: {BAD}", LineReply).verdict == "contradicts"
    assert read_reply(f"consistent consistent {BAD} NO wait, YES", LineReply).verdict == "contradicts"
    with pytest.raises(Unreadable):
        read_reply("contradicts", LineReply)
    with pytest.raises(Unreadable):
        read_reply('{"reason": "numbers as words", "conflicts": ["1"]}', ConflictReply)


QUESTION = PERSONA.questions[0]


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("Pilot", 1),
        ("I was a pilot, for thirty years.", 1),
        ("the PILOT!", 1),
        ("I was never a pilot.", None),
        ("Pilot or nurse, who knows", None),
        ("I wasn't a nurse.", None),
        ("I'd rather talk about you.", None),
        ("I copiloted a nurser", None),
        ("", None),
    ],
)
def test_text_matches_only_where_it_is_certain(answer, option):
    assert match_text(answer, QUESTION) == option


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("B", 1),
        ("b", None),
        ("(C).", 2),
        ("B. Pilot", 1),
        ("The answer is D.", 3),
        ("A pilot", 1),
        ("Anything", None),
        ("E)", 4),
    ],
)
def test_letters(answer, option):
    assert match_letter(answer, QUESTION) == option


def test_questions_are_matched_by_text_where_certain_and_by_the_judge_where_not():
    transcript = dialogue("Hi.")
    transcript.questions = list(PERSONA.questions)
    said = ["I was a pilot.", "I flew planes.", "Nurse", "No idea.", ""]
    transcript.probes = [Probe(turn=1, question=0, mode="open", answer=text) for text in said]
    transcript.probes.append(Probe(turn=0, question=1, mode="open", answer="Cat", persona=False))

    def reply(ask: Ask) -> str:
        option = 2 if "planes" in ask.messages[-1].content else 0
        return json.dumps({"reason": "r", "option": option})

    found, asked = verdicts(transcript, reply, ["qa"])
    outcomes = ["consistent", "consistent", "contradicts", "unparsed", "unparsed", "consistent"]
    assert [v.outcome for v in found] == outcomes
    assert [v.metric for v in found] == ["qa"] * 5 + ["qa_without_persona"]
    assert len(asked) == 2
    assert not any("retired" in str(ask.messages) or "right" in ask.messages[-1].content for ask in asked)


def test_all_three_metrics_in_order_and_one_round():
    [transcript] = lockstep([play(PERSONA, SCENARIO, SCRIPTED, 4)], echo)
    rounds = []

    def count(asks: list[Ask]) -> list[Answer]:
        rounds.append(len(asks))
        return echo(asks)

    [found] = lockstep([judge(transcript)], count)
    assert [v.metric for v in found] == ["prompt_to_line"] * 4 + ["line_to_line"] * 3 + [
        "qa_without_persona"] * 2 + ["qa"] * 6  # fmt: skip
    assert len(rounds) == 1
    assert {v.outcome for v in found} >= {"consistent", "contradicts"}
