"""Dialogues to label or to train on: held, judged, and taken up again where they went wrong.

python -m training.data rollout --split train --turns 8 --dialogues 3 --out dialogues.jsonl
python -m training.data judge dialogues.jsonl --judge persona/judge-135m --out judged.jsonl
python -m training.data judge dialogues.jsonl --judge openai:MODEL@http://localhost:8000/v1 --out judged.jsonl
python -m training.data branch judged.jsonl --segment 3 --branches 4 --out branches.jsonl
python -m training.data judge branches.jsonl --judge persona/judge-135m --out judged-branches.jsonl

`rollout` talks to the personas of a split through the scripted partner. `judge` fills in the verdicts that are missing.
`branch` goes back to the first contradicting line of each judged dialogue and lets the simulator try again from there,
several times, while the partner goes on as before: what segment-level DPO compares.

Each stage appends to its output and skips what is in it: run the same command to take up an interrupted run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from persona_tasks.embedded.answers import engine_answers
from persona_tasks.embedded.engine import Engine
from persona_tasks.embedded.weights import Sampling, WeightsError
from persona_tasks.lm_eval_tasks.roles import open_role
from persona_tasks.personas import Persona, load_bank
from persona_tasks.protocol.asks import Answer, Ask, Dialogue
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.play import play
from persona_tasks.transcript import Judged, Metric, Transcript, append_jsonl, read_jsonl
from training.people import training_bank

BATCH = 32  # dialogues between two writes
FAILED = "judge failed"  # how the reason of a verdict begins that was never given

Answers = Callable[[Sequence[Ask]], list[Answer]]
Thing = TypeVar("Thing")


class DataError(ValueError):
    """The data cannot be made. The message says why."""


def progress() -> Progress:
    """The progress bar of long commands: rate and remaining time, silent when the output is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


@dataclass(frozen=True)
class SeededAsk(Ask):
    """An ask of one of several dialogues that may stand at the same words and must not go on alike."""

    seed: int = 0


class Simulator:
    """An engine that answers asks of many seeds as one batch.

    Args:
        engine: The model.
        temperature: Of plain sampling; None for the model's own way of talking.
    """

    def __init__(self, engine: Engine, temperature: float | None = None):
        self.engine = engine
        self.manner = engine.sampling if temperature is None else Sampling(temperature)

    def __call__(self, asks: Sequence[SeededAsk]) -> list[Answer]:
        groups: dict[int, list[int]] = {}
        for place, ask in enumerate(asks):
            groups.setdefault(ask.seed, []).append(place)

        def answered(seed: int) -> list[Answer]:
            return engine_answers(self.engine, self.manner, seed)([asks[place] for place in groups[seed]])

        answers: dict[int, Answer] = {}
        with ThreadPoolExecutor(len(groups)) as pool:  # the engine computes them together
            for seed, texts in zip(groups, pool.map(answered, groups), strict=True):
                answers |= dict(zip(groups[seed], texts, strict=True))
        return [answers[place] for place in range(len(asks))]


def seeded(dialogue: Dialogue[Transcript], seed: int, said: Sequence[str] = ()) -> Dialogue[Transcript]:
    """The dialogue, its asks with a seed. The first of them are answered already by what was `said`."""
    asks = next(dialogue)
    for line in said:
        asks = dialogue.send([line])
    while True:
        answers = yield [SeededAsk(**vars(ask), seed=seed) for ask in asks]
        try:
            asks = dialogue.send(answers)
        except StopIteration as end:
            transcript: Transcript = end.value
            return transcript


def scripted(persona: Persona, turns: int, seed: int) -> tuple[Dialogue[Transcript], list[str]]:
    """A dialogue with the persona's scripted partner, not yet begun, and the partner's lines."""
    bank = training_bank()
    scenario = bank.scenarios[persona.scenario]
    partner = make_partner(persona, scenario, bank.scripts[scenario.id], turns, seed, "scripted")
    return play(persona, scenario, partner, turns, probes=(), seed=seed), list(partner.script)


def known(out: Path) -> set[str]:
    """Ids of the dialogues that are in a file.

    Raises:
        TranscriptError: The file is broken.
    """
    return {record.transcript.id for record in read_jsonl(out)} if out.exists() else set()


def parts(things: Sequence[Thing]) -> Iterator[Sequence[Thing]]:
    """What is done between two writes."""
    return (things[start : start + BATCH] for start in range(0, len(things), BATCH))


def rollout(simulator: Simulator, model: str, personas: Sequence[Persona], turns: int, seeds: range, out: Path) -> None:
    """Hold one dialogue per persona and seed, and append each batch to `out` as it ends."""
    done = known(out)
    wanted = [(persona, seed) for seed in seeds for persona in personas]
    left = [(persona, seed) for persona, seed in wanted if f"{persona.id}/{seed}" not in done]
    with progress() as bar:
        task = bar.add_task("dialogues", total=len(wanted), completed=len(wanted) - len(left))
        for part in parts(left):
            dialogues = [seeded(scripted(persona, turns, seed)[0], seed) for persona, seed in part]
            transcripts = lockstep(dialogues, simulator, lambda *_: bar.advance(task))  # type: ignore[arg-type]
            for transcript in transcripts:
                transcript.model = model
            append_jsonl(out, [Judged(transcript=transcript) for transcript in transcripts])


def judge_file(source: Path, answers: Answers, name: str, metrics: Sequence[Metric], out: Path) -> None:
    """Fill in the verdicts that the dialogues of `source` lack, and append each batch to `out`.

    Raises:
        DataError: Some verdicts are by another judge; or the judge failed. A dialogue with a verdict that the judge
            failed to give is not written, so the next run asks for it again.
    """
    records = list(read_jsonl(source))
    if other := next((record for record in records if record.verdicts and record.judge != name), None):
        raise DataError(f"{source}: {other.transcript.id!r} has verdicts by {other.judge!r}, not by {name!r}")
    done = known(out)
    left = [record for record in records if record.transcript.id not in done]
    failed: list[str] = []
    with progress() as bar:
        task = bar.add_task("judged", total=len(records), completed=len(records) - len(left))
        for part in parts(left):
            asked = [judge(record.transcript, metrics, turns=_unjudged(record, metrics)) for record in part]
            found = lockstep(asked, answers, lambda *_: bar.advance(task))
            good = []
            for record, verdicts in zip(part, found, strict=True):
                if reasons := [v.reason for v in verdicts if v.reason.startswith(FAILED)]:
                    failed += reasons[:1]
                else:
                    good.append(record.model_copy(update={"verdicts": [*record.verdicts, *verdicts], "judge": name}))
            append_jsonl(out, good)
            if not good:
                break
    if failed:
        raise DataError(f"{failed[0]}. {len(failed)} dialogues are not judged; the same command asks for them again")


def _unjudged(record: Judged, metrics: Sequence[Metric]) -> list[int]:
    """Turns on which a verdict is missing. A branch has those of its parent."""
    judged = {(verdict.metric, verdict.turn) for verdict in record.verdicts}
    turns = range(1, len(record.transcript.turns) + 1)
    return [t for t in turns if any((m, t) not in judged for m in metrics if m == "prompt_to_line" or t > 1)]


def branch_turn(record: Judged, segment: int) -> int | None:
    """Where a dialogue is taken up again: at its first line that contradicts the persona, or so far before it that
    `segment` turns follow. None if no line does, or the dialogue is shorter than that."""
    wrong = [v.turn for v in record.of("prompt_to_line") if v.outcome == "contradicts"]
    latest = len(record.transcript.turns) - segment + 1
    return min(*wrong, latest) if wrong and latest >= 1 else None


def branch(source: Path, simulator: Simulator, model: str, segment: int, numbers: range, out: Path) -> None:
    """Let the simulator say `segment` turns anew in each dialogue that went wrong, once for each of `numbers`.

    A branch has the id ``<parent>/<number>``, its parent's verdicts on the turns before, and in its metadata `parent`,
    `branch` (its first own turn) and `segment`.

    Raises:
        DataError: No dialogue has a verdict, or one cannot be taken up as it was.
    """
    records = list(read_jsonl(source))
    if not any(record.of("prompt_to_line") for record in records):
        raise DataError(f"{source}: no line is judged; run `python -m training.data judge` first")
    places = [(r, turn) for r in records if "parent" not in r.transcript.metadata and (turn := branch_turn(r, segment))]
    if other := next((r.transcript for r, _ in places if r.transcript.model != model), None):
        raise DataError(f"{source}: {other.id!r} was held by {other.model!r}; give it as --model")
    done = known(out)
    wanted = [(record, turn, number) for record, turn in places for number in numbers]
    left = [job for job in wanted if f"{job[0].transcript.id}/{job[2]}" not in done]
    with progress() as bar:
        task = bar.add_task("branches", total=len(wanted), completed=len(wanted) - len(left))
        for part in parts(left):
            dialogues = [_again(record.transcript, turn, segment, number) for record, turn, number in part]
            transcripts = lockstep(dialogues, simulator, lambda *_: bar.advance(task))  # type: ignore[arg-type]
            append_jsonl(out, [_branched(*job, segment, made) for job, made in zip(part, transcripts, strict=True)])


def _again(parent: Transcript, turn: int, segment: int, number: int) -> Dialogue[Transcript]:
    """The parent's dialogue from `turn` on, the lines before it said already."""
    turns, seed = turn - 1 + segment, parent.seed or 0
    dialogue, script = scripted(training_bank().persona(parent.persona_id), turns, seed)
    if script != [said.partner for said in parent.turns[:turns]]:
        raise DataError(f"{parent.id!r}: its partner's lines are not those of the script and cannot go on as before")
    # neither the parent's seed, or it would say the same again, nor one of another dialogue with the same beginning
    return seeded(dialogue, (number + 1) * 1_000_003 + seed, parent.lines[: turn - 1])


def _branched(parent: Judged, turn: int, number: int, segment: int, made: Transcript) -> Judged:
    made.id, made.model = f"{parent.transcript.id}/{number}", parent.transcript.model
    made.metadata = {"parent": parent.transcript.id, "branch": turn, "segment": segment}
    before = [verdict for verdict in parent.verdicts if verdict.probe is None and verdict.turn < turn]
    return Judged(transcript=made, verdicts=before, judge=parent.judge if before else "")


def open_judge(spec: str) -> tuple[Answers, str]:
    """A judge by its specification (see `persona_tasks.lm_eval_tasks.roles`): its answers, and its name for the record.

    Raises:
        ValueError: There is no such judge, or it cannot work.
    """
    role = open_role(spec, "judge")
    role.prepare()
    return role.answer, role.name


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = made.add_subparsers(dest="stage", required=True)
    held, judged, again = (stages.add_parser(name, help=text) for name, text in STAGES.items())
    for stage in (held, again):
        stage.add_argument("--model", default="smollm2-135m", help="the simulator: persona/NAME, or a folder")
        stage.add_argument("--temperature", type=float, help="plain sampling; default: the model's own way of talking")
        stage.add_argument("--seed", type=int, default=0, help="of the first dialogue; others count on from it")
    held.add_argument("--scenario", default="all")
    held.add_argument("--split", default="train", help="train, dev, test or all")
    held.add_argument(
        "--further", action="store_true", help="also with the people of training/people, whose split is train"
    )
    held.add_argument("--turns", type=int, default=8)
    held.add_argument("--dialogues", dest="times", type=int, default=1, help="per persona")
    judged.add_argument("--judge", required=True, help="persona/NAME, a folder, or openai:MODEL@BASE_URL")
    judged.add_argument("--metrics", nargs="+", default=["prompt_to_line"], choices=["prompt_to_line", "line_to_line"])
    again.add_argument("--segment", type=int, default=3, help="turns that are said anew")
    again.add_argument("--branches", dest="times", type=int, default=4, help="how often")
    for stage in (judged, again):
        stage.add_argument("source", type=Path, help="JSONL of dialogues")
    for stage in (held, judged, again):
        stage.add_argument("--out", type=Path, required=True)
    return made


STAGES = {"rollout": "hold dialogues", "judge": "judge them", "branch": "take them up again where they went wrong"}


def run(options: argparse.Namespace) -> None:
    """Run one stage."""
    if options.stage != "rollout" and not options.source.is_file():
        raise DataError(f"there is no file {options.source}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.stage == "judge":
        judge_file(options.source, *open_judge(options.judge), options.metrics, options.out)
        return
    model, seeds = options.model.removeprefix("persona/"), range(options.seed, options.seed + options.times)
    simulator = Simulator(Engine.load(model), options.temperature)
    if options.stage == "rollout":
        bank = training_bank() if options.further else load_bank()
        rollout(simulator, model, bank.select(options.scenario, options.split), options.turns, seeds, options.out)
    else:
        branch(options.source, simulator, model, options.segment, seeds, options.out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    try:
        run(parser().parse_args(arguments))
    except (ValueError, WeightsError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
