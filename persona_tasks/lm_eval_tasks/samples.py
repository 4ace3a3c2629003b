"""Dialogues saved by `lm_eval --log_samples` or `--predict_only`, and judging them later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from persona_tasks.lm_eval_tasks.roles import open_role
from persona_tasks.lm_eval_tasks.scores import judge_all
from persona_tasks.transcript import Judged, Transcript, TranscriptError


def read_samples(path: str | Path) -> list[Judged]:
    """The dialogues of a `samples_persona_drift_*.jsonl` file, with their verdicts if they were judged.

    Raises:
        TranscriptError: A line is no sample of ours. Names the file, the line and the reason.
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            saved = json.loads(line)["filtered_resps"][0]
            fields = json.loads(saved)
            judged = "transcript" in fields
            records.append(
                Judged.model_validate(fields) if judged else Judged(transcript=Transcript.model_validate(fields))
            )
        except (json.JSONDecodeError, KeyError, IndexError, TypeError, ValidationError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise TranscriptError(f"{path}, line {number}: no sample of persona_drift ({reason})") from None
    return records


def is_samples_file(path: str | Path) -> bool:
    """Whether a file looks like lm-eval's samples of our task, by its first line."""
    with Path(path).open(encoding="utf-8") as file:
        first = file.readline()
    return '"filtered_resps"' in first and '"persona_id"' in first


def judge_samples(
    paths: Iterable[str | Path],
    judge: str,
    *,
    context: bool = False,
    connections: int = 16,
    timeout: float = 120.0,
    again: bool = False,
) -> list[Judged]:
    """Judge saved dialogues, those with verdicts only if asked to.

    Args:
        paths: Files of samples.
        judge: As in `--metadata judge=...`; see `roles`.
        context: Show the judge the partner's line that each line answers.
        connections: Requests to an endpoint at one time.
        timeout: Seconds after which a request to an endpoint is retried.
        again: Judge dialogues that have verdicts, too.

    Raises:
        TranscriptError: A file holds other things than our samples.
        ValueError: There is no such judge.
    """
    by = open_role(judge, "judge", connections, timeout)
    records = [record for path in paths for record in read_samples(path)]
    open_ones = [record.transcript for record in records if again or not record.verdicts]
    fresh = iter(judge_all(open_ones, by, context) if open_ones else ())
    return [next(fresh) if again or not record.verdicts else record for record in records]


def write_judged(path: str | Path, records: Sequence[Judged]) -> None:
    """Write records as our JSONL, the form that every other command of ours reads."""
    text = "".join(record.model_dump_json(exclude_defaults=True) + "\n" for record in records)
    Path(path).write_text(text, encoding="utf-8")
