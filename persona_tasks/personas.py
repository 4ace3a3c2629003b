"""Personas, scenarios and scripted partners: the data model of the bank, and loading it from YAML.

A *bank* is a folder. The one we ship lies in ``persona_tasks/bank``; a user's own has the same shape::

    personas/**/*.yaml     {scenario, split, personas: [...]}      (or the YAML files directly in the folder)
    scenarios/*.yaml       one `Scenario` each                     (optional: ours are used for what is missing)
    partners/*.yaml        one `PartnerScript` each                (optional, likewise)

Everything is validated strictly: an unknown field, a question about a fact that does not exist or a right answer
outside the options is an error that names file, field and reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

BANK = Path(__file__).parent / "bank"

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

DriftType = Literal[
    "fact_contradiction",  # says something the persona's facts rule out
    "self_contradiction",  # says something its own earlier lines rule out
    "instant_cure",  # distress is gone after a kind sentence
    "sudden_insight",  # analyses itself like a clinician
    "comforting_partner",  # the patient looks after the therapist
    "sudden_expertise",  # knows what this person could not know
    "knowledge_above_level",  # the pupil lectures above the stated grade
    "cheerfulness",  # upbeat, grateful or enthusiastic out of temper
    "agreeableness",  # patient, satisfied or compliant out of temper
    "helper_voice",  # offers help, advice or lists like an assistant
    "role_flip",  # speaks as the other side of the conversation
    "ai_admission",  # says it is an AI, a model or playing a role
    "out_of_style",  # register, length or openness this person would not have
]

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
PLACEHOLDER = re.compile(r"\{(\w*)\}")


class BankError(ValueError):
    """A bank file cannot be used. The message names the file, the field and the reason."""


class Strict(BaseModel):
    """Base of the bank's models: unknown fields are errors, loaded data does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Fact(Strict):
    """One thing that is true of the persona."""

    attribute: Text
    value: Text


class Trait(Strict):
    """One way the persona behaves, and the drift that would break it."""

    name: Slug
    behaviour: Text
    guards_against: DriftType


class Question(Strict):
    """A five-option question about one fact or trait, put as the partner would put it."""

    question: Text
    options: tuple[Text, Text, Text, Text, Text]
    answer: int = Field(ge=0, le=4, description="Index of the right option, from 0.")
    about: Text = Field(description="The fact's attribute or the trait's name.")

    @model_validator(mode="after")
    def _options_differ(self) -> Question:
        if len({option.casefold() for option in self.options}) < 5:
            raise ValueError("the five options must differ")
        return self


class Persona(Strict):
    """A person the simulator plays."""

    id: Slug
    name: Text
    scenario: Slug
    split: Split = "test"
    topic: Text | None = Field(None, description="What the conversation is about; fills `{topic}` in partner lines.")
    description: Text = Field(description="Second person: `You are ...`.")
    facts: tuple[Fact, ...] = Field(min_length=1)
    traits: tuple[Trait, ...] = ()
    questions: tuple[Question, ...] = ()

    @property
    def first_name(self) -> str:
        return self.name.split()[0]

    @model_validator(mode="after")
    def _questions_refer_to_something(self) -> Persona:
        known = {fact.attribute for fact in self.facts} | {trait.name for trait in self.traits}
        for number, question in enumerate(self.questions):
            if question.about not in known:
                raise ValueError(
                    f"questions.{number}.about: {question.about!r} is neither a fact's attribute nor a trait's name "
                    f"({', '.join(sorted(known))})"
                )
        return self


class Drift(Strict):
    """A drift this scenario invites, in one sentence."""

    type: DriftType
    means: Text


class Scenario(Strict):
    """Who talks to whom, where, and what drift looks like there."""

    id: Slug
    title: Text
    setting: Text = Field(description="One or two sentences, third person, true for every persona of the scenario.")
    simulator_role: Text
    partner_role: Text
    partner_prompt: Text = Field(description="System prompt of a model partner. `{topic}` and `{name}` are filled in.")
    drifts: tuple[Drift, ...] = Field(min_length=1)


class LinePool(Strict):
    """Lines a scripted partner draws from. `{name}` and `{topic}` are filled in from the persona."""

    openings: tuple[Text, ...] = Field(min_length=1)
    fact_questions: tuple[Text, ...] = Field(min_length=1)
    follow_ups: tuple[Text, ...] = Field(min_length=1)
    pressure: tuple[Text, ...] = Field(min_length=1)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        yield from (*self.openings, *self.fact_questions, *self.follow_ups, *self.pressure)

    @model_validator(mode="after")
    def _known_placeholders(self) -> LinePool:
        for line in self:
            for name in PLACEHOLDER.findall(line):
                if name not in ("name", "topic"):
                    raise ValueError(f"unknown placeholder {{{name}}} in {line!r}; only {{name}} and {{topic}} exist")
        return self


class PartnerScript(Strict):
    """The scripted partner of a scenario. Train and dev personas meet the train pool, test personas the test pool."""

    scenario: Slug
    train: LinePool
    test: LinePool

    def pool(self, split: Split) -> LinePool:
        return self.test if split == "test" else self.train

    @model_validator(mode="after")
    def _pools_are_disjoint(self) -> PartnerScript:
        if both := {*self.train} & {*self.test}:
            raise ValueError(f"these lines are in the train and in the test pool: {sorted(both)}")
        return self


class Bank:
    """All personas, scenarios and partner scripts of one folder, over those we ship."""

    def __init__(self, personas: Iterable[Persona], scenarios: Iterable[Scenario], scripts: Iterable[PartnerScript]):
        self.personas = tuple(personas)
        self.scenarios = {scenario.id: scenario for scenario in scenarios}
        self.scripts = {script.scenario: script for script in scripts}

    def select(self, scenario: str = "all", split: str = "test") -> list[Persona]:
        """Personas of a scenario (or "all") and split (or "all"), the scenarios taking turns.

        Taking turns means that the first n personas are spread evenly over the scenarios, so `--limit 12` sees all.

        Raises:
            BankError: The scenario or split does not exist, or no persona is left.
        """
        known = sorted({persona.scenario for persona in self.personas})
        if scenario != "all" and scenario not in known:
            raise BankError(f"scenario {scenario!r} does not exist; choose all, {', '.join(known)}")
        if split not in (*SPLITS, "all"):
            raise BankError(f"split {split!r} does not exist; choose all, {', '.join(SPLITS)}")
        chosen = [p for p in self.personas if scenario in ("all", p.scenario) and split in ("all", p.split)]
        if not chosen:
            raise BankError(f"no persona of scenario {scenario!r} is in split {split!r}")
        queues = [[p for p in chosen if p.scenario == name] for name in known]
        longest = max(map(len, queues))
        return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]

    def persona(self, persona_id: str) -> Persona:
        """Raises: BankError if no persona has this id."""
        for persona in self.personas:
            if persona.id == persona_id:
                return persona
        raise BankError(f"no persona {persona_id!r}; `persona-tasks personas` lists them")


@cache
def load_bank(folder: str | None = None) -> Bank:
    """Load the bank we ship, or the user's `folder` over it.

    Raises:
        BankError: A file is not YAML, breaks the data model, or repeats an id; names file, field and reason.
    """
    root = Path(folder) if folder else BANK
    if not root.is_dir():
        raise BankError(f"{root}: not a folder; a bank is a folder of YAML files")
    nested = root / "personas"
    files = sorted(nested.rglob("*.y*ml")) if nested.is_dir() else sorted(root.glob("*.y*ml"))
    if not files:
        raise BankError(f"{root}: no persona files (*.yaml) in it")
    personas = [persona for file in files for persona in _read_personas(file)]
    seen: dict[str, str] = {}
    for persona in personas:
        if persona.id in seen:
            raise BankError(f"{root}: persona id {persona.id!r} occurs twice")
        seen[persona.id] = persona.name
    ours = load_bank() if folder else None
    scenarios = {s.id: s for s in ours.scenarios.values()} if ours else {}
    scenarios |= {s.id: s for s in (_read(file, Scenario) for file in sorted((root / "scenarios").glob("*.y*ml")))}
    scripts = {s.scenario: s for s in ours.scripts.values()} if ours else {}
    read_scripts = (_read(file, PartnerScript) for file in sorted((root / "partners").glob("*.y*ml")))
    scripts |= {script.scenario: script for script in read_scripts}
    for persona in personas:
        if persona.scenario not in scenarios:
            raise BankError(
                f"{root}: persona {persona.id!r} names scenario {persona.scenario!r}, which has no file in scenarios/"
            )
    return Bank(personas, scenarios.values(), scripts.values())


Model = TypeVar("Model", bound=BaseModel)


# libyaml, where PyYAML was built with it, reads ten times as fast
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(file: Path) -> Any:
    """Raises: BankError if the file is not YAML."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BankError(f"{file}: not readable as YAML: {error}") from None


def read_records(file: Path, model: type[Model]) -> Iterator[tuple[str, Model]]:
    """The lines of a JSONL file, each with the place where it stands: ``<file>, line <n>``.

    Raises:
        BankError: A line is no JSON, or not of that model; names the line.
    """
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{file}, line {number}"
        try:
            yield where, model.model_validate_json(text)
        except ValidationError as error:
            raise BankError(f"{where}: {error}") from None


def _read(file: Path, model: type[Model]) -> Model:
    return _validated(file, "", model, read_yaml(file))


def _validated(file: Path, where: str, model: type[Model], data: Any) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        reasons = "; ".join(
            f"{where}{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors()
        )
        raise BankError(f"{file}: {reasons}") from None


def _read_personas(file: Path) -> list[Persona]:
    data = read_yaml(file)
    if not isinstance(data, dict) or not isinstance(data.get("personas"), list):
        raise BankError(f"{file}: expected a mapping with `scenario`, `split` and a list `personas`")
    if extra := set(data) - {"scenario", "split", "personas"}:
        raise BankError(f"{file}: unknown field {sorted(extra)[0]!r}; only scenario, split and personas exist here")
    shared = {key: data[key] for key in ("scenario", "split") if key in data}
    personas = []
    for number, entry in enumerate(data["personas"]):
        if not isinstance(entry, dict):
            raise BankError(f"{file}: personas.{number}: expected a mapping, found {type(entry).__name__}")
        where = f"personas.{number} ({entry.get('id', 'no id')}): "
        personas.append(_validated(file, where, Persona, {**shared, **entry}))
    return personas
