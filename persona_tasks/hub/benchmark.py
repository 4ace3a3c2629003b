"""The persona bank and the calibration set as a data set repository, with an `eval.yaml` for what a table can express.

The Hub's benchmark format knows fixed prompts and built-in scorers only. So the questions about a persona after 0, 4 or
8 written turns are in it; the simulated dialogues are not, and run from this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from persona_tasks.calibration import HELD, load_dialogues
from persona_tasks.hub.cards import TEMPLATE
from persona_tasks.hub.registry import Registry
from persona_tasks.hub.release import Release
from persona_tasks.personas import BANK, SPLITS, Persona, load_bank
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.prompts import persona_text, simulator_prompt

DEPTHS = (0, 4, 8)
SEED = 0  # of the scripted partner, as in the tasks
CALIBRATION = BANK / "calibration"

Rows = list[dict[str, Any]]


def benchmark_release(registry: Registry, root: Path, scratch: Path, namespace: str) -> Release:
    """The repository's folder: JSON lines, `eval.yaml` and the data set card."""
    folder = scratch / "benchmark"
    tables = all_tables()
    for (config, split), rows in tables.items():
        file = folder / "data" / config / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    repository = f"{namespace}/{registry.benchmark.repository.partition('/')[2]}"
    (folder / "README.md").write_text(card(registry, root, repository, tables), encoding="utf-8")
    text = yaml.safe_dump(eval_yaml(registry), sort_keys=False, allow_unicode=True, width=120)
    (folder / "eval.yaml").write_text(text, encoding="utf-8")
    return Release(repository, "dataset", folder, registry.benchmark.version, registry.collection)


def all_tables() -> dict[tuple[str, str], Rows]:
    """Every table of the repository, by config and split."""
    tables: dict[tuple[str, str], Rows] = {}
    for split in SPLITS:
        tables["personas", split] = [_persona(persona) for persona in load_bank().select("all", split)]
        tables["lines", split] = list(_calibration("lines", split))
        tables["pairs", split] = list(_calibration("pairs", split))
        for name in HELD:
            tables[name, split] = list(_held(name, split))
    for depth in DEPTHS:
        tables[f"probes_depth{depth}", "test"] = list(probes(depth))
    return tables


def _persona(persona: Persona) -> dict[str, Any]:
    scenario = load_bank().scenarios[persona.scenario]
    return {
        **persona.model_dump(mode="json"),
        "persona_text": persona_text(persona),
        "setting": scenario.setting,
        "simulator_role": scenario.simulator_role,
        "partner_role": scenario.partner_role,
    }


def _calibration(kind: str, split: str) -> Iterator[dict[str, Any]]:
    for scenario in sorted(load_bank().scenarios):
        items = yaml.safe_load((CALIBRATION / scenario / f"{split}.yaml").read_text(encoding="utf-8"))[kind]
        for number, item in enumerate(items):
            yield {"id": f"{scenario}/{split}/{kind}/{number}", "scenario": scenario, **item}


def _held(name: str, split: str) -> Iterator[dict[str, Any]]:
    for scenario in sorted(load_bank().scenarios):
        for dialogue in load_dialogues(scenario, split, name):
            yield {"scenario": scenario, **dialogue.model_dump(mode="json")}


def probes(depth: int) -> Iterator[dict[str, Any]]:
    """The questions of the test personas after `depth` written turns, as chat messages with options."""
    from persona_tasks.lm_eval_tasks.qa import neutral_lines

    bank = load_bank()
    for persona in bank.select("all", "test"):
        scenario = bank.scenarios[persona.scenario]
        partner = make_partner(persona, scenario, bank.scripts.get(scenario.id), depth, SEED, "scripted")
        said = neutral_lines(persona, depth, SEED)
        history = [{"role": "system", "content": simulator_prompt(persona, scenario)}]
        for heard, answer in zip(partner.script[:depth], said, strict=True):
            history += [{"role": "user", "content": heard}, {"role": "assistant", "content": answer}]
        for number, question in enumerate(persona.questions):
            yield {
                "id": f"{persona.id}/{number}",
                "persona_id": persona.id,
                "scenario": scenario.id,
                "depth": depth,
                "messages": [*history, {"role": "user", "content": question.question}],
                "choices": list(question.options),
                "answer": question.answer,
            }


def eval_yaml(registry: Registry) -> dict[str, Any]:
    """The Hub's description of a benchmark; only keys, solvers and scorers that Inspect's reader knows."""
    return {
        "name": registry.benchmark.title,
        "description": "Does a simulated user still know who it is after a number of turns of dialogue?",
        "evaluation_framework": "inspect-ai",
        "tasks": [
            {
                "id": task.id,
                "config": task.id,
                "split": "test",
                "field_spec": {
                    "input": "messages",
                    "target": "answer",
                    "choices": "choices",
                    "metadata": ["persona_id", "scenario", "depth"],
                },
                "solvers": [{"name": "multiple_choice"}],
                "scorers": [{"name": "choice"}],
            }
            for task in registry.tasks
            if task.on_hub
        ],
    }


def card(registry: Registry, root: Path, repository: str, tables: Mapping[tuple[str, str], Rows]) -> str:
    """The data set card."""
    from huggingface_hub import DatasetCard, DatasetCardData

    bank, rows = load_bank(), _counts(tables)
    metadata = DatasetCardData(
        language="en",
        license=registry.benchmark.license,
        pretty_name=registry.benchmark.title,
        task_categories=["text-generation", "multiple-choice"],
        tags=["persona-tasks", "persona", "simulated-user", "benchmark"],
        configs=[_config(config, tables) for config in dict.fromkeys(config for config, _ in tables)],
    )
    made = DatasetCard.from_template(
        metadata,
        template_path=str(root / TEMPLATE.with_name("dataset.md.jinja")),
        title=registry.benchmark.title,
        repository=repository,
        personas=rows["personas"],
        scenarios=len(bank.scenarios),
        names=", ".join(sorted(bank.scenarios)),
        lines=rows["lines"],
        pairs=rows["pairs"],
        probes=sum(rows[f"probes_depth{depth}"] for depth in DEPTHS),
        held=sum(len(row["turns"]) for (name, _), found in tables.items() if name in HELD for row in found),
        rows={**rows, "probes": rows[f"probes_depth{DEPTHS[0]}"]},
        depths=DEPTHS,
        license=registry.benchmark.license,
    )
    return str(made.content).rstrip("\n") + "\n"


def _counts(tables: Mapping[tuple[str, str], Rows]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for (config, _), rows in tables.items():
        counts[config] = counts.get(config, 0) + len(rows)
    return counts


def _config(config: str, tables: Iterable[tuple[str, str]]) -> dict[str, Any]:
    splits = [split for name, split in tables if name == config]
    files = [{"split": split, "path": f"data/{config}/{split}.jsonl"} for split in splits]
    return {"config_name": config, "data_files": files, **({"default": True} if config == "personas" else {})}
