"""The conversation: what it asks, what leaves no trace, and how it ends early."""

import pytest

from persona_tasks.personas import load_bank
from persona_tasks.protocol.asks import Answer, Ask, Failure
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import draw_lines, make_partner
from persona_tasks.protocol.play import SILENCE, default_probes, play, spoken
from tests.scripted import LINES, MODEL_PARTNER, PERSONA, SCENARIO, SCRIPTED, echo


def run(answer=echo, partner=SCRIPTED, turns=4, **options):
    asked: list[Ask] = []

    def spy(asks: list[Ask]) -> list[Answer]:
        asked.extend(asks)
        return answer(asks)

    [transcript] = lockstep([play(PERSONA, SCENARIO, partner, turns, **options)], spy)
    return transcript, asked


def test_a_dialogue_has_as_many_turns_as_asked_and_the_partner_reads_its_script():
    transcript, _ = run(turns=4)
    assert [turn.partner for turn in transcript.turns] == LINES[:4]
    assert len(transcript.lines) == 4 and transcript.ended is None


def test_the_simulator_hears_its_persona_and_all_that_was_said():
    transcript, asked = run(turns=3, probes=())
    last = asked[-1]
    assert last.messages[0].role == "system" and "retired pilot in Oslo" in last.messages[0].content
    assert [m.role for m in last.messages[1:]] == ["user", "assistant", "user", "assistant", "user"]
    assert [m.content for m in last.messages if m.role == "assistant"] == transcript.lines[:2]


def test_probes_leave_no_trace_in_the_conversation():
    with_probes, asked = run(turns=4)
    without, _ = run(turns=4, probes=())
    assert with_probes.turns == without.turns
    assert [(p.turn, p.persona) for p in with_probes.probes] == [
        *[(0, False)] * 2, *[(1, True)] * 2, *[(2, True)] * 2, *[(4, True)] * 2
    ]  # fmt: skip
    floor = [ask for ask in asked if ask.purpose == "probe" and ask.turn == 0]
    assert all("pilot" not in ask.messages[0].content and len(ask.messages) == 2 for ask in floor)


def test_choice_probes_letter_their_options():
    _, asked = run(turns=1, mode="choice")
    assert "B. Pilot" in asked[-2].messages[-1].content


def test_a_model_partner_sees_the_roles_swapped():
    transcript, asked = run(partner=MODEL_PARTNER, turns=3, probes=())
    reply = [ask for ask in asked if ask.role == "partner"][-1]
    assert [m.role for m in reply.messages] == ["system", "assistant", "user", "assistant", "user"]
    assert [m.content for m in reply.messages if m.role == "user"] == transcript.lines[:2]
    assert transcript.turns[2].partner.startswith("reply ")


@pytest.mark.parametrize("role", ["simulator", "partner"])
def test_a_failure_ends_the_dialogue_and_keeps_what_was_said(role):
    def fails_at_turn_3(asks: list[Ask]) -> list[Answer]:
        return [Failure("full") if a.role == role and a.turn == 3 else e for a, e in zip(asks, echo(asks), strict=True)]

    transcript, _ = run(fails_at_turn_3, MODEL_PARTNER, turns=5, probes=())
    assert len(transcript.turns) == 2 and transcript.ended == f"{role}, turn 3: full"


def test_a_failed_probe_keeps_its_place():
    def no_probes(asks: list[Ask]) -> list[Answer]:
        return [Failure("full") if a.purpose == "probe" else e for a, e in zip(asks, echo(asks), strict=True)]

    transcript, _ = run(no_probes, turns=2)
    assert len(transcript.turns) == 2 and {p.answer for p in transcript.probes} == {""}


def test_thoughts_are_not_spoken_and_silence_is_kept():
    assert spoken("<think>hm\nhm</think> Yes. ") == "Yes." and spoken("<think>cut off") == ""

    def silent(asks: list[Ask]) -> list[Answer]:
        return ["<think>nothing to say</think>" for _ in asks]

    transcript, asked = run(silent, turns=2, probes=())
    assert transcript.lines == ["", ""]
    assert asked[1].messages[2].content == SILENCE


@pytest.mark.parametrize(("turns", "after"), [(8, (1, 4, 8)), (2, (1, 2)), (1, (1,)), (3, (1, 3))])
def test_default_probes(turns, after):
    assert default_probes(turns) == after


def test_lockstep_asks_each_round_of_all_dialogues_at_once_and_reports_each_end():
    rounds, ended = [], []

    def count(asks: list[Ask]) -> list[Answer]:
        rounds.append(len(asks))
        return echo(asks)

    dialogues = [play(PERSONA, SCENARIO, SCRIPTED, turns, ()) for turns in (3, 1, 2)]
    transcripts = lockstep(dialogues, count, lambda index, _: ended.append(index))
    assert rounds == [3, 2, 1] and ended == [1, 2, 0]
    assert [len(t.turns) for t in transcripts] == [3, 1, 2]


def test_lockstep_refuses_a_driver_that_loses_answers():
    with pytest.raises(RuntimeError, match="1 asks got 0 answers"):
        lockstep([play(PERSONA, SCENARIO, SCRIPTED, 1, ())], lambda asks: [])


def test_scripts_are_seeded_and_pools_do_not_mix():
    bank = load_bank()
    for persona in bank.select(split="all"):
        script = bank.scripts[persona.scenario]
        scenario = bank.scenarios[persona.scenario]
        one, again, other = (make_partner(persona, scenario, script, 12, seed, "scripted") for seed in (0, 0, 1))
        assert one == again and one.script != other.script and len(one.script) == 12
        assert not any("{" in line for line in one.script)
    pool = bank.scripts["chat"].train
    drawn = draw_lines(pool, "x")
    lines = [next(drawn) for _ in range(1 + 3 * len(pool.fact_questions))]
    assert set(pool.fact_questions) <= set(lines), "no line returns before its pool is used up"
