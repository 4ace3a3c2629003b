"""Playing and judging what a comparison lists: resumable, batch by batch, and never with mixed settings in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from persona_tasks.embedded.answers import engine_answers
from persona_tasks.embedded.engine import Engine
from persona_tasks.embedded.weights import (
    Sampling,
    fitting_dtype,
    known,
    listed_sampling,
    locate,
    sha256,
    weights_version,
)
from persona_tasks.lm_eval_tasks.roles import Local, RoleName, open_role
from persona_tasks.personas import Bank, Persona, load_bank
from persona_tasks.protocol.asks import Answer, Ask, Dialogue
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import PartnerKind, make_partner
from persona_tasks.protocol.play import play
from persona_tasks.protocol.probes import probe_turns
from persona_tasks.protocol.prompts import prompts_hash
from persona_tasks.transcript import Judged, Transcript, append_jsonl, read_jsonl
from training.compare_table import BASE
from training.data import progress

FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
Answers = Callable[[list[Ask]], Sequence[Answer]]
MADE_WITH, JUDGED_WITH = "made_with", "judged_with"  # in the metadata of each dialogue


class CompareError(ValueError):
    """A comparison that must not be made. The message names the cell and the reason."""


class Strict(BaseModel):
    """Base of the recipe's sections: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Cell(Strict):
    """One model. Cells of the same method are its training seeds, and share a row."""

    name: FileName = Field(description="Names its files.")
    method: str = Field(description=f"The row of the table; `{BASE}` is what all others are compared with.")
    model: str = Field(description="An embedded model, or the folder of an adapter or a model.")
    seed: int = Field(0, description="Of its training.")


class Condition(Strict):
    """How the dialogues go."""

    turns: int = Field(8, gt=0)
    partner: str = Field("scripted", description="`scripted`, or a model, as for `--metadata partner=` in lm-eval.")
    seeds: list[int] = Field([0], min_length=1, description="A dialogue of each person for each; partner and sampling.")
    probes: str = Field("default", description="Turns after which questions are asked: `1,4,8`, `default`, `none`.")
    only: list[str] = Field([], description=f"Methods or names of cells; `{BASE}` always, empty for all.")

    @model_validator(mode="after")
    def _probes_are_turns(self) -> Condition:
        probe_turns(self.probes, self.turns)
        return self


class Recipe(Strict):
    """What is compared, and how."""

    judge: str = Field(description="As for `--metadata judge=` in lm-eval: persona/NAME, a folder, openai:MODEL@URL.")
    cells: list[Cell]
    conditions: dict[FileName, Condition] = Field(min_length=1, description="The first is the one of the pictures.")
    split: str = "test"
    scenario: str = "all"
    limit: int | None = Field(None, gt=0, description="At most so many people; the scenarios take turns.")
    personas: str | None = Field(None, description="Folder of a bank of your own.")
    sampling: Sampling | None = Field(None, description="Of every cell; default: the base's own way of talking.")
    batch: int = Field(20, gt=0, description="Dialogues in lockstep, and saved together.")
    side_by_side: str | None = Field(None, description="The cell whose dialogues are printed beside the base's.")

    @model_validator(mode="after")
    def _cells_fit_together(self) -> Recipe:
        names = [cell.name for cell in self.cells]
        if len(set(names)) < len(names):
            raise ValueError("cells: two have the same name")
        if len({(cell.method, cell.seed) for cell in self.cells}) < len(names):
            raise ValueError("cells: two of the same method have the same training seed")
        if [cell.method for cell in self.cells].count(BASE) != 1:
            raise ValueError(f"cells: exactly one has the method `{BASE}`")
        if self.side_by_side is not None and self.side_by_side not in names:
            raise ValueError(f"side_by_side: there is no cell {self.side_by_side!r}")
        return self

    @property
    def base(self) -> Cell:
        return next(cell for cell in self.cells if cell.method == BASE)


def play_cells(recipe: Recipe, out: Path, then: Callable[[], None]) -> None:
    """Play and judge every cell that is there, under each condition; `then` is called after each.

    Raises:
        CompareError: What is in `out` was made with other weights or settings; before anything is played.
    """
    people, sampling = people_of(recipe), base_sampling(recipe)
    name, answer = role_answers(recipe.judge, "judge")
    plan = []
    for title, condition in recipe.conditions.items():
        for cell in recipe.cells:
            if not there(cell.model) or not taken(condition, cell):
                continue
            dialogues, judged = (file_of(out, kind, title, cell) for kind in ("dialogues", "judged"))
            settings = play_settings(cell, condition, sampling)
            check_settings(dialogues, MADE_WITH, settings)
            check_settings(judged, JUDGED_WITH, judge_settings(recipe))
            plan.append((cell, condition, settings, dialogues, judged))
    for cell, condition, settings, dialogues, judged in plan:
        hold(cell, condition, recipe, people, settings, dialogues)
        judge_dialogues(dialogues, judged, name, answer, recipe)
        then()


def hold(
    cell: Cell, condition: Condition, recipe: Recipe, people: Sequence[Persona], made_with: dict[str, Any], out: Path
) -> None:
    """Hold the dialogues that are missing in `out`, a batch at a time."""
    bank = load_bank(recipe.personas)
    done = {record.transcript.id for record in stored(out)}
    left = [(p, seed) for seed in condition.seeds for p in people if f"{p.id}/{seed}" not in done]
    if not left:
        return
    engine = Engine.load(cell.model)
    partner = None if condition.partner == "scripted" else role_answers(condition.partner, "partner")[1]
    with progress() as bar:
        task = bar.add_task(f"{out.parent.name}/{cell.name}", total=len(done) + len(left), completed=len(done))
        for seed in condition.seeds:
            own = [person for person, its in left if its == seed]
            simulator = engine_answers(engine, Sampling(**made_with["sampling"]), seed)
            for start in range(0, len(own), recipe.batch):
                batch = [_dialogue(bank, person, condition, seed) for person in own[start : start + recipe.batch]]
                transcripts = lockstep(batch, _two_roles(simulator, partner))
                for transcript in transcripts:
                    transcript.model, transcript.metadata = cell.name, {MADE_WITH: made_with}
                append_jsonl(out, [Judged(transcript=transcript) for transcript in transcripts])
                bar.advance(task, len(batch))


def _dialogue(bank: Bank, person: Persona, condition: Condition, seed: int) -> Dialogue[Transcript]:
    scenario = bank.scenarios[person.scenario]
    kind: PartnerKind = "scripted" if condition.partner == "scripted" else "model"
    partner = make_partner(person, scenario, bank.scripts.get(scenario.id), condition.turns, seed, kind)
    after = probe_turns(condition.probes, condition.turns)
    return play(person, scenario, partner, condition.turns, after, seed=seed)


def _two_roles(simulator: Answers, partner: Answers | None) -> Answers:
    def answer(asks: list[Ask]) -> list[Answer]:
        replies = [ask for ask in asks if ask.role == "partner"]
        replied = iter(partner(replies) if partner and replies else [])
        said = iter(simulator([ask for ask in asks if ask.role == "simulator"]))
        return [next(replied) if ask.role == "partner" else next(said) for ask in asks]

    return answer


def judge_dialogues(dialogues: Path, judged: Path, name: str, answer: Answers, recipe: Recipe) -> None:
    """Judge what is in `dialogues` and not in `judged`, a batch at a time.

    Raises:
        CompareError: The judge answers nothing at all.
    """
    judged_with = judge_settings(recipe)
    done = {record.transcript.id for record in stored(judged)}
    left = [record.transcript for record in stored(dialogues) if record.transcript.id not in done]
    with progress() as bar:
        task = bar.add_task(f"judge {judged.stem}", total=len(left) + len(done), completed=len(done))
        for start in range(0, len(left), recipe.batch):
            part = left[start : start + recipe.batch]
            verdicts = lockstep([judge(transcript) for transcript in part], answer)
            failed = [v.reason for found in verdicts for v in found if v.reason.startswith("judge failed")]
            if failed and not any(v.outcome != "unparsed" for found in verdicts for v in found):
                raise CompareError(f"{name} answers nothing ({failed[0]}); what was judged before is in {judged}")
            for transcript in part:
                transcript.metadata[JUDGED_WITH] = judged_with
            pairs = zip(part, verdicts, strict=True)
            append_jsonl(judged, [Judged(transcript=t, verdicts=found, judge=name) for t, found in pairs])
            bar.advance(task, len(part))


def role_answers(spec: str, role: RoleName) -> tuple[str, Answers]:
    """The name of a judge or partner, and what answers its asks."""
    opened = open_role(spec, role)
    opened.prepare()
    return opened.name, engine_answers(Engine.shared(opened.model)) if isinstance(opened, Local) else opened.answer


def stored(file: Path) -> list[Judged]:
    """The records of a file, none if there is no file."""
    return list(read_jsonl(file)) if file.exists() else []


def check_settings(file: Path, key: str, now: dict[str, Any]) -> None:
    """See that what is stored was made as it would be made now.

    Raises:
        CompareError: It was not; names the setting.
    """
    for record in stored(file):
        before = record.transcript.metadata.get(key, {})
        if differ := [name for name in now if before.get(name) != now[name]]:
            raise CompareError(
                f"{file}: made with other {differ[0]}; remove it to make it anew, or choose another --out"
            )


def play_settings(cell: Cell, condition: Condition, sampling: Sampling) -> dict[str, Any]:
    """What must be the same for dialogues to be added to."""
    dtype = fitting_dtype("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"weights": weights_of(cell.model), "dtype": dtype, "prompts": prompts_hash()}
    return settings | {"sampling": asdict(sampling)} | condition.model_dump(include={"turns", "partner", "probes"})


def judge_settings(recipe: Recipe) -> dict[str, Any]:
    """What must be the same for verdicts to be added to."""
    opened = open_role(recipe.judge, "judge")
    weights = weights_of(opened.model) if isinstance(opened, Local) else {}
    return {"judge": opened.name, "weights": weights, "prompts": prompts_hash()}


def base_sampling(recipe: Recipe) -> Sampling:
    """How every cell talks: as the recipe says, or as the base does by itself."""
    return recipe.sampling or listed_sampling(recipe.base.model) or Engine.load(recipe.base.model).sampling


def there(model: str) -> bool:
    """Whether a model can be played: a name that is known, or a folder with its configuration."""
    folder = Path(model).expanduser()
    return known(model) is not None or any((folder / f"{kind}.json").is_file() for kind in ("adapter_config", "config"))


def weights_of(model: str) -> dict[str, str]:
    """sha256 of the safetensors of a model, or of its adapter if it is one."""
    return _checksums(model, str(weights_version(model)))


@cache
def _checksums(model: str, version: str) -> dict[str, str]:
    located = locate(model)
    return {file.name: sha256(file) for file in sorted((located.adapter or located.folder).glob("*.safetensors"))}


def people_of(recipe: Recipe) -> list[Persona]:
    """Who is played."""
    return load_bank(recipe.personas).select(recipe.scenario, recipe.split)[: recipe.limit]


def taken(condition: Condition, cell: Cell) -> bool:
    """Whether a condition is for this cell."""
    return not condition.only or cell.method == BASE or bool({cell.method, cell.name} & set(condition.only))


def file_of(out: Path, kind: str, condition: str, cell: Cell) -> Path:
    """Where dialogues are kept; its folder is made."""
    file = out / kind / condition / f"{cell.name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
