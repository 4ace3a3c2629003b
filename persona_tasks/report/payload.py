"""The dialogues of a report as compact JSON: what its reader shows, searches and filters.

Texts come from models and files and may hold anything. They travel as data (never as markup), the page shows them as
text, and characters that a reader could not see, or that would turn text around, are made visible here.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from typing import Any

from persona_tasks.metrics import dialogue_score
from persona_tasks.monitors import monitor
from persona_tasks.report.frames import first_contradiction, scenario_of
from persona_tasks.report.runs import Run
from persona_tasks.transcript import METRICS, Judged, Transcript, Verdict

LONGEST = 20_000  # characters of one text; nobody reads more in a page, and a megabyte of one line makes it slow
CODES = {"consistent": "c", "contradicts": "x", "unparsed": "u"}
LINE_METRICS = METRICS[:2]
# Controls but tab and newline, the delete key, bidirectional overrides and isolates, lone surrogates.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with invisible characters shown (ESC as ␛, U+202E as ⟨U+202E⟩), and cut where it is over long.

    >>> plain("\\x1b[31mred")
    '␛[31mred'
    """
    text = text.replace("\r\n", "\n")
    cut = "" if len(text) <= LONGEST else f"… ({len(text) - LONGEST:,} more characters in the file)"
    return INVISIBLE.sub(_shown, text[:LONGEST]) + cut


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def payload(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything the page's script needs; what dialogues of one persona share is written once.

    Returns:
        models: names of the runs. personas: [{id, text, setting, questions: [[question, right answer or ""]]}].
        dialogues: [{id, m, p, s, seed, partner, ended, turns: [[partner's line, line]], v: {metric: [[code, reason,
        conflicts, drift] or null per turn]}, q: [[turn, question, answer, code, reason, with persona]],
        score and first: {metric: number or null}, monitors}]. Codes: c consistent, x contradicts, u unparsed.
    """
    personas: dict[str, int] = {}
    shared: list[dict[str, Any]] = []
    dialogues = []
    for number, run in enumerate(runs):
        for record in run.records:
            about = _persona(record.transcript)
            key = json.dumps(about)
            if key not in personas:
                personas[key] = len(shared)
                shared.append(about)
            dialogues.append({"m": number, "p": personas[key], **_dialogue(record)})
    return {"models": [plain(run.name) for run in runs], "personas": shared, "dialogues": dialogues}


def packed(data: Any) -> str:
    """JSON, compressed and in base64: a few times smaller, and nothing in it can be taken for markup."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _persona(transcript: Transcript) -> dict[str, Any]:
    return {
        "id": plain(transcript.persona_id),
        "text": plain(transcript.persona_text),
        "setting": plain(transcript.setting),
        "questions": [[plain(question), plain(answer)] for question, answer in _questions(transcript)],
    }


def _questions(transcript: Transcript) -> list[tuple[str, str]]:
    """Questions with their right answers. Some imported dialogues have questions without options."""
    if transcript.questions:
        return [(question.question, question.options[question.answer]) for question in transcript.questions]
    asked = max((probe.question + 1 for probe in transcript.probes), default=0)
    texts = transcript.metadata.get("questions") or []
    texts = [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else []
    return [(texts[n] if n < len(texts) else f"question {n + 1}", "") for n in range(asked)]


def _dialogue(record: Judged) -> dict[str, Any]:
    said = record.transcript
    verdicts: dict[str, list[Any]] = {}
    for metric in LINE_METRICS:
        places: list[Any] = [None] * len(said.turns)
        for verdict in record.of(metric):
            places[verdict.turn - 1] = [CODES[verdict.outcome], _why(verdict), verdict.conflicts, verdict.drift or ""]
        verdicts[metric] = places
    monitors = {name: round(value, 3) for name, value in monitor(said).items()} if said.turns else {}
    return {
        "id": plain(said.id),
        "s": plain(scenario_of(record)),
        "seed": said.seed,
        "partner": plain(said.partner),
        "judge": plain(record.judge),
        "ended": plain(said.ended or ""),
        "turns": [[plain(turn.partner), plain(turn.line)] for turn in said.turns],
        "v": verdicts,
        "q": _answers(record),
        "score": {metric: _rounded(dialogue_score(record.of(metric))) for metric in METRICS},
        "first": {metric: first_contradiction(record, metric) for metric in METRICS},
        "monitors": monitors,
    }


def _answers(record: Judged) -> list[list[Any]]:
    verdicts = {verdict.probe: verdict for verdict in record.verdicts if verdict.probe is not None}
    answers = []
    for number, probe in enumerate(record.transcript.probes):
        verdict = verdicts.get(number)
        code, why = ("", "") if verdict is None else (CODES[verdict.outcome], _why(verdict))
        answers.append([probe.turn, probe.question, plain(probe.answer), code, why, probe.persona])
    return answers


def _why(verdict: Verdict) -> str:
    """The judge's reason; for what could not be read also what it answered."""
    return plain(" · ".join(part for part in (verdict.reason, verdict.answer) if part))


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 3)
