"""The documentation builds without a broken link, and every command shown in it exists with the options shown.

Commands that need no model (`persona-tasks personas` and `report`, the Python of a page) are run. Of the others, which
would need a network or a large model, the program's own `--help`, task signature or settings are asked whether they
know each option. A command of a kind that is not checked here fails the test.
"""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from persona_tasks.cli import app
from persona_tasks.inspect_tasks import tasks
from persona_tasks.lm_eval_tasks import TASKS
from persona_tasks.lm_eval_tasks.settings import Settings
from persona_tasks.transcript import append_jsonl
from tests.dialogues import dialogues

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "training" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
OURS = typer.main.get_command(app)


def blocks(page: Path, language: str) -> list[str]:
    return [found[3] for found in BLOCK.finditer(page.read_text(encoding="utf-8")) if found[2] == language]


def commands() -> list[tuple[str, str]]:
    """Page and command line, continued lines joined and comments cut off."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = [word for word in shlex.split(line, comments=True) if word != "..."]
                if words:
                    found.append((page.name, shlex.join(words)))
    return found


SHOWN = commands()


def test_there_are_commands_of_every_kind():
    kinds = {Path(shlex.split(line)[0]).name for _, line in SHOWN}
    assert kinds >= {"inspect", "lm_eval", "persona-tasks", "make", "python"} and len(SHOWN) > 30


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{page}:{line[:60]}" for page, line in SHOWN])
def test_a_command_exists_with_its_options(page, line):
    program, *arguments = shlex.split(line)
    name = Path(program).name
    if name == "persona-tasks":
        parse_ours(arguments)
    elif name == "inspect":
        check_inspect(arguments)
    elif name == "lm_eval":
        check_lm_eval(arguments)
    elif name == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif name == "python":
        check_python(arguments)
    else:  # setting a variable
        assert name == "export" or re.fullmatch(r"[A-Z_]+=.*", program), f"nothing here can check {name!r}"


@pytest.mark.parametrize(
    "line",
    [
        "persona-tasks report logs --pdf plots",
        "inspect eval persona_tasks/drift --no-such-option",
        "inspect eval persona_tasks/drift -T length=8",
        "lm_eval --tasks persona_drifting",
        "lm_eval --tasks persona_drift --metadata judges=x",
        "python benchmarks/none.py",
        "python -m training.grpo --config training/recipes/none.yaml --out x",
        "make coffee",
        "wget somewhere",
    ],
)
def test_a_wrong_command_would_be_found(line):
    with pytest.raises(Exception, match=r"."):
        test_a_command_exists_with_its_options("page", line)


def parse_ours(arguments):
    name, *rest = arguments
    command = OURS.commands[name]
    if name == "lm-eval":
        check_lm_eval(rest)
    elif rest != ["--help"]:
        command.make_context(name, list(rest))  # raises for an option or a value that it does not know


@cache
def help_of(*command: str) -> str:
    return subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout


def check_inspect(arguments):
    known = help_of(sys.executable, "-m", "inspect_ai", arguments[0])
    for option in options(arguments):
        assert re.search(rf"(?<![\w-]){re.escape(option)}\b", known), f"inspect {arguments[0]} has no {option}"
    if arguments[0] == "eval":
        task = getattr(tasks, arguments[1].removeprefix("persona_tasks/"))
        given = [value.partition("=")[0] for option, value in pairwise(arguments) if option == "-T"]
        assert set(given) <= set(inspect.signature(task).parameters)


def check_lm_eval(arguments):
    known = help_of(sys.executable, "-m", "lm_eval", "run")
    for option in options(arguments):
        assert re.search(rf"(?<![\w-]){re.escape(option)}\b", known), f"lm_eval has no {option}"
    wanted = values(arguments, "--tasks")
    names = re.compile(r"^(?:task|group): (\w+)", re.MULTILINE)
    assert set(wanted) <= {name for file in TASKS.rglob("*.yaml") for name in names.findall(file.read_text())}
    settings = {value.partition("=")[0] for value in values(arguments, "--metadata")}
    assert settings <= set(Settings.model_fields)


def check_python(arguments):
    if arguments[0] == "-m":
        parts = arguments[1].split(".")
        assert ROOT.joinpath(*parts).with_suffix(".py").is_file() or ROOT.joinpath(*parts, "__main__.py").is_file()
        assert all((ROOT / recipe).is_file() for recipe in values(arguments, "--config"))
        return
    script = ROOT / arguments[0]
    assert script.is_file()
    for option in options(arguments):
        assert option in help_of(sys.executable, str(script))


def options(arguments):
    return [word.partition("=")[0] for word in arguments if re.match(r"--?[A-Za-z]", word)]


def values(arguments, option):
    """The words after an option, up to the next one."""
    if option not in arguments:
        return []
    rest = arguments[arguments.index(option) + 1 :]
    return rest[: next((n for n, word in enumerate(rest) if word.startswith("--")), len(rest))]


# ------------------------------------------------------------------------------------------------------ really run


@pytest.mark.parametrize("line", sorted({line for _, line in SHOWN if "persona-tasks personas" in line}))
def test_personas_commands_run(line, tmp_path, monkeypatch):
    if "my-bank" in line:
        [bank] = blocks(ROOT / "docs" / "own-personas.md", "yaml")
        (tmp_path / "my-bank").mkdir()
        (tmp_path / "my-bank" / "people.yaml").write_text(bank)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


REPORTS = sorted({line for _, line in SHOWN if re.search(r"persona-tasks report\b", line)})


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """Dialogues where the documentation says that there are some."""
    records = dialogues("base", 0.5, turns=3, scenario="therapy")
    places = ["logs/base.eval", "logs/tuned.eval", "logs/a.eval", "logs/b.eval"]
    lm_eval = [word for line in REPORTS for word in shlex.split(line) if "samples_" in word]
    for number, place in enumerate([*places, *lm_eval]):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        append_jsonl(file, records[number : number + 3])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", REPORTS)
def test_report_commands_run(line, logs):
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    assert all(Path(file).stat().st_size for file in result.output.split())


def test_the_python_of_the_report_page_runs(logs):
    [code] = blocks(ROOT / "docs" / "report.md", "python")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert (logs / "plots" / "drift.pdf").is_file()


def test_the_documentation_builds_without_a_broken_link(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "site" / "cli" / "index.html").read_text()
    for name in OURS.commands:
        assert f"persona-tasks {name}" in reference
    python = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("metrics.paired_difference", "report.plots.drift_curves", "scoring.summarise", "importers.load"):
        assert f'id="persona_tasks.{name}"' in python
