"""Submissions: from a log to a file that the leaderboard reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from persona_tasks.hub.registry import Registry, RegistryError, save
from persona_tasks.hub.submissions import read_submissions
from persona_tasks.inspect_tasks.tasks import drift
from tests import inspect_runs
from tests.chat_server import ChatServer
from tests.hub_scores import call, written
from tests.hub_world import World
from tests.inspect_runs import everybody


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of a model of somebody else."""
    folder = tmp_path_factory.mktemp("logs")
    with ChatServer(everybody) as server:
        inspect_runs.run(drift(scenario="chat", turns=2, probes="2"), server, folder)
    [file] = folder.glob("*.eval")
    return file


def test_a_log_becomes_a_file_that_the_leaderboard_reads(world: World, log: Path, tmp_path: Path) -> None:
    result = call("submit", str(log), "--by", "Ada Lovelace", "-o", str(world.root / "submissions"))
    assert result.exit_code == 0, result.output
    [submission] = read_submissions(world.registry, world.root)
    assert submission.by == "Ada Lovelace" and submission.score.model == "openai-api/local/simulator"
    assert submission.score.checkpoint is None and submission.score.value("qa", "chat")
    assert "Ada Lovelace" in written(world, tmp_path / "site").read_text()


def test_the_untrained_judge_is_not_enough(world: World, log: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(world.file.read_text())
    data["judges"][0] |= {"usable": False, "note": "Chance."}
    world.file.write_text(yaml.safe_dump(data))
    result = call("submit", str(log), "--by", "a", "-o", str(tmp_path))
    assert result.exit_code == 2 and "no usable judge (Chance.)" in result.output
    assert not list(tmp_path.glob("*.yaml"))


def test_a_run_without_questions_is_not_complete(world: World, tmp_path: Path) -> None:
    with ChatServer(everybody) as server:
        inspect_runs.run(drift(scenario="chat", turns=2, probes="none"), server, tmp_path)
    [file] = tmp_path.glob("*.eval")
    result = call("submit", str(file), "--by", "a", "-o", str(tmp_path / "out"))
    assert result.exit_code == 2 and "no qa" in result.output


def test_names_of_submitters_are_checked(world: World, log: Path, tmp_path: Path) -> None:
    for name in ("", "x" * 81, "hf_" + "a" * 30):
        result = call("submit", str(log), "--by", name, "-o", str(tmp_path))
        assert result.exit_code == 2 and "--by" in result.output


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda d: d["score"].update(task_version="2-A"), "not comparable"),
        (lambda d: d["score"].update(checkpoint="tiny-sim"), "add-score"),
        (lambda d: d["score"]["values"][0].update(value=2.0), "outside"),
        (lambda d: d["score"].update(rank=1), "Extra"),
        (lambda d: d["score"]["logs"][0].update(url="javascript:alert(1)"), "pattern"),
        (lambda d: d["score"].update(model="hf//home/ada/model"), "one machine"),
    ],
)
def test_a_bad_submission_is_refused_by_name(filled: World, tmp_path: Path, edit: Any, why: str) -> None:
    file = filled.root / "submissions" / "a.yaml"
    data = yaml.safe_load(file.read_text())
    edit(data)
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(RegistryError, match=why):
        read_submissions(filled.registry, filled.root)
    result = call("leaderboard", "-o", str(tmp_path))
    assert result.exit_code == 2 and "a.yaml" in result.output and not (tmp_path / "index.html").exists()
    assert "a.yaml" in call("registry", "check").output


def test_saving_keeps_an_old_registry_if_it_cannot_finish(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a write."""
    before = world.file.read_bytes()
    registry: Registry = world.registry

    def full(self: Path, text: str, **_: Any) -> None:
        with self.open("w") as file:
            file.write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        save(registry, world.file)
    assert world.file.read_bytes() == before
