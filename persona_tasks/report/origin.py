"""How a file of dialogues was made, as far as the file says: command, versions, settings, seeds, date.

Arguments of models are never taken over: they may hold keys.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_tasks.importers import detect
from persona_tasks.transcript import Judged

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
# Settings of generation that a report shows. The others are of transport, or may hold keys (headers).
GENERATION = {"system_message", "temperature", "top_p", "top_k", "max_tokens", "seed", "reasoning_effort"}


@dataclass(frozen=True)
class Origin:
    """One file and what is known of its making. `settings` are those that decide whether scores are comparable."""

    file: str
    dialogues: int
    facts: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)


def origin_of(file: Path, records: Sequence[Judged], kind: str | None = None) -> Origin:
    """What a file that was read says of its making.

    Args:
        file: The file.
        records: Its dialogues.
        kind: "lm-eval" for its sample files, else one of `importers.FORMATS`, told by the content if not given.
    """
    kind = kind or detect(file)
    facts = {"format": kind}
    settings: dict[str, str] = {}
    if kind == "inspect":
        more, settings = _of_inspect(file)
        facts |= more
    elif kind == "lm-eval":
        more, settings = _of_lm_eval(file)
        facts |= more
    facts |= {
        "simulator": _listed(record.transcript.model for record in records),
        "judge": _listed(record.judge for record in records),
        "partner": _listed(record.transcript.partner for record in records),
        "seeds": _listed(str(s) for s in sorted({r.transcript.seed for r in records if r.transcript.seed is not None})),
    }
    return Origin(str(file), len(records), {name: value for name, value in facts.items() if value}, settings)


def _of_inspect(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    from inspect_ai.log import read_eval_log

    log = read_eval_log(file, header_only=True)
    about = log.eval
    revision = about.revision
    config = log.plan.config.model_dump(include=GENERATION)
    facts = {
        "command": _inspect_command(log),
        "date": about.created,
        "versions": ", ".join(f"{name} {version}" for name, version in about.packages.items()),
        "commit": "" if revision is None else revision.commit + (" with changes" if revision.dirty else ""),
        "generation": " ".join(f"{name}={value}" for name, value in _texts(config).items()),
        "status": "" if log.status == "success" else log.status,
    }
    return facts, {"task version": str(about.task_version), **_texts(about.task_args)}


def _inspect_command(log: EvalLog) -> str:
    """The command that would run the task again, model arguments left out."""
    about = log.eval
    words = ["inspect", "eval", about.task, "--model", about.model]
    for role, bound in (about.model_roles or {}).items():
        for config in bound if isinstance(bound, list) else [bound]:
            words += ["--model-role", f"{role}={config.model}"]
    for name, value in _texts(about.task_args_passed).items():
        words += ["-T", f"{name}={value}"]
    if about.config.limit is not None:
        words += ["--limit", str(about.config.limit)]
    if about.config.epochs not in (None, 1):
        words += ["--epochs", str(about.config.epochs)]
    return shlex.join(words)


def _of_lm_eval(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """From the results that lm-eval writes beside the samples: samples_TASK_DATE.jsonl, results_DATE.json."""
    stem, _, date = file.stem.rpartition("_")
    results = file.with_name(f"results_{date}.json")
    if not results.is_file():
        return {"date": date}, {}
    data = json.loads(results.read_text(encoding="utf-8"))
    task = stem.removeprefix("samples_")
    metadata = data.get("configs", {}).get(task, {}).get("metadata", {})
    facts = {
        "command": shlex.join(["lm_eval", "--tasks", task, "--model", str(data.get("model_source", "hf"))]),
        "date": date,
        "versions": f"lm_eval {data['lm_eval_version']}" if "lm_eval_version" in data else "",
        "commit": str(data.get("git_hash") or ""),
    }
    version = data.get("versions", {}).get(task)
    return facts, {**({} if version is None else {"task version": str(version)}), **_texts(metadata)}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as they would be typed; those that are not set are left out."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in values.items()
        if value is not None
    }


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value))
