"""Which dialogues belong together: files and folders in, one `Run` for each model and judge out.

Read are Inspect logs, lm-eval's sample files, our JSONL and the foreign formats of `importers`. A file may be given a
name of its own (``terse=logs/a.eval``); without one, dialogues are sorted by the model that their transcripts name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from persona_tasks.importers import load
from persona_tasks.lm_eval_tasks.samples import is_samples_file, read_samples
from persona_tasks.report.origin import Origin, origin_of
from persona_tasks.transcript import Judged, TranscriptError

SUFFIXES = (".eval", ".jsonl")  # what is looked for in a folder: other JSON there is seldom dialogues
LOGIN = re.compile(r"//[^/@]*@")  # the name and password that an endpoint's address may hold


@dataclass(frozen=True)
class Run:
    """The dialogues of one model as one judge saw them. The name is unique in a report."""

    name: str
    judge: str
    records: list[Judged]


@dataclass
class Material:
    """All that a report is made of. `notes` say what was left out, and why."""

    runs: list[Run] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_runs(paths: Iterable[str | Path]) -> Material:
    """Read files and folders.

    Args:
        paths: Files, folders (searched for .eval and .jsonl, subfolders too), or NAME=PATH.

    Returns:
        Runs in the order in which their models first occur.

    Raises:
        TranscriptError: A path does not exist, a file that was named is not readable, or there are no dialogues.
    """
    material = Material()
    groups: dict[tuple[str, str], list[Judged]] = {}
    seen: set[str] = set()
    repeated = 0
    for argument in paths:
        name, path = _named(str(argument))
        for file in _files(path):
            for record in _records(file, path, material):
                digest = sha256(record.model_dump_json().encode("utf-8", "replace")).hexdigest()
                if digest in seen:
                    repeated += 1
                    continue
                seen.add(digest)
                model = name or record.transcript.model or file.stem
                groups.setdefault((model, record.judge), []).append(record)
    if not groups:
        raise TranscriptError("there are no dialogues in " + ", ".join(map(str, paths)))
    if repeated:
        material.notes.append(f"{repeated} dialogues occur more than once in these files; they count once")
    material.runs = _unique(groups)
    return material


def _named(argument: str) -> tuple[str, Path]:
    """NAME=PATH, or a path. A path that exists is a path, whatever it is called."""
    name, equals, rest = argument.partition("=")
    if equals and name and not Path(argument).exists():
        return name, Path(rest)
    return "", Path(argument)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not path.is_file():
        raise TranscriptError(f"{path}: there is no such file or folder")
    return [path]


def _records(file: Path, asked_for: Path, material: Material) -> list[Judged]:
    """The dialogues of a file. What cannot be read is an error if it was named, a note if it was found in a folder."""
    try:
        ours_by_lm_eval = file.suffix == ".jsonl" and is_samples_file(file)
        records = read_samples(file) if ours_by_lm_eval else load(file)
    except TranscriptError as error:
        if file == asked_for:
            raise
        material.notes.append(f"left out: {error}")
        return []
    records = [record.model_copy(update={"judge": LOGIN.sub("//", record.judge)}) for record in records]
    material.origins.append(origin_of(file, records, "lm-eval" if ours_by_lm_eval else None))
    return records


def _unique(groups: dict[tuple[str, str], list[Judged]]) -> list[Run]:
    """A model with several judges is several runs, each named after its judge too."""
    models = [model for model, _ in groups]
    return [
        Run(model if models.count(model) == 1 else f"{model} · {judge or 'not judged'}", judge, records)
        for (model, judge), records in groups.items()
    ]


def comparability_notes(runs: Sequence[Run], origins: Sequence[Origin]) -> list[str]:
    """What forbids or hampers comparing the runs of a report."""
    notes = []
    if len({run.judge for run in runs if run.judge}) > 1:
        notes.append("these runs have different judges: their scores are not comparable")
    notes += [
        f"{origin.file}: the run did not end well (status {origin.facts['status']}); what it has is shown"
        for origin in origins
        if "status" in origin.facts
    ]
    for setting in ("task version", "turns", "probes", "probe_mode", "partner", "context"):
        if len(values := {origin.settings[setting] for origin in origins if setting in origin.settings}) > 1:
            notes.append(f"these runs differ in `{setting}` ({', '.join(sorted(values))}): compare with care")
    return notes
