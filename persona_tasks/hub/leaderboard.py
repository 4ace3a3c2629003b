"""The leaderboard: one HTML file with its data inside, from the registry and the submissions; no server, no build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from persona_tasks.hub.entries import Score, Value
from persona_tasks.hub.registry import Registry
from persona_tasks.hub.release import Release
from persona_tasks.hub.submissions import read_submissions

PAGE = Path(__file__).with_name("leaderboard.html.jinja")
SPACE_CARD = """---
title: {title}
sdk: static
app_file: index.html
license: apache-2.0
short_description: Which language models stay in character?
---

Made by `persona-tasks leaderboard` from the registry of persona-tasks; not edited by hand.
"""


def write_leaderboard(registry: Registry, root: Path, folder: Path) -> list[Path]:
    """Write the page, and beside it the card that makes the folder a static Space.

    Raises:
        RegistryError: A submission breaks a rule.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, readme = folder / "index.html", folder / "README.md"
    page.write_text(render(registry, root), encoding="utf-8")
    readme.write_text(SPACE_CARD.format(title=registry.benchmark.title), encoding="utf-8")
    return [page, readme]


def leaderboard_release(registry: Registry, root: Path, scratch: Path, namespace: str) -> Release:
    """The page as a static Space."""
    write_leaderboard(registry, root, scratch / "space")
    name = f"{namespace}/{registry.leaderboard.partition('/')[2]}"
    return Release(name, "space", scratch / "space", registry.benchmark.version, registry.collection)


def render(registry: Registry, root: Path) -> str:
    """The page. Names from elsewhere reach it as JSON and are set as text, never as HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(title=registry.benchmark.title, data=data(registry, root)) + "\n"


def data(registry: Registry, root: Path) -> dict[str, Any]:
    """What the page shows: metrics, scenarios, judges, and a row per score."""
    from persona_tasks.judge_card import known_card, worth

    submissions = [(submission.score, submission.by) for submission in read_submissions(registry, root)]
    tasks = [task for task in registry.tasks if task.inspect]
    scores = [(score, "") for score in registry.scores] + submissions
    judges = {judge.name: judge for judge in registry.judges}
    return {
        "metrics": [
            metric.model_dump(include={"id", "title", "definition", "direction"}) for metric in registry.metrics
        ],
        "ranked": tasks[0].metrics[:3],
        "monitors": tasks[0].metrics[3:],
        "scenarios": [{"id": scenario.id, "title": scenario.title} for scenario in registry.scenarios],
        "judges": [
            {
                "name": name,
                "title": judges[name].title if name in judges else name,
                "doubt": judges[name].note if name in judges and not judges[name].usable else "",
                "worth": worth(name) if known_card(name) else "",
            }
            for name in sorted({score.judge or "" for score, _ in scores if score.task == tasks[0].id})
        ],
        "rows": [_row(registry, score, by) for score, by in scores if score.task == tasks[0].id],
        "version": tasks[0].version,
    }


def _row(registry: Registry, score: Score, by: str) -> dict[str, Any]:
    checkpoint = registry.checkpoint(score.checkpoint) if score.checkpoint else None
    repository = checkpoint.repository if checkpoint else _on_hub(score.model)
    return {
        "model": checkpoint.title if checkpoint else score.model,
        "link": f"https://huggingface.co/{repository}" if repository else "",
        "by": by,
        "judge": score.judge or "",
        "turns": score.turns,
        "seeds": score.seeds,
        "harness": score.harness,
        "date": score.date.isoformat(),
        "command": score.command,
        "logs": [{"name": log.name, "url": log.url or "", "sha256": log.sha256} for log in score.logs],
        "values": [_value(value) for value in score.values],
    }


def _on_hub(model: str) -> str:
    """The repository of a model that the harness loaded from the Hub."""
    provider, _, name = model.partition("/")
    return name if provider in ("hf", "vllm", "sglang") and name.count("/") == 1 and not name.startswith("/") else ""


def _value(value: Value) -> dict[str, Any]:
    return value.model_dump(include={"metric", "scenario", "value", "interval", "n", "unparsed", "curve"})
