"""The settings of a run: the keys that users give with `--metadata` or in a task's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from persona_tasks.personas import BankError, load_bank
from persona_tasks.protocol.judging import DEFAULT_JUDGE
from persona_tasks.protocol.probes import probe_turns
from persona_tasks.protocol.prompts import prompts_hash
from persona_tasks.transcript import ProbeMode


class Settings(BaseModel):
    """Settings of one task.

    lm-eval hands over one dictionary in which the YAML's metadata, `--model_args` and `--metadata` are already merged,
    so keys that are not ours are left alone.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    split: str = Field("test", description="Personas (and partner lines) of this split: train, dev, test or all.")
    turns: int = Field(8, ge=1, description="Lines that the simulator says.")
    partner: str = Field("scripted", description="`scripted`, or a model: see `judge`.")
    judge: str = Field(DEFAULT_JUDGE, description="persona/NAME, openai:MODEL@BASE_URL, or a folder with a model.")
    probes: str | int | list[int] = Field("default", description="After which turns questions are asked: `1,4,8`.")
    probe_mode: ProbeMode = Field("open", description="`open` questions, or `choice` between five lettered options.")
    seed: int = Field(0, description="Seed of the scripted partner's lines.")
    context: bool = Field(False, description="Show the judge the partner's line that each line answers.")
    personas: str | None = Field(None, description="Folder of a bank of your own (YAML).")
    format: Literal["auto", "plain"] = Field("auto", description="`plain`: no chat template, even if there is one.")
    endpoint_connections: int = Field(16, ge=1, description="Requests to an endpoint (judge, partner) at one time.")
    endpoint_timeout: float = Field(120.0, gt=0, description="Seconds after which a request to an endpoint is retried.")

    @property
    def after(self) -> list[int] | None:
        """The turns after which questions are asked; None for the default, [] for never."""
        return probe_turns(self.probes, self.turns)

    @model_validator(mode="after")
    def _usable(self) -> Settings:
        _ = self.after
        return self

    def in_rollout(self) -> dict[str, Any]:
        """The settings on which a dialogue depends. Dialogues that have them in common are held together."""
        return self.model_dump(exclude={"judge", "context"})


def read_settings(task: str, metadata: Mapping[str, Any]) -> Settings:
    """The settings in a task's metadata.

    Raises:
        ValueError: A value cannot be used. Names task, key and reason.
    """
    for key in metadata:
        if key not in Settings.model_fields and (meant := get_close_matches(key, Settings.model_fields, 1, 0.8)):
            raise ValueError(f"{task}: --metadata {key}: there is no such setting; {meant[0]}?")
    try:
        settings = Settings.model_validate(dict(metadata))
        load_bank(settings.personas)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{task}: --metadata {key}{'=' if key else ''}{_shown(problem)}: {problem['msg']}") from None
    except BankError as error:
        raise ValueError(f"{task}: --metadata personas: {error}") from None
    return settings


def _shown(problem: Mapping[str, Any]) -> str:
    return repr(problem["input"]) if problem["loc"] else ""


def kept(metadata: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The metadata that may stand in a results file: ours and the harness's, without model arguments or their keys."""
    harness = {name: metadata[name] for name in ("version", "config_source") if name in metadata}
    return {**harness, "prompts": prompts_hash(), **settings.model_dump()}
