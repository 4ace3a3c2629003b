"""Reading dialogues from files, ours and foreign ones, into `Judged` records.

jsonl            ours: one `Judged` per line
consistent-llms  the reference paper's JSON with its stored verdicts, see `reference_paper`
messages         OpenAI-style: a JSON list of dialogues or one per line, {"messages": [{"role", "content"}, ...]}
inspect          an Inspect log: of our tasks, with verdicts, or of any other, from its messages
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from persona_tasks.reference_paper import PARSES, persona_key, read_record
from persona_tasks.transcript import Judged, Transcript, TranscriptError, Turn, Verdict, read_jsonl

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample

ROLES = ("assistant", "user")
FORMATS = ("jsonl", "consistent-llms", "messages", "inspect")
OUR_STORE_KEY = "DriftRecord:transcript"  # where our Inspect tasks keep the transcript


class Dialogue(BaseModel):
    """A dialogue in `messages` form. Without `persona` its system messages are the persona."""

    messages: list[dict[str, Any]]
    persona: str | None = None
    persona_id: str | None = None
    scenario: str | None = None
    id: str | int | None = None


def load(
    path: str | Path,
    format: str = "auto",
    *,
    speaker: int = 2,
    parse: str = "strict",
    simulator_role: str = "assistant",
) -> list[Judged]:
    """Read the dialogues of a file. An option that the file's format does not have is not used.

    Args:
        path: The file.
        format: One of `FORMATS`, or "auto" to tell by the content.
        speaker: consistent-llms: which speaker is the simulator, 1 or 2. The paper reports the second.
        parse: consistent-llms: "strict", or "authors" to read the judge's answers as the released code does.
        simulator_role: messages, and logs of other Inspect tasks: whose messages are the simulator's. "user" for
            benchmarks in which the simulated user talks to an agent, such as tau2.

    Raises:
        TranscriptError: Names the file, the line or dialogue, and the reason.
    """
    path = Path(path)
    _one_of("format", format, ("auto", *FORMATS))
    _one_of("speaker", speaker, (1, 2))
    _one_of("parse", parse, PARSES)
    _one_of("simulator_role", simulator_role, ROLES)
    with _naming(str(path)):
        format = detect(path) if format == "auto" else format
    if format == "inspect":
        return _read_inspect(path, simulator_role)
    if format == "jsonl":
        return _read_ours(path)
    if format == "consistent-llms":
        return _read_consistent_llms(path, speaker, parse)
    return _read_messages(path, simulator_role)


def detect(path: Path) -> str:
    """The format of a file, told by its content.

    Raises:
        ValueError: It is none of `FORMATS`.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":  # a zip archive, as .eval logs are
            return "inspect"
    _, first = next(_dialogues(path), ("", None))
    marks = {"transcript": "jsonl", "conversation": "consistent-llms", "messages": "messages", "eval": "inspect"}
    found = [format for mark, format in marks.items() if isinstance(first, dict) and mark in first]
    if not found:
        raise ValueError(f"cannot tell its format; name one of {', '.join(FORMATS)}")
    return found[0]


def _dialogues(path: Path) -> Iterator[tuple[str, Any]]:
    """Each dialogue of a JSON list, of JSON lines, or the one JSON object there is; and how to name it in errors."""
    with _naming(str(path)):
        text = path.read_text(encoding="utf-8-sig").strip()
        if not text:
            raise ValueError("the file is empty")
        lines = text.split("\n")
        json_lines = len(lines) > 1 and _is_json(lines[0])
        if not json_lines:
            value = json.loads(text)
            dialogues = value if isinstance(value, list) else [value]
    if not json_lines:
        yield from ((f"{path}, dialogue {number}", dialogue) for number, dialogue in enumerate(dialogues, start=1))
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            with _naming(where):
                value = json.loads(line)
            yield where, value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _read_ours(path: Path) -> list[Judged]:
    with _naming(str(path)):
        records = list(read_jsonl(path))
    for number, record in enumerate(records, start=1):
        with _naming(f"{path}, dialogue {number}"):
            _check_places(record)
    return records


def _read_consistent_llms(path: Path, speaker: int, parse: str) -> list[Judged]:
    records: list[Judged] = []
    for where, value in _dialogues(path):
        with _naming(where):
            records.append(read_record(value, f"{path.stem}-{len(records) + 1}", speaker, parse))
    return records


def _check_places(record: Judged) -> None:
    """Verdicts and probes must point into the dialogue, or the statistics would be of turns that never were."""
    transcript = record.transcript
    turns, probes = len(transcript.turns), len(transcript.probes)
    for number, probe in enumerate(transcript.probes):
        if probe.turn > turns:
            raise ValueError(f"probe {number} is after turn {probe.turn}, but there are {turns} turns")
    for verdict in record.verdicts:
        if verdict.probe is None and not 1 <= verdict.turn <= turns:
            raise ValueError(f"a {verdict.metric} verdict is on turn {verdict.turn}, but there are {turns} turns")
        if verdict.probe is not None and not 0 <= verdict.probe < probes:
            raise ValueError(f"a {verdict.metric} verdict is on probe {verdict.probe}, but there are {probes} probes")


# -------------------------------------------------------------------------------------------------------- messages


def _read_messages(path: Path, simulator_role: str) -> list[Judged]:
    records: list[Judged] = []
    for where, value in _dialogues(path):
        with _naming(where):
            dialogue = Dialogue.model_validate(value)
            records.append(_from_messages(dialogue, f"{path.stem}-{len(records) + 1}", simulator_role))
    _check_anything_said(records, path, simulator_role)
    return records


def _from_messages(dialogue: Dialogue, name: str, simulator_role: str) -> Judged:
    """Turns from messages.

    What the partner says in several messages is one partner's line; each message of the simulator is a line, with an
    empty partner's line where nobody spoke between. What the partner says last, unanswered, is in no turn. Tool
    messages, and messages that only call tools, are not speech. An empty message of the simulator is an empty line.
    """
    system: list[str] = []
    heard: list[str] = []
    turns: list[Turn] = []
    for number, message in enumerate(dialogue.messages, start=1):
        role, text = message.get("role"), _text(message.get("content"), number)
        only_calls = not text and (message.get("tool_calls") or message.get("function_call"))
        if role in ("tool", "function") or only_calls:
            continue
        if role in ("system", "developer"):
            system.append(text)
        elif role == simulator_role:
            turns.append(Turn(partner="\n".join(heard), line=text))
            heard = []
        elif role in ROLES:
            heard.append(text)
        else:
            raise ValueError(f"message {number}: role {role!r} is none of system, user, assistant, tool")
    name = name if dialogue.id is None else str(dialogue.id)
    persona = "\n\n".join(system) if dialogue.persona is None else dialogue.persona
    transcript = Transcript(
        id=name,
        persona_id=dialogue.persona_id or persona_key(persona) or name,
        persona_text=persona,
        scenario=dialogue.scenario or "",
        turns=turns,
    )
    return Judged(transcript=transcript)


def _text(content: Any, number: int) -> str:
    """The text of a message: a string, or a list of parts of which those without text (images) are skipped."""
    if content is None or isinstance(content, str):
        return (content or "").strip()
    if isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content):
        texts = (part if isinstance(part, str) else part.get("text") for part in content)
        return "\n".join(text for text in texts if isinstance(text, str)).strip()
    raise ValueError(f"message {number}: content is neither a text nor a list of parts")


def _check_anything_said(records: Sequence[Judged], path: Path, simulator_role: str) -> None:
    if records and not any(record.transcript.turns for record in records):
        raise TranscriptError(
            f"{path}: no dialogue has a message of role {simulator_role!r}; "
            f"is the simulated user the other one (simulator_role)?"
        )


# --------------------------------------------------------------------------------------------------------- inspect


def _read_inspect(path: Path, simulator_role: str) -> list[Judged]:
    from inspect_ai.log import read_eval_log

    try:
        log = read_eval_log(path, exclude_fields={"events", "timelines"})  # most of a log; timelines refer to events
    except Exception as error:  # whatever zip, JSON or validation makes of a broken file
        problem = str(error).partition("\n")[0]
        raise TranscriptError(f"{path}: not readable as an Inspect log ({type(error).__name__}: {problem})") from None
    if not log.samples:
        raise TranscriptError(f"{path}: the log holds no samples (status {log.status})")
    records = []
    ours = any(OUR_STORE_KEY in sample.store for sample in log.samples)
    for sample in log.samples:
        with _naming(f"{path}, sample {sample.id} epoch {sample.epoch}"):
            if not ours:
                records.append(_from_sample(sample, log.eval.task, simulator_role))
            elif sample.store.get(OUR_STORE_KEY) is not None:  # else it failed before anything was said
                records.append(_from_our_sample(sample))
    if not ours:
        _check_anything_said(records, path, simulator_role)
    return records


def _from_our_sample(sample: EvalSample) -> Judged:
    scores = [score.metadata or {} for score in (sample.scores or {}).values()]
    record = Judged(
        transcript=Transcript.model_validate(sample.store[OUR_STORE_KEY]),
        verdicts=[Verdict.model_validate(verdict) for score in scores for verdict in score.get("verdicts", [])],
        judge=next((score["judge"] for score in scores if "judge" in score), ""),
    )
    _check_places(record)
    return record


def _from_sample(sample: EvalSample, task: str, simulator_role: str) -> Judged:
    """A sample of any other task: its messages, and `persona_id` and `scenario` from its metadata if they are there."""
    messages = [
        {"role": message.role, "content": message.text, "tool_calls": getattr(message, "tool_calls", None)}
        for message in sample.messages
    ]
    given = {key: sample.metadata.get(key) for key in ("persona_id", "scenario")}
    about = {key: value for key, value in given.items() if isinstance(value, str)}
    dialogue = Dialogue.model_validate({"messages": messages, "scenario": task, **about})
    return _from_messages(dialogue, f"{sample.id}/{sample.epoch}", simulator_role)


# ---------------------------------------------------------------------------------------------------------- errors


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn what goes wrong inside into a `TranscriptError` that says where."""
    try:
        yield
    except TranscriptError:
        raise
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "record"
        raise TranscriptError(f"{where}: {field}: {problem['msg']}") from None
    except json.JSONDecodeError as error:
        raise TranscriptError(f"{where}: not JSON ({error})") from None
    except OSError as error:
        raise TranscriptError(f"{where}: {error.strerror or error}") from None
    except RecursionError:
        raise TranscriptError(f"{where}: nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise TranscriptError(f"{where}: {error}") from None


def _one_of(name: str, value: object, choices: Iterable[object]) -> None:
    if value not in choices:
        raise TranscriptError(f"{name}: {value!r} is none of {', '.join(map(str, choices))}")
