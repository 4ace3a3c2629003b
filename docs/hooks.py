"""What of the documentation is made anew each time it is built, and so cannot go out of date.

`judge-cards.md` shows the cards that come with the package. `cli.md` is what `persona-tasks --help` and the commands
below say, as typer writes it down. `lm-eval-tasks.md` is the README that goes into lm-eval's folder with the tasks.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from persona_tasks.judge_card import CARDS, Card
from persona_tasks.tables import card_markdown

ROOT = Path(__file__).parents[1]
CARDS_GO_HERE = "<!-- the cards -->"
TASKS_README = "persona_tasks/lm_eval_tasks/persona_drift/README.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "cli.md", content=command_line()))
    readme = (ROOT / TASKS_README).read_text(encoding="utf-8").replace("# Persona drift", "# The lm-eval tasks", 1)
    files.append(File.generated(config, "lm-eval-tasks.md", content=readme))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that leave the documentation where it is read as files lead to its own pages here; and the judge cards."""
    return markdown.replace(f"../{TASKS_README}", "lm-eval-tasks.md").replace(CARDS_GO_HERE, judge_cards())


def command_line() -> str:
    """The reference of the command line, from the commands themselves."""
    command = [sys.executable, "-m", "typer", "persona_tasks.cli", "utils", "docs", "--name", "persona-tasks"]
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return made.stdout.replace("# `persona-tasks`", "# Command line", 1)


def judge_cards() -> str:
    """The judges whose errors are known, and how large they are."""
    return "\n".join(_judge_card(file) for file in sorted(CARDS.glob("*.json")))


def _judge_card(file: Path) -> str:
    card = Card.model_validate_json(file.read_text(encoding="utf-8"))
    picture = f"pictures/{file.stem}.png"
    shown = f"![Agreement of {card.judge} with the labels, as numbers below]({picture})\n\n"
    return f"## {card.judge}\n\n{shown if (ROOT / 'docs' / picture).is_file() else ''}{card_markdown(card)}\n"
