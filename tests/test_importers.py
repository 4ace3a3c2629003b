"""Reading dialogues from files; the reference paper's format is in test_reference_paper.py."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, write_eval_log
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageTool, ChatMessageUser
from inspect_ai.scorer import Score
from inspect_ai.tool import ToolCall

from persona_tasks.importers import FORMATS, load
from persona_tasks.inspect_tasks.tasks import drift
from persona_tasks.scoring import score_file, summarise
from persona_tasks.transcript import (
    METRICS,
    Judged,
    Probe,
    Transcript,
    TranscriptError,
    Turn,
    Verdict,
    append_jsonl,
    read_jsonl,
)
from tests.chat_server import ChatServer
from tests.inspect_runs import everybody, run, scores


def ours(name: str = "d", **changes: Any) -> Judged:
    transcript = Transcript(
        id=name,
        persona_id="p",
        persona_text="You are Ada.",
        scenario="chat",
        turns=[Turn(partner="Hi", line="Hello"), Turn(partner="And?", line="")],
        probes=[Probe(turn=2, question=0, mode="open", answer="cake")],
    )
    verdicts = [
        Verdict(metric="prompt_to_line", turn=1, outcome="consistent"),
        Verdict(metric="prompt_to_line", turn=2, outcome="contradicts", reason="mute"),
        Verdict(metric="qa", turn=2, probe=0, outcome="consistent"),
    ]
    return Judged(**{"transcript": transcript, "verdicts": verdicts, "judge": "mockllm/model"} | changes)


def said(*messages: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages], **fields}


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def turns(record: Judged) -> list[tuple[str, str]]:
    return [(turn.partner, turn.line) for turn in record.transcript.turns]


# ------------------------------------------------------------------------------------------------------------ ours


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("format", ["auto", "jsonl"])
def test_jsonl_comes_back_as_it_was(tmp_path: Path, count: int, format: str) -> None:
    records = [ours(f"d{n}") for n in range(count)]
    append_jsonl(tmp_path / "file", records)
    assert load(tmp_path / "file", format) == records


@pytest.mark.parametrize(("kept", "left"), [(-1, ["a", "b", "c"]), (-9, ["a", "c"])], ids=["no newline", "half a line"])
def test_records_after_an_interrupted_write_stand_on_lines_of_their_own(
    tmp_path: Path, kept: int, left: list[str]
) -> None:
    file = tmp_path / "a.jsonl"
    append_jsonl(file, [ours("a"), ours("b")])
    file.write_bytes(file.read_bytes()[:kept])
    assert [record.transcript.id for record in read_jsonl(file)] == left[:-1]
    append_jsonl(file, [ours("c")])
    assert [record.transcript.id for record in read_jsonl(file)] == left


# -------------------------------------------------------------------------------------------------------- messages

DIALOGUE = said(
    ("system", "You are Ida."), ("assistant", "Hi there."), ("user", "Hi."), ("assistant", ""), ("user", "Still there?")
)


def test_messages(tmp_path: Path) -> None:
    [record] = load(written(tmp_path / "chat.json", [DIALOGUE]))
    assert turns(record) == [("", "Hi there."), ("Hi.", "")]
    assert record.transcript.persona_text == "You are Ida."
    assert record.transcript.id == "chat-1"
    assert record.verdicts == []


def test_the_simulator_may_be_the_user(tmp_path: Path) -> None:
    [record] = load(written(tmp_path / "tau.json", [DIALOGUE]), simulator_role="user")
    assert turns(record) == [("Hi there.", "Hi."), ("", "Still there?")]


@pytest.mark.parametrize("layout", ["list", "lines", "pretty"])
def test_layouts_of_messages(tmp_path: Path, layout: str) -> None:
    dialogues = [DIALOGUE, said(("user", "Yes?"), ("assistant", "No.\u2028Never."))]
    text = {
        "list": json.dumps(dialogues),
        "lines": "\n".join(json.dumps(dialogue, ensure_ascii=False) for dialogue in dialogues) + "\n\n",
        "pretty": json.dumps(dialogues, indent=2),
    }[layout]
    records = load(written(tmp_path / "f", text))
    assert [turns(record) for record in records] == [[("", "Hi there."), ("Hi.", "")], [("Yes?", "No.\u2028Never.")]]
    assert [record.transcript.id for record in records] == ["f-1", "f-2"]


def test_a_single_dialogue_is_a_file_too(tmp_path: Path) -> None:
    assert len(load(written(tmp_path / "f.json", json.dumps(DIALOGUE, indent=1)))) == 1


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps([DIALOGUE]), encoding="utf-8-sig")
    assert len(load(tmp_path / "f.json")) == 1


def test_fields_of_a_dialogue(tmp_path: Path) -> None:
    named = said(("assistant", "Hi."), persona="Ada.", persona_id="ada", scenario="chat", id=7, model="x")
    [record] = load(written(tmp_path / "f.json", [named]))
    transcript = record.transcript
    assert (transcript.persona_text, transcript.persona_id, transcript.scenario, transcript.id) == (
        "Ada.",
        "ada",
        "chat",
        "7",
    )


def test_personas_are_told_apart_by_their_text(tmp_path: Path) -> None:
    texts = ["Ada", "Ida", "Ada"]
    dialogues = [said(("system", text), ("assistant", "Hi.")) for text in texts] + [said(("assistant", "Hi."))] * 2
    ids = [record.transcript.persona_id for record in load(written(tmp_path / "f.json", dialogues))]
    assert ids[0] == ids[2] != ids[1]
    assert len(set(ids[3:])) == 2  # nothing says that two dialogues without a persona are of the same one


def test_tools_are_no_speech_and_parts_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "One."}, {"type": "image_url", "image_url": {}}, "Two."]
    dialogue = said(
        ("user", "Look."), ("user", "Please."), ("assistant", parts), ("tool", "{}"), ("assistant", "Three.")
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    dialogue["messages"].insert(2, call)
    [record] = load(written(tmp_path / "f.json", [dialogue]))
    assert turns(record) == [("Look.\nPlease.", "One.\nTwo."), ("", "Three.")]


# --------------------------------------------------------------------------------------------------------- inspect


def log_of(path: Path, *samples: EvalSample) -> Path:
    spec = EvalSpec(
        created="2026-11-22T10:00:00+00:00",
        task="drift",
        dataset=EvalDataset(),
        model="mockllm/model",
        config=EvalConfig(),
    )
    write_eval_log(EvalLog(status="success", eval=spec, samples=list(samples)), path)
    return path


@pytest.mark.parametrize("suffix", [".eval", ".json"])
def test_our_logs_keep_transcript_and_verdicts(tmp_path: Path, suffix: str) -> None:
    record = ours()
    dumped = [verdict.model_dump(exclude_defaults=True) for verdict in record.verdicts]
    sample = EvalSample(
        id="p",
        epoch=1,
        input="Hi",
        target="",
        store={"DriftRecord:transcript": record.transcript.model_dump(mode="json")},
        scores={
            "prompt_to_line": Score(value=0.5, metadata={"verdicts": dumped[:2], "judge": "mockllm/model"}),
            "qa": Score(value=1.0, metadata={"verdicts": dumped[2:], "judge": "mockllm/model"}),
            "monitors": Score(value={"line_length": 1.0}),
        },
    )
    failed = [  # before anything was said, and before the solver began
        EvalSample(id=f"failed-{n}", epoch=1, input="Hi", target="", store=store)
        for n, store in enumerate([{"DriftRecord:transcript": None}, {}])
    ]
    assert load(log_of(tmp_path / f"log{suffix}", *failed, sample)) == [record]


def test_a_log_of_the_drift_task_gives_the_scores_inspect_printed(tmp_path: Path) -> None:
    with ChatServer(everybody) as server:
        log = run(drift(turns=2), server, tmp_path, limit=3)
    assert log.status == "success", log.error
    records = load(log.location)
    assert [len(record.transcript.turns) for record in records] == [2] * 3
    assert {record.judge for record in records} == {"openai-api/local/judge"}
    overall = summarise(records).overall
    found = {metric: overall.metrics[metric].score for metric in METRICS} | overall.monitors
    found["qa_without_persona"] = overall.qa_without_persona
    printed = scores(log)
    assert found == {name: pytest.approx(printed[name]) for name in found}


def test_logs_of_other_tasks(tmp_path: Path) -> None:
    messages = [
        ChatMessageSystem(content="You are Ida."),
        ChatMessageUser(content="Hi."),
        ChatMessageAssistant(content="", tool_calls=[ToolCall(id="1", function="look", arguments={})]),
        ChatMessageTool(content="42", tool_call_id="1"),
        ChatMessageAssistant(content="Forty-two."),
    ]
    samples = [
        EvalSample(id=1, epoch=epoch, input="Hi", target="", messages=messages, metadata={"persona_id": "ida", "n": 1})
        for epoch in (1, 2)
    ]
    first, second = load(log_of(tmp_path / "log.eval", *samples))
    assert turns(first) == [("Hi.", "Forty-two.")]
    assert first.transcript.persona_text == "You are Ida."
    assert (first.transcript.persona_id, first.transcript.scenario) == ("ida", "drift")
    assert first.transcript.id != second.transcript.id
    assert turns(load(tmp_path / "log.eval", simulator_role="user")[0]) == [("", "Hi.")]


# ------------------------------------------------------------------------------------------------------- bad input


def with_verdict(**verdict: Any) -> str:
    """Our JSON of a dialogue of two turns and one probe, with this verdict."""
    return json.dumps(ours().model_dump() | {"verdicts": [{"outcome": "unparsed", **verdict}]})


@pytest.mark.parametrize(
    ("text", "format", "reason"),
    [
        ("", "auto", "the file is empty"),
        ("hello", "auto", "not JSON"),
        ("[]", "auto", "cannot tell its format"),
        ("[[]]", "auto", "cannot tell its format"),
        ('[\n {"conversation": [}\n]', "auto", "not JSON (Expecting value: line 2"),
        ("[" * 100_000, "auto", "nested too deeply"),
        ('{"transcript": {}}\n', "auto", "line 1: transcript.id: Field required"),
        ('{"transcript": 1}\n', "jsonl", "line 1: transcript: Input should be"),
        (with_verdict(metric="qa", turn=1, probe=1), "auto", "dialogue 1: a qa verdict is on probe 1, but there are 1"),
        (with_verdict(metric="line_to_line", turn=10**9), "jsonl", "a line_to_line verdict is on turn 1000000000, but"),
        ('{"messages": []}\n{"messages": [\n', "auto", "line 2: not JSON"),
        ('{"messages": [1]}', "auto", "dialogue 1: messages.0: Input should be a valid dictionary"),
        (said(("narrator", "x")), "messages", "dialogue 1: message 1: role 'narrator' is none of"),
        (said(("user", 5)), "messages", "message 1: content is neither"),
        ([said(("user", "x"))], "messages", "no dialogue has a message of role 'assistant'"),
        ("{}", "inspect", "not readable as an Inspect log"),
        ("PK nothing", "auto", "not readable as an Inspect log"),
    ],
)
def test_bad_input_names_file_place_and_reason(tmp_path: Path, text: Any, format: str, reason: str) -> None:
    path = written(tmp_path / "bad.json", text)
    with pytest.raises(TranscriptError) as caught:
        load(path, format)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("format", ["auto", *FORMATS])
def test_missing_files_and_folders(tmp_path: Path, format: str) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(TranscriptError, match=tmp_path.name):
            load(path, format)


@pytest.mark.parametrize("format", ["auto", "jsonl", "messages", "consistent-llms"])
def test_bytes_that_are_no_text(tmp_path: Path, format: str) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"messages": "\xe9\xff"}')
    with pytest.raises(TranscriptError, match=r"latin\.json: 'utf-8' codec"):
        load(tmp_path / "latin.json", format)


def test_an_archive_that_is_no_log(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(TranscriptError, match=r"a\.eval: not readable as an Inspect log"):
        load(tmp_path / "a.eval")


@pytest.mark.parametrize(
    "options", [{"format": "xml"}, {"speaker": 3}, {"parse": "lenient"}, {"simulator_role": "system"}]
)
def test_unknown_options(tmp_path: Path, options: dict[str, Any]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(TranscriptError, match=f"{name}: {value!r} is none of"):
        load(written(tmp_path / "f.json", [DIALOGUE]), **options)


# --------------------------------------------------------------------------------------------------------- scoring


def test_scoring_takes_files_together(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "a.jsonl", [ours("a"), ours("b")])
    messages = written(tmp_path / "b.json", [DIALOGUE])
    summary = score_file([tmp_path / "a.jsonl", messages])
    assert summary.overall.dialogues == 3
    assert summary.overall.metrics["prompt_to_line"].score == pytest.approx(1 / 2)
    assert (summary.scenarios["chat"].dialogues, summary.scenarios["unnamed"].dialogues) == (2, 1)
    assert score_file(tmp_path / "a.jsonl") == score_file([str(tmp_path / "a.jsonl")])


def test_scoring_without_verdicts_says_so(tmp_path: Path) -> None:
    summary = score_file(written(tmp_path / "b.json", [DIALOGUE]))
    assert summary.overall.metrics["prompt_to_line"].score is None
    assert summary.overall.monitors["line_length"] == pytest.approx(1)
    assert summary.notes == ["no verdicts are stored with these dialogues: only the monitors are computed"]
