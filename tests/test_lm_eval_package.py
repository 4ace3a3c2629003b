"""How lm-eval comes to know our tasks: what is in the wheel, and the command for installations it does not cover."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from lm_eval.api.model import LM, CachingLM
from packaging.requirements import Requirement

from persona_tasks.lm_eval_tasks import TASKS, command
from persona_tasks.lm_eval_tasks.rollout import REQUEST_TYPE

ROOT = Path(__file__).parents[1]
OVERLAY = "lm_eval/tasks/persona_drift/"
BUILD = "import sys, hatchling.build as build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def built(kind: str, folder: Path) -> zipfile.ZipFile:
    run = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return zipfile.ZipFile(folder / run.stdout.split()[-1])


@pytest.mark.parametrize("kind", ["build_wheel", "build_editable"])
def test_the_task_folder_is_put_beside_lm_evals_own(tmp_path: Path, kind: str) -> None:
    wheel = built(kind, tmp_path)
    inside = {name.removeprefix(OVERLAY): name for name in wheel.namelist() if name.startswith("lm_eval/")}
    source = {path.name: path for path in (TASKS / "persona_drift").iterdir() if path.is_file()}
    assert set(inside) == set(source)
    assert all(wheel.read(inside[name]) == path.read_bytes() for name, path in source.items())
    [record] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/RECORD")]
    assert all(f"{OVERLAY}{name},sha256=" in record for name in source)


def test_nothing_pretends_to_be_lm_eval_without_it(tmp_path: Path) -> None:
    """No code lies in its folder, and it is a requirement of ours without any condition."""
    wheel = built("build_wheel", tmp_path)
    assert not [name for name in wheel.namelist() if name.startswith("lm_eval/") and name.endswith(".py")]
    [text] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    needed = [Requirement(line) for line in Parser().parsestr(text).get_all("Requires-Dist") or []]
    [ours] = [requirement for requirement in needed if requirement.name == "lm-eval"]
    assert ours.marker is None
    assert metadata.version("lm-eval") in ours.specifier


def test_the_coming_entry_point_leads_to_the_tasks(tmp_path: Path) -> None:
    wheel = built("build_wheel", tmp_path)
    [text] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "[lm_eval.tasks]\npersona_tasks = persona_tasks.lm_eval_tasks\n" in text
    assert (TASKS / "persona_drift" / "persona_drift.yaml").is_file()


def test_the_request_type_is_added_and_nothing_is_replaced() -> None:
    assert REQUEST_TYPE in vars(LM) and REQUEST_TYPE in vars(CachingLM)
    assert vars(LM)[REQUEST_TYPE].__module__ == "persona_tasks.lm_eval_tasks.rollout"


@pytest.mark.parametrize(
    ("there", "given", "paths"),
    [
        (True, None, None),
        (True, "mine", ["mine"]),
        (False, None, [str(TASKS)]),
        (False, "mine", ["mine", str(TASKS)]),
    ],
)
def test_our_folder_is_added_where_lm_eval_does_not_find_it(
    monkeypatch: pytest.MonkeyPatch, there: bool, given: str | None, paths: list[str] | None
) -> None:
    monkeypatch.setattr(command, "installed", lambda: there)
    assert command.include_paths(given) == paths


def test_the_wrapper_is_lm_evals_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "installed", lambda: False)
    command.run_lm_eval(["validate", "--tasks", "persona_drift,persona_qa"])
    assert "All tasks found and valid" in capsys.readouterr().out


def test_the_wrapper_leaves_the_version_and_help_to_lm_eval(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.run_lm_eval(["run", "--help"])
    assert end.value.code == 0
    assert "--apply_chat_template" in capsys.readouterr().out
