"""Labelled items from elsewhere, to measure judges on text we did not write. Never used to train a judge we ship.

Files are read from the folder ``$PERSONA_REFERENCE_DATA``; nothing of them is part of this package:

- ``dnli``: DNLI's evaluation set (Welleck et al. 2019). A candidate reply contradicts the speaker's persona (`neg`), or
  agrees with the same persona sentence (`similar`).
- ``decode``: DECODE's human-bot set (Nie et al. 2021). The last line contradicts its speaker's earlier lines, or not.
- ``llama-70b``: verdicts of Llama-3.1-70B on the reference paper's released dialogues (arXiv 2511.00222). A judge's
  opinion, not a label: it agrees with itself on .92 of repeated lines, so nobody can agree with it much better.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from persona_tasks.calibration import Item
from persona_tasks.personas import BankError
from persona_tasks.transcript import Outcome, Transcript, Turn

VARIABLE = "PERSONA_REFERENCE_DATA"
FOREIGN = ("dnli", "decode", "llama-70b")


def foreign_folder() -> Path | None:
    """The folder of the foreign sets, if the environment names one."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def load_foreign(name: str, count: int | None = None, seed: int = 0) -> list[Item]:
    """A balanced sample of a foreign set: as many contradictions as not, and as many from each of its parts.

    Args:
        name: One of `FOREIGN`.
        count: At most so many items; None for as many as balance allows.
        seed: Of the sample.

    Raises:
        BankError: There is no such set, the environment variable is not set, or a file is missing.
    """
    folder = foreign_folder()
    if name not in READERS:
        raise BankError(f"{name!r} is none of {', '.join(FOREIGN)}")
    if folder is None:
        raise BankError(f"{name}: set {VARIABLE} to the folder that holds the foreign sets")
    try:
        items = list(READERS[name](folder))
    except OSError as error:
        raise BankError(f"{name}: {error}") from None
    return _balanced(items, count, random.Random(seed))


def _balanced(items: Iterable[Item], count: int | None, rng: random.Random) -> list[Item]:
    """Equally many of each label within each scenario."""
    cells: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        cells.setdefault((item.scenario, item.label), []).append(item)
    each = min(len(cell) for cell in cells.values())
    if count is not None:
        each = min(each, max(1, count // len(cells)))
    return [item for key in sorted(cells) for item in rng.sample(cells[key], each)]


def _dnli(folder: Path) -> Iterator[Item]:
    for file in sorted((folder / "dnli").glob("valid_*.jsonl")):
        for number, entry in enumerate(_lines(file)):
            persona = "\n".join(entry["persona"])
            kinds: tuple[tuple[str, Outcome], ...] = (("neg", "contradicts"), ("similar", "consistent"))
            for kind, label in kinds:
                for place, line in enumerate(entry["candidates"][kind][:1]):
                    name = f"{file.stem}/{number}/{kind}/{place}"
                    transcript = _transcript(name, f"{file.stem}/{number}", persona, [Turn(partner="", line=line)])
                    yield Item(name, "dnli", "prompt_to_line", file.stem, transcript, 1, label, kind)


def _decode(folder: Path) -> Iterator[Item]:
    for number, entry in enumerate(_lines(folder / "decode" / "human-bot.jsonl")):
        last = entry["turns"][-1]
        own = [turn for turn in entry["turns"] if turn["agent_id"] == last["agent_id"]]
        if len(own) < 2:
            continue
        label: Outcome = "contradicts" if entry["is_contradiction"] else "consistent"
        indices = entry["aggregated_contradiction_indices"]
        conflicts = tuple(place for place, turn in enumerate(own[:-1], start=1) if turn["turn_id"] in indices)
        turns = [Turn(partner="", line=turn["text"]) for turn in own]
        transcript = _transcript(f"decode/{number}", f"decode/{number}", "", turns)
        yield Item(transcript.id, "decode", "line_to_line", "decode", transcript, len(own), label, "", conflicts)


def _llama_70b(folder: Path) -> Iterator[Item]:
    from persona_tasks.importers import load

    for file in sorted((folder / "consistent-llms").rglob("*.json")):
        for speaker in (1, 2) if file.parent.name == "chatting" else (2,):
            for record in load(file, "consistent-llms", speaker=speaker):
                for verdict in record.of("prompt_to_line"):
                    if verdict.outcome != "unparsed":
                        name = f"{record.transcript.id}/{speaker}/{verdict.turn}"
                        yield Item(
                            name, "llama-70b", "prompt_to_line", file.parent.name, record.transcript, verdict.turn,
                            verdict.outcome,
                        )  # fmt: skip


def _lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def _transcript(name: str, cluster: str, persona: str, turns: Sequence[Turn]) -> Transcript:
    return Transcript(id=name, persona_id=cluster, persona_text=persona, scenario="", turns=list(turns))


READERS: dict[str, Callable[[Path], Iterator[Item]]] = {"dnli": _dnli, "decode": _decode, "llama-70b": _llama_70b}
