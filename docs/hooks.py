"""Pages of the documentation that are made anew each time it is built: they cannot go out of date.

`cli.md` is what `persona-tasks --help` and its sub-commands say, as typer writes it down. `lm-eval-tasks.md` is the
README that goes with the lm-eval tasks into lm-eval's own folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TASKS_README = "persona_tasks/lm_eval_tasks/persona_drift/README.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "cli.md", content=command_line()))
    readme = (ROOT / TASKS_README).read_text(encoding="utf-8").replace("# Persona drift", "# The lm-eval tasks", 1)
    files.append(File.generated(config, "lm-eval-tasks.md", content=readme))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that leave the documentation where it is read as files lead to its own pages here."""
    return markdown.replace(f"../{TASKS_README}", "lm-eval-tasks.md")


def command_line() -> str:
    """The reference of the command line, from the commands themselves."""
    command = [sys.executable, "-m", "typer", "persona_tasks.cli", "utils", "docs", "--name", "persona-tasks"]
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return made.stdout.replace("# `persona-tasks`", "# Command line", 1)
