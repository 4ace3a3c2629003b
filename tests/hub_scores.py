"""Scores as files hold them, and a leaderboard with five of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from persona_tasks.cli import app
from tests.hub_world import World

HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
SCENARIOS = ("all", "chat", "education", "therapy", "service")


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def score(model: str, first: float, judge: str = "openai-api/local/judge", **changes: Any) -> dict[str, Any]:
    """A score as a file holds it; the later scenarios a little lower each."""
    values = []
    for step, scenario in enumerate(SCENARIOS):
        for place, metric in enumerate(("prompt_to_line", "line_to_line", "qa")):
            value = round(first - 0.02 * step - 0.05 * place, 3)
            curve = [
                {
                    "turn": t,
                    "value": round(value - 0.02 * t, 3),
                    "low": round(value - 0.02 * t - 0.05, 3),
                    "high": value,
                }
                for t in range(1, 9)
            ]
            interval = [round(value - 0.06, 3), round(min(1, value + 0.04), 3)]
            more = {"n": 40, "personas": 40, "unparsed": 0.02, "curve": curve}
            values.append({"metric": metric, "scenario": scenario, "value": value, "interval": interval, **more})
        for metric in ("line_length", "distinct_2", "self_repetition", "persona_copying", "role_flips"):
            values.append({"metric": metric, "scenario": scenario, "value": 0.25, "n": 40, "personas": 40})
    entry = {
        "model": model,
        "task": "drift",
        "task_version": "1-A",
        "split": "test",
        "turns": 8,
        "seeds": [0],
        "judge": judge,
        "harness": "inspect-ai 0.3.285",
        "command": f"inspect eval persona_tasks/drift --model {model}",
        "date": "2026-11-22",
        "logs": [{"name": "a.eval", "sha256": "0" * 64, "url": "https://example.org/a.eval"}],
        "values": values,
    }
    return {**entry, **changes}


def fill(world: World) -> World:
    """Our checkpoint, four submitted models, one with a hostile name, one with another judge."""
    data = yaml.safe_load(world.file.read_text())
    weights = world.registry.checkpoint("tiny-sim").weights
    data["scores"] = [score("tiny-sim", 0.7, checkpoint="tiny-sim", weights_sha256=weights)]
    data["judges"].append({"id": "bad", "name": "bad/judge", "title": "Bad judge", "usable": False, "note": "Chance."})
    world.file.write_text(yaml.safe_dump(data))
    folder = world.root / "submissions"
    folder.mkdir()
    submitted = {
        "a": score("hf/org/strong", 0.95),
        "b": score("hf/org/weak", 0.5),
        "c": score(HOSTILE, 0.6),
        "d": score("hf/org/other", 0.99, judge="bad/judge"),
    }
    for name, entry in submitted.items():
        text = yaml.safe_dump({"schema_version": 1, "by": f"somebody {name}", "score": entry})
        (folder / f"{name}.yaml").write_text(text)
    return world


def written(world: World, folder: Path) -> Path:
    result = call("leaderboard", "-o", str(folder))
    assert result.exit_code == 0, result.output
    return folder / "index.html"
