"""Dialogues of a simulator with our personas and scripted partners, to label or to train on.

python -m training.data --split train --turns 10 --out dialogues.jsonl
python -m training.data --model ./my-checkpoint --split all --temperature 0.7 --seed 1 --out more.jsonl

Dialogues that are in the output already are not held again: run the same command to take up an interrupted run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from persona_tasks.embedded.answers import engine_answers
from persona_tasks.embedded.engine import Engine
from persona_tasks.embedded.weights import Sampling
from persona_tasks.personas import Persona, load_bank
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.play import play
from persona_tasks.transcript import Judged, append_jsonl, read_jsonl


def progress() -> Progress:
    """The progress bar of long commands: rate and remaining time, silent when the output is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


def hold_dialogues(
    engine: Engine,
    model: str,
    personas: Sequence[Persona],
    turns: int,
    seed: int,
    temperature: float | None,
    out: Path,
    batch: int = 32,
) -> None:
    """Hold one dialogue per persona, `batch` of them in lockstep, and append each batch to `out` as it ends."""
    bank = load_bank()
    done = {record.transcript.id for record in read_jsonl(out)} if out.exists() else set()
    left = [persona for persona in personas if f"{persona.id}/{seed}" not in done]
    manner = engine.sampling if temperature is None else Sampling(temperature)
    answer = engine_answers(engine, manner, seed)
    with progress() as bar:
        task = bar.add_task("dialogues", total=len(personas), completed=len(personas) - len(left))
        for start in range(0, len(left), batch):
            dialogues = []
            for persona in left[start : start + batch]:
                setting = bank.scenarios[persona.scenario]
                partner = make_partner(persona, setting, bank.scripts[setting.id], turns, seed, "scripted")
                dialogues.append(play(persona, setting, partner, turns, probes=(), seed=seed))
            transcripts = lockstep(dialogues, answer, lambda *_: bar.advance(task))
            for transcript in transcripts:
                transcript.model = model
            append_jsonl(out, [Judged(transcript=transcript) for transcript in transcripts])


def main() -> None:
    """Parse the command line and roll out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, or a folder")
    parser.add_argument("--scenario", default="all")
    parser.add_argument("--split", default="train", help="train, dev, test or all")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--temperature", type=float, help="plain sampling; default: the model's own way of talking")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    personas = load_bank().select(options.scenario, options.split)
    engine = Engine.load(options.model)
    hold_dialogues(engine, options.model, personas, options.turns, options.seed, options.temperature, options.out)


if __name__ == "__main__":
    main()
