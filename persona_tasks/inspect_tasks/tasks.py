"""The tasks: `drift` holds dialogues and scores them, `transcripts` scores dialogues that exist already."""

from __future__ import annotations

from typing import Any, Literal

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Scorer
from inspect_ai.viewer import (
    SampleScoreView,
    ScoreColorScale,
    TaskSamplesColumn,
    TaskSamplesSort,
    TaskSamplesView,
    ViewerConfig,
)

from persona_tasks.importers import load
from persona_tasks.inspect_tasks.dialogue import recorded_dialogue, simulated_dialogue
from persona_tasks.inspect_tasks.scorers import line_to_line, monitors, prompt_to_line, qa
from persona_tasks.personas import Persona, load_bank
from persona_tasks.protocol.limits import LINE_TOKENS
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.probes import probe_turns
from persona_tasks.protocol.prompts import persona_text
from persona_tasks.transcript import METRICS, Metric, ProbeMode, Transcript

# Comparability (number) and interface (letter): scores of different numbers must not be compared.
VERSION = "1-A"

VIEW = ViewerConfig(
    sample_score_view=SampleScoreView(default="grid"),
    task_samples_view=TaskSamplesView(
        name="Drift",
        columns=[
            TaskSamplesColumn(id="sampleId"),
            TaskSamplesColumn(id="input"),
            *(TaskSamplesColumn.score(metric) for metric in METRICS),
            TaskSamplesColumn(id="target", visible=False),
        ],
        sort=[TaskSamplesSort.score("prompt_to_line", dir="asc")],
        score_labels={"prompt_to_line": "Prompt to line", "line_to_line": "Line to line", "qa": "Questions"},
        score_color_scales={metric: ScoreColorScale(palette="good-high", min=0, max=1) for metric in METRICS},
        color_scales_enabled=True,
    ),
)


@task
def drift(
    scenario: str = "all",
    split: str = "test",
    turns: int = 8,
    partner: Literal["scripted", "model"] = "scripted",
    probes: str | int | list[int | str] = "default",
    probe_mode: ProbeMode = "open",
    personas: str | None = None,
    context: bool = False,
    seed: int = 0,
) -> Task:
    """Does a simulated user stay the person it was told to be?

    The evaluated model plays each persona in a dialogue with a fixed partner; a judge (role `judge`) compares its lines
    with the persona and with each other, and its answers to questions with the facts.

    Args:
        scenario: chat, education, therapy, service, one of your own, or all.
        split: Personas (and partner lines) of the train, dev or test split, or all.
        turns: Lines the simulator says in each dialogue.
        partner: A scripted partner, or the model bound to the role `partner`.
        probes: Turns after which the persona's questions are asked, such as 1,4,8; `default` for first, middle
            and last, `none` for never.
        probe_mode: `open` questions answered in own words, or `choice` between five lettered options.
        personas: Folder of a bank of your own (YAML).
        context: Show the judge the partner's line that each line answers.
        seed: Seed of the partner's lines in the first epoch; each further epoch takes the next.
    """
    bank = load_bank(personas)
    if turns < 1:
        raise ValueError(f"turns must be at least 1, not {turns}")
    after = probe_turns(probes, turns)

    def sample(persona: Persona) -> Sample:
        setting = bank.scenarios[persona.scenario]
        script = make_partner(persona, setting, bank.scripts.get(persona.scenario), turns, seed, partner)
        return Sample(
            id=persona.id,
            input=script.script[0],
            target=persona_text(persona),
            metadata={"persona_id": persona.id, "scenario": persona.scenario, "split": persona.split},
        )

    return Task(
        dataset=MemoryDataset([sample(p) for p in bank.select(scenario, split)], name=f"personas-{scenario}-{split}"),
        solver=simulated_dialogue(turns, after, probe_mode, partner, seed, personas),
        scorer=_scorers(METRICS if after is None or after else METRICS[:2], context),
        config=GenerateConfig(max_tokens=LINE_TOKENS),
        headline_metric="prompt_to_line",
        viewer=VIEW,
        version=VERSION,
        tags=["persona", "simulated user", "multi-turn"],
        description="Does a simulated user stay the person it was told to be?",
    )


@task
def transcripts(
    file: str,
    format: str = "auto",
    speaker: int | None = None,
    simulator_role: str | None = None,
    metrics: str | list[str] = "prompt_to_line,line_to_line,qa",
    context: bool = False,
) -> Task:
    """Score dialogues that exist already. A second run asks the judge only for the verdicts that are missing.

    Args:
        file: Our JSONL, the reference paper's JSON, OpenAI-style messages (JSON or JSONL), or an Inspect log.
        format: auto, jsonl, consistent-llms, messages or inspect.
        speaker: consistent-llms: which speaker is the simulator, 1 or 2.
        simulator_role: messages: the role of the simulator's messages, `assistant` unless given.
        metrics: Which metrics to judge, separated by commas.
        context: Show the judge the partner's line that each line answers.
    """
    options: dict[str, Any] = {"speaker": speaker, "simulator_role": simulator_role}
    records = load(file, format, **{name: value for name, value in options.items() if value is not None})

    def sample(number: int, transcript: Transcript) -> Sample:
        return Sample(
            id=f"{transcript.id}#{number}",
            input=transcript.turns[0].partner or "(the simulator speaks first)" if transcript.turns else "(empty)",
            target=transcript.persona_text,
            metadata={
                "persona_id": transcript.persona_id,
                "scenario": transcript.scenario,
                "transcript": transcript.model_dump(mode="json"),
            },
        )

    return Task(
        dataset=MemoryDataset([sample(n, r.transcript) for n, r in enumerate(records, start=1)], name="transcripts"),
        solver=recorded_dialogue(),
        scorer=_scorers(metric_names(metrics), context, resume=True),
        headline_metric="prompt_to_line",
        viewer=VIEW,
        version=VERSION,
        tags=["persona", "simulated user", "multi-turn"],
        description="Did these simulated users stay the people they were told to be?",
    )


def metric_names(metrics: str | list[str]) -> tuple[Metric, ...]:
    """Raises: ValueError for a name that is no metric."""
    wanted = metrics if isinstance(metrics, list) else metrics.split(",")
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ValueError(f"metrics: {unknown[0]!r} is none of {', '.join(METRICS)}")
    return tuple(metric for metric in METRICS if metric in wanted)


def _scorers(metrics: tuple[Metric, ...], context: bool, resume: bool = False) -> list[Scorer]:
    made: list[Scorer] = []
    if "prompt_to_line" in metrics:
        made.append(prompt_to_line(context=context, resume=resume))
    if "line_to_line" in metrics:
        made.append(line_to_line(resume=resume))
    if "qa" in metrics:
        made.append(qa(resume=resume))
    return [*made, monitors()]
