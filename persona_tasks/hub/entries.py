"""The entries of `registry.yaml`, each refusing unknown keys, secrets, paths of one machine, and NaN."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

# Whatever looks like one is neither stored nor published.
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{20,}"
    r"|xox[abpr]-[\w-]{10,}|AIza[\w-]{35}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?i:api_?key|token|password)=(?!none\b)[^\s,'\"]{8,}"
)
LOCAL_PATH = re.compile(
    r"(?<![\w.:])(?<!:/)(?:/(?:home|root|Users|tmp|work|mnt|data|var|private|opt|scratch)/|~/|[A-Za-z]:\\\\?\w)[^\s'\",]*"
)


def _clean(text: str) -> str:
    if SECRET.search(text):
        raise ValueError("holds what looks like a secret")
    if found := LOCAL_PATH.search(text):
        raise ValueError(f"holds a path of one machine: {found[0]}")
    return text


Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=96)]
HubId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=96)]
Namespace = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=64)]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, StringConstraints(pattern=r"^\d+-[A-Z]$")]  # comparability-interface
Tag = Annotated[str, StringConstraints(pattern=r"^v\d+(\.\d+)*$")]
_NAME = r"(?:[A-Za-z0-9_-][\w.-]*|\.[A-Za-z0-9_][\w.-]*)"  # neither `..` nor absolute nor a backslash
RelPath = Annotated[str, StringConstraints(pattern=rf"^{_NAME}(?:/{_NAME})*$")]
Public = Annotated[str, AfterValidator(_clean)]
Bounds = tuple[float | None, float | None]


class Entry(BaseModel):
    """Base of all entries: unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Metric(Entry):
    """What a number means."""

    id: Slug
    title: str
    definition: str
    direction: Literal["higher", "lower", "none"] = Field(description="Which way is better; none for a monitor.")
    range: tuple[float, float | None]

    def holds(self, value: float) -> bool:
        low, high = self.range
        return low <= value and (high is None or value <= high)


class Task(Entry):
    """A task as the harnesses know it. Scores of different version numbers must not be compared."""

    id: Slug
    title: str
    version: Version
    inspect: str | None = None
    lm_eval: str | None = None
    lm_eval_version: float | None = None
    metrics: list[Slug] = Field(min_length=1, description="The first is the one models are ranked by.")
    on_hub: bool = Field(False, description="Part of the benchmark data set's eval.yaml.")


class File(Entry):
    """A file and what it must be."""

    path: RelPath
    size: int = Field(ge=0)
    sha256: Sha256


class Scenario(Entry):
    """A scenario of the bank, with the files that a score on the test split depends on."""

    id: Slug
    title: str
    files: list[File]


class Judge(Entry):
    """A judge by the name that logs give it."""

    id: Slug
    name: str
    title: str
    usable: bool = Field(description="Whether its verdicts are worth anything.")
    note: str = ""
    checkpoint: Slug | None = None


class Package(Entry):
    """A Python package that carries a base model as one GGUF file."""

    module: str
    pip: str
    file: File


class Sampling(Entry):
    """How a model talks unless told otherwise; the fields of `persona_tasks.embedded.weights.Sampling`."""

    temperature: float = Field(0.0, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    frequency_penalty: float = 0.0


class Recipe(Entry):
    """What the training was started with."""

    path: RelPath
    sha256: Sha256
    command: Public


class Training(Entry):
    """How a checkpoint came to be, for its card."""

    personas: str
    rewards: list[str] = []
    judge: str | None = None
    steps: int = Field(ge=1)
    seed: int
    hardware: str
    hours: float | None = Field(None, ge=0)
    data_sha256: Sha256 | None = Field(
        None, description="Of what was learned from: a judge's data.json, or the data file."
    )
    commit: Commit


class Publication(Entry):
    """Where a checkpoint is on the Hub. The revision is a commit, so what is behind it cannot change."""

    repository: HubId
    revision: Commit
    on: date


class Checkpoint(Entry):
    """A model: a base that others published, or a LoRA adapter of ours."""

    id: Slug
    title: str
    kind: Literal["base", "adapter"]
    role: Literal["simulator", "judge"] = "simulator"
    repository: HubId = Field(description="On the Hub; an adapter's merged model has the same name and `-merged`.")
    revision: Commit | None = Field(None, description="base: the pinned commit.")
    license: str
    package: Package | None = None
    sampling: Sampling | None = Field(None, description="base: how it talks unless told otherwise.")
    base: Slug | None = None
    folder: RelPath | None = Field(None, description="adapter: where its files are, from the root.")
    files: list[File] = []
    version: Tag | None = None
    method: Literal["sft", "kto", "dpo", "signed", "grpo", "ppo"] | None = None
    description: Public = ""
    training: Training | None = None
    recipe: Recipe | None = None
    limits: list[Public] = []
    status: Literal["external", "local", "published"] = "local"
    published: Publication | None = None
    merged: Publication | None = None

    @property
    def weights(self) -> str | None:
        """sha256 of the weights that identify it: the adapter's, or the packaged file's."""
        if self.package:
            return self.package.file.sha256
        return next((file.sha256 for file in self.files if file.path.endswith(".safetensors")), None)

    @model_validator(mode="after")
    def _complete(self) -> Checkpoint:
        if any(not file.path.endswith((".safetensors", ".json", ".jinja", ".txt", ".model")) for file in self.files):
            raise ValueError(f"{self.id}: files may be safetensors, JSON and tokenizer files only")
        if self.kind == "base":
            missing = [name for name in ("revision",) if getattr(self, name) is None]
        else:
            needed = ("base", "folder", "version", "method", "training", "recipe")
            missing = [name for name in needed if getattr(self, name) is None]
            if self.weights is None:
                missing.append("files with an adapter_model.safetensors")
        if missing:
            raise ValueError(f"{self.id}: {self.kind} needs {', '.join(missing)}")
        if (self.status == "published") != (self.published is not None):
            raise ValueError(f"{self.id}: `published` (repository, revision, on) and status published go together")
        if (self.status == "external") != (self.kind == "base"):
            raise ValueError(f"{self.id}: status external is for base models, and for nothing else")
        return self


class CurvePoint(Entry):
    """One turn of a drift curve with its 95 % band."""

    turn: int = Field(ge=1)
    value: float
    low: float | None = None
    high: float | None = None


class Value(Entry):
    """One number with what is needed to read it."""

    metric: Slug
    scenario: str = Field(description="A scenario's id, or all.")
    value: float
    interval: Bounds | None = Field(None, description="95 %, clustered by persona.")
    n: int = Field(ge=1, description="Dialogues with a score, or questions asked.")
    personas: int = Field(ge=1)
    unparsed: float | None = Field(None, ge=0, le=1, description="Share of the verdicts that could not be read.")
    withheld: int = Field(0, ge=0, description="Dialogues without a score, because under half could be read.")
    curve: list[CurvePoint] = []


class LogFile(Entry):
    """A file that the numbers were computed from."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w@+=,.-]+$", max_length=255)]
    sha256: Sha256
    url: Annotated[str, StringConstraints(pattern=r"^https://[^\s<>\"']+$")] | None = None


class Score(Entry):
    """What one run of one model found. Made from its log, never by hand."""

    model: Public = Field(description="As the harness names it.")
    checkpoint: Slug | None = Field(None, description="The registry's name for it; None for models of others.")
    weights_sha256: Sha256 | None = None
    task: Slug
    task_version: Version
    prompts: str | None = Field(None, description="Hash of the prompts.")
    split: str
    turns: int | None = Field(None, ge=1)
    partner: str = "scripted"
    probe_mode: str | None = None
    seeds: list[int] = Field(min_length=1)
    judge: Public | None = None
    generation: dict[str, float | int | bool | str] = {}
    harness: str
    command: Public
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{7,40}(\+dirty)?$")] | None = None
    date: date
    logs: list[LogFile] = Field(min_length=1)
    values: list[Value] = Field(min_length=1)

    def value(self, metric: str, scenario: str = "all") -> Value | None:
        return next((value for value in self.values if (value.metric, value.scenario) == (metric, scenario)), None)

    @property
    def key(self) -> tuple[object, ...]:
        """Two scores with the same key measure the same thing."""
        settings = (self.split, self.turns, self.partner, self.probe_mode, tuple(self.seeds), self.judge)
        return (
            self.model,
            self.weights_sha256,
            self.task,
            self.task_version,
            *settings,
            str(self.generation),
            self.harness,
        )


class Benchmark(Entry):
    """The data set repository of the persona bank."""

    repository: HubId
    title: str
    license: str
    version: Tag
    status: Literal["local", "published"] = "local"
    published: Publication | None = None
