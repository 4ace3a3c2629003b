"""Rolling out, judging and branching: nothing is lost or repeated when a stage is interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from persona_tasks.embedded.answers import MAX_TOKENS
from persona_tasks.embedded.engine import Engine
from persona_tasks.personas import load_bank
from persona_tasks.protocol.asks import Answer, Ask, Failure
from persona_tasks.transcript import TranscriptError, read_jsonl
from tests.chat_server import SERVER_ERROR, ChatServer, Request
from tests.judged import judged, written
from tests.scripted import verdict_for
from tests.tiny import tiny_model_folder
from training import data
from training.data import DataError, Simulator, branch, branch_turn, judge_file, main, rollout
from training.people import training_bank

PERSONAS = load_bank().select("all", "train")[:3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=8192)


@pytest.fixture(scope="module")
def simulator(folder: Path) -> Simulator:
    return Simulator(Engine.load(str(folder), "float32"), temperature=0.8)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two dialogues, and short lines."""
    monkeypatch.setattr(data, "BATCH", 2)
    monkeypatch.setitem(MAX_TOKENS, "line", 6)


class Interrupted(Exception):
    pass


def stopping_after(calls: int, answers: Callable[[Sequence[Any]], list[Answer]]) -> Callable[[Sequence[Any]], Any]:
    seen: list[int] = []

    def answer(asks: Sequence[Any]) -> list[Answer]:
        seen.append(len(asks))
        if len(seen) > calls:
            raise Interrupted
        return answers(asks)

    return answer


def judging(asks: Sequence[Ask]) -> list[Answer]:
    return [verdict_for(ask) for ask in asks]


def test_an_interrupted_rollout_goes_on_to_the_same_dialogues(tmp_path: Path, simulator: Simulator) -> None:
    whole, halves = tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"
    rollout(simulator, "tiny", PERSONAS, 2, range(2), whole)
    with pytest.raises(Interrupted):  # in the second of three batches
        rollout(stopping_after(3, simulator), "tiny", PERSONAS, 2, range(2), halves)  # type: ignore[arg-type]
    assert len(list(read_jsonl(halves))) == 2
    with halves.open("a") as file:
        file.write('{"transcript": {"id": "cut')  # the machine went down while it wrote
    rollout(simulator, "tiny", PERSONAS, 2, range(2), halves)
    assert halves.read_text() == whole.read_text()
    records = list(read_jsonl(whole))
    assert [r.transcript.id for r in records] == [f"{p.id}/{seed}" for seed in range(2) for p in PERSONAS]
    assert {r.transcript.model for r in records} == {"tiny"} and {len(r.transcript.turns) for r in records} == {2}


def test_dialogues_of_other_seeds_differ_from_the_first_line_on(tmp_path: Path, simulator: Simulator) -> None:
    bank = load_bank()
    asks = [next(data.seeded(data.scripted(bank.persona(PERSONAS[0].id), 1, 0)[0], seed))[0] for seed in range(4)]
    assert len({ask.messages for ask in asks}) == 1
    answers = simulator(asks)  # type: ignore[arg-type]
    assert len(set(answers)) > 1
    assert simulator(asks[::-1]) == answers[::-1]  # type: ignore[arg-type]


def test_judging_fills_in_what_is_missing_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    source = written(tmp_path / "raw.jsonl", [judged(p.id, "++") for p in PERSONAS])
    bare = [r.model_copy(update={"verdicts": [], "judge": ""}) for r in read_jsonl(source)]
    source.unlink()
    written(source, bare)
    whole, halves = tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"
    judge_file(source, judging, "hash", ["prompt_to_line", "line_to_line"], whole)
    with pytest.raises(Interrupted):
        judge_file(source, stopping_after(1, judging), "hash", ["prompt_to_line", "line_to_line"], halves)
    assert len(list(read_jsonl(halves))) == 2
    judge_file(source, judging, "hash", ["prompt_to_line", "line_to_line"], halves)
    assert halves.read_text() == whole.read_text()
    for record in read_jsonl(whole):
        assert record.judge == "hash"
        assert [(v.metric, v.turn) for v in record.verdicts] == [
            ("prompt_to_line", 1),
            ("prompt_to_line", 2),
            ("line_to_line", 2),
        ]


def test_a_judge_that_fails_leaves_no_verdict_behind_and_is_asked_again(tmp_path: Path) -> None:
    records = [r.model_copy(update={"verdicts": [], "judge": ""}) for r in [judged(p.id, "+") for p in PERSONAS]]
    source, out = written(tmp_path / "raw.jsonl", records), tmp_path / "out.jsonl"
    first = records[0].transcript.lines[0]

    def sick(asks: Sequence[Ask]) -> list[Answer]:
        return [Failure("no power") if first in ask.messages[-1].content else verdict_for(ask) for ask in asks]

    with pytest.raises(DataError, match=r"no power.*1 dialogues are not judged"):
        judge_file(source, sick, "hash", ["prompt_to_line"], out)
    assert len(list(read_jsonl(out))) == 2  # the others are saved
    calls: list[int] = []

    def well(asks: Sequence[Ask]) -> list[Answer]:
        calls.append(len(asks))
        return judging(asks)

    judge_file(source, well, "hash", ["prompt_to_line"], out)
    assert calls == [1] and len(list(read_jsonl(out))) == 3


def test_a_judge_that_is_down_stops_the_run_at_once(tmp_path: Path) -> None:
    records = [r.model_copy(update={"verdicts": [], "judge": ""}) for r in [judged(p.id, "+") for p in PERSONAS]]
    source, calls = written(tmp_path / "raw.jsonl", records), []

    def down(asks: Sequence[Ask]) -> list[Answer]:
        calls.append(len(asks))
        return [Failure("down") for _ in asks]

    with pytest.raises(DataError, match="down"):
        judge_file(source, down, "hash", ["prompt_to_line"], tmp_path / "out.jsonl")
    assert calls == [2]


def test_verdicts_of_two_judges_are_not_mixed(tmp_path: Path) -> None:
    source = written(tmp_path / "judged.jsonl", [judged(PERSONAS[0].id, "+-")])
    with pytest.raises(DataError, match=r"has verdicts by 'a judge', not by 'another'"):
        judge_file(source, judging, "another", ["prompt_to_line"], tmp_path / "out.jsonl")


def test_the_branch_turn_is_the_first_contradiction_with_room_for_the_segment() -> None:
    assert [branch_turn(judged(PERSONAS[0].id, signs), 2) for signs in ("+-+-", "-+++", "+++-", "++++", "-")] == [
        2,
        1,
        3,
        None,
        None,
    ]


def test_branches_share_the_prefix_and_the_partner_and_differ_after_it(tmp_path: Path, simulator: Simulator) -> None:
    parents = [judged(PERSONAS[0].id, "+-+"), judged(PERSONAS[1].id, "+++"), judged(PERSONAS[2].id, "-+?")]
    source = written(tmp_path / "judged.jsonl", parents)
    whole, halves = tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"
    branch(source, simulator, "a model", 2, range(3), whole)
    with pytest.raises(Interrupted):
        branch(source, stopping_after(3, simulator), "a model", 2, range(3), halves)  # type: ignore[arg-type]
    branch(source, simulator, "a model", 2, range(3), halves)
    assert whole.read_text() == halves.read_text()
    made = {record.transcript.id: record for record in read_jsonl(whole)}
    assert sorted(made) == [f"{parents[i].transcript.id}/{k}" for i in (0, 2) for k in range(3)]
    for parent, turn in ((parents[0], 2), (parents[2], 1)):
        own = [made[f"{parent.transcript.id}/{k}"] for k in range(3)]
        for record in own:
            assert record.transcript.metadata == {"parent": parent.transcript.id, "branch": turn, "segment": 2}
            assert len(record.transcript.turns) == turn + 1
            assert record.transcript.turns[: turn - 1] == parent.transcript.turns[: turn - 1]
            heard = [said.partner for said in record.transcript.turns]
            assert heard == [said.partner for said in parent.transcript.turns[: turn + 1]]
            assert record.verdicts == parent.verdicts[: turn - 1]
        assert len({tuple(record.transcript.lines) for record in own}) > 1

    # and only what is new is judged
    asked: list[int] = []

    def counting(asks: Sequence[Ask]) -> list[Answer]:
        asked.append(len(asks))
        return judging(asks)

    judge_file(whole, counting, "a judge", ["prompt_to_line"], tmp_path / "judged-branches.jsonl")
    assert sum(asked) == 6 * 2
    for record in read_jsonl(tmp_path / "judged-branches.jsonl"):
        assert [v.turn for v in record.verdicts] == list(range(1, len(record.transcript.turns) + 1))


def test_dialogues_of_another_model_or_partner_are_not_branched(tmp_path: Path, simulator: Simulator) -> None:
    source = written(tmp_path / "judged.jsonl", [judged(PERSONAS[0].id, "-+")])
    with pytest.raises(DataError, match="was held by 'a model'"):
        branch(source, simulator, "tiny", 1, range(1), tmp_path / "out.jsonl")
    strange = judged(PERSONAS[0].id, "-+")
    strange.transcript.turns[0].partner = "Not in any script."
    with pytest.raises(DataError, match="not those of the script"):
        branch(written(tmp_path / "b.jsonl", [strange]), simulator, "a model", 1, range(1), tmp_path / "out.jsonl")
    bare = judged(PERSONAS[0].id, "-+").model_copy(update={"verdicts": []})
    with pytest.raises(DataError, match="no line is judged"):
        branch(written(tmp_path / "c.jsonl", [bare]), simulator, "a model", 1, range(1), tmp_path / "out.jsonl")


def test_the_stages_as_commands_with_an_embedded_judge(tmp_path: Path, folder: Path) -> None:
    raw, out = tmp_path / "new" / "raw.jsonl", tmp_path / "judged.jsonl"
    dev = ["--split", "dev", "--scenario", "chat"]
    main(["rollout", "--model", str(folder), *dev, "--turns", "1", "--dialogues", "2", "--out", str(raw)])
    main(["judge", str(raw), "--judge", str(folder), "--out", str(out)])
    records = list(read_jsonl(out))
    assert len(records) == 2 * len(load_bank().select("chat", "dev"))
    assert all(0 < (v.p_contradicts or 0) < 1 for record in records for v in record.verdicts)


def test_the_further_people_are_held_dialogues_with_too(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "raw.jsonl"
    main(["rollout", "--model", str(folder), "--further", "--scenario", "chat", "--turns", "1", "--out", str(out)])
    held = {record.transcript.persona_id for record in read_jsonl(out)}
    ours = {persona.id for persona in load_bank().select("chat", "train")}
    assert held == {persona.id for persona in training_bank().select("chat", "train")} > ours


def test_an_endpoint_as_judge_and_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [r.model_copy(update={"verdicts": [], "judge": ""}) for r in [judged(PERSONAS[0].id, "+++")]]
    source, out = written(tmp_path / "raw.jsonl", records), tmp_path / "out.jsonl"
    monkeypatch.setattr("persona_tasks.lm_eval_tasks.roles.RETRIES", 0)
    with ChatServer(lambda _: SERVER_ERROR) as server, pytest.raises(SystemExit, match="error: judge failed"):
        main(["judge", str(source), "--judge", f"openai:j@{server.url}", "--out", str(out)])
    assert out.read_text() == ""

    def says(request: Request) -> str:
        return json.dumps({"reason": "r", "verdict": "contradicts" if "Line 2" in request.last else "consistent"})

    with ChatServer(says) as server:
        main(["judge", str(source), "--judge", f"openai:j@{server.url}", "--out", str(out)])
    [record] = read_jsonl(out)
    assert [v.outcome for v in record.verdicts] == ["consistent", "contradicts", "consistent"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: there is no file .*none\.jsonl"):
        main(["judge", str(tmp_path / "none.jsonl"), "--judge", "persona/smollm2-135m", "--out", str(tmp_path / "o")])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"transcript": 1}\n')
    with pytest.raises(TranscriptError, match=r"broken\.jsonl, line 1"):
        judge_file(broken, judging, "j", ["prompt_to_line"], tmp_path / "out.jsonl")
    with pytest.raises(SystemExit, match="error: judge='nobody'"):
        main(["judge", str(broken), "--judge", "nobody", "--out", str(tmp_path / "out.jsonl")])
