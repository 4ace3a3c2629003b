"""Reading what a run was from the logs of the two harnesses."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_tasks.hub.probes import Answered, read_answers
from persona_tasks.importers import load
from persona_tasks.transcript import Judged, TranscriptError

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from inspect_ai.model import ModelConfig

QUESTIONS: dict[str, Any] = {"split": "test", "turns": None, "partner": "scripted", "probe_mode": "choice", "seed": 0}
GENERATION = ("temperature", "top_p", "top_k", "max_tokens", "max_gen_toks", "do_sample", "num_beams", "seed")


class ScoreError(ValueError):
    """A log gives no score. The message names the log and the reason."""


@dataclass
class Run:
    """What a log says about its run, whichever harness wrote it."""

    task: str
    version: str | float
    model: str
    folder: Path | None
    settings: dict[str, Any]
    epochs: int
    judge: str | None
    harness: str
    command: str
    commit: str | None
    on: date
    generation: dict[str, Any]
    logs: list[Path]
    records: list[Judged] = field(repr=False)
    answers: list[Answered] = field(default_factory=list, repr=False)
    prompts: str | None = None


def read_run(log: Path) -> Run:
    """What a log says about its run.

    Args:
        log: An Inspect log, or lm-eval's `results_*.json` (or one of the `samples_*.jsonl` beside it).

    Raises:
        ScoreError: It is neither, it is not of our tasks, or the run did not finish.
    """
    if not log.is_file():
        raise ScoreError(f"{log}: no such file")
    if log.suffix == ".jsonl" or log.name.startswith("results_"):
        return _lm_eval(log)
    return _inspect(log)


# --------------------------------------------------------------------------------------------------------- inspect


def _inspect(path: Path) -> Run:
    from inspect_ai.log import read_eval_log

    try:
        log = read_eval_log(str(path), header_only=True)
        spec = log.eval
    except Exception as error:  # whatever zip, JSON or validation makes of a broken file
        raise ScoreError(f"{path}: not readable as an Inspect log ({type(error).__name__})") from None
    if log.status != "success":
        raise ScoreError(f"{path}: the run did not finish (status {log.status}); `inspect eval-retry` goes on with it")
    questions = spec.task.startswith("hf/")
    if not questions and spec.task != "persona_tasks/drift":
        raise ScoreError(
            f"{path}: of task {spec.task!r}; scores are of persona_tasks/drift or of our questions, hf/..."
        )
    try:
        records = [] if questions else load(path, "inspect")
    except TranscriptError as error:
        raise ScoreError(str(error)) from None
    arguments = QUESTIONS if questions else dict(spec.task_args)
    partner = (spec.model_roles or {}).get("partner")
    if arguments.get("partner") == "model":
        arguments["partner"] = _bound(partner) if partner else spec.model
    provider, _, rest = spec.model.partition("/")
    folder = Path(rest).expanduser() if provider in ("persona", "hf", "vllm") else None
    given = spec.model_generate_config.model_dump(exclude_none=True)
    revision = spec.revision
    return Run(
        task=spec.task,
        version=str(spec.task_version),
        model=spec.model,
        folder=folder if folder and folder.is_dir() else None,
        settings=arguments,
        epochs=spec.config.epochs or 1,
        judge=next((record.judge for record in records if record.judge), None),
        harness=f"inspect-ai {spec.packages.get('inspect_ai', '')}".strip(),
        command=_inspect_command(log),
        commit=f"{revision.commit}{'+dirty' if revision.dirty else ''}" if revision else None,
        on=datetime.fromisoformat(spec.created).date(),
        generation={name: value for name, value in given.items() if name in GENERATION},
        logs=[path],
        records=records,
        answers=read_answers(path) if questions else [],
        prompts=None if questions else _prompts(path),
    )


def _prompts(path: Path) -> str | None:
    from inspect_ai.log import read_eval_log_samples

    for sample in read_eval_log_samples(str(path), all_samples_required=False, exclude_fields={"events", "timelines"}):
        for score in (sample.scores or {}).values():
            if found := (score.metadata or {}).get("prompts"):
                return str(found)
    return None


def _inspect_command(log: EvalLog) -> str:
    """The command, put together from what the log keeps of it. Model arguments may hold keys and are left out."""
    spec = log.eval
    words = ["inspect", "eval", spec.task, "--model", spec.model]
    for name, value in spec.task_args_passed.items():
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        words += ["-T", f"{name}={shown}"]
    for role, bound in (spec.model_roles or {}).items():
        words += ["--model-role", f"{role}={_bound(bound)}"]
    if spec.config.epochs not in (None, 1):
        words += ["--epochs", str(spec.config.epochs)]
    given = spec.model_generate_config.model_dump(exclude_none=True)
    for name in GENERATION:
        if name in given:
            words += [f"--{name.replace('_', '-')}", str(given[name])]
    return shlex.join(words)


def _bound(role: ModelConfig | list[ModelConfig]) -> str:
    return ",".join(config.model for config in role) if isinstance(role, list) else role.model


# --------------------------------------------------------------------------------------------------------- lm-eval


def _lm_eval(path: Path) -> Run:
    from persona_tasks.lm_eval_tasks.samples import read_samples

    results_file = _results_of(path)
    results = _json(results_file)
    stamp = results_file.stem.removeprefix("results_")
    tasks = sorted(name for name in results.get("configs", {}) if name.startswith("persona_drift"))
    if not tasks:
        raise ScoreError(f"{results_file}: no task persona_drift in it")
    samples = [results_file.with_name(f"samples_{task}_{stamp}.jsonl") for task in tasks]
    for file in samples:
        if not file.is_file():
            raise ScoreError(f"{file} is missing: run lm_eval with --log_samples")
    try:
        records = [record for file in samples for record in read_samples(file)]
    except TranscriptError as error:
        raise ScoreError(str(error)) from None
    settings = [results["configs"][task].get("metadata") or {} for task in tasks]
    if any(_comparable(other) != _comparable(settings[0]) for other in settings):
        raise ScoreError(f"{results_file}: its tasks ran with different settings")
    config = results["config"]
    arguments = config.get("model_args") or {}
    arguments = (
        arguments if isinstance(arguments, dict) else dict(part.partition("=")[::2] for part in arguments.split(","))
    )
    name = str(arguments.get("peft") or arguments.get("pretrained") or arguments.get("model") or results["model_name"])
    versions = {results["versions"][task] for task in tasks}
    if len(versions) != 1:
        raise ScoreError(f"{results_file}: its tasks have different versions")
    return Run(
        task=tasks[0],
        version=versions.pop(),
        model=f"{config['model']}/{name}",
        folder=Path(name) if Path(name).is_dir() else None,
        settings=settings[0],
        epochs=1,
        judge=_without_address(next((record.judge for record in records if record.judge), None)),
        harness=f"lm-eval {results.get('lm_eval_version', '')}".strip(),
        command=_lm_eval_command(config, arguments, tasks, settings[0]),
        commit=results.get("git_hash"),
        on=datetime.fromtimestamp(float(results["date"]), timezone.utc).date(),
        generation={k: v for k, v in (config.get("gen_kwargs") or {}).items() if k in GENERATION},
        logs=[results_file, *samples],
        records=records,
        prompts=settings[0].get("prompts"),
    )


def _results_of(path: Path) -> Path:
    """lm-eval names results and samples of one run by the same time."""
    if path.suffix != ".jsonl":
        return path
    stamp = path.stem.rpartition("_")[2]
    found = path.with_name(f"results_{stamp}.json")
    if not found.is_file():
        raise ScoreError(f"{found} is missing: the samples alone do not say how they were made")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ScoreError(f"{path}: not JSON ({error})") from None
    if not isinstance(loaded, dict) or not {"config", "configs", "versions", "date"} <= loaded.keys():
        raise ScoreError(f"{path}: no results file of lm-eval")
    return loaded


def _comparable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != "config_source"}


def _without_address(judge: str | None) -> str | None:
    """An endpoint's address says nothing to others, and may be private."""
    return judge.partition("@")[0] if judge else None


def _lm_eval_command(
    config: dict[str, Any], arguments: dict[str, Any], tasks: list[str], settings: dict[str, Any]
) -> str:
    named = {key: arguments[key] for key in ("pretrained", "peft", "model", "dtype", "revision") if key in arguments}
    group = "persona_drift" if len(tasks) > 1 else tasks[0]
    words = ["lm_eval", "--model", str(config["model"])]
    words += ["--model_args", ",".join(f"{key}={value}" for key, value in named.items()), "--tasks", group]
    judge = _without_address(str(settings.get("judge")))
    words += [
        "--metadata",
        f"judge={judge}",
        *(f"{key}={settings[key]}" for key in ("turns", "seed") if key in settings),
    ]
    if options := config.get("gen_kwargs"):
        words += ["--gen_kwargs", ",".join(f"{key}={value}" for key, value in options.items())]
    return shlex.join([*words, "--log_samples"])
