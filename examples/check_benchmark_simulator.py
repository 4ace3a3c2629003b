"""Does the simulated user of an agent benchmark stay who it was told to be?

Reads saved runs in the form of τ²-bench: `tasks`, whose `user_scenario` is what the simulated user was told, and
`simulations`, whose `messages` are what was said ("user" is the simulated user). No dialogue is generated, only the
judge is asked; a second run asks it only for what is missing.

    python examples/check_benchmark_simulator.py examples/agent_benchmark.json --judge openai/gpt-5-mini
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from inspect_ai import eval as inspect_eval

from persona_tasks.inspect_tasks.tasks import transcripts
from persona_tasks.report.write import write_report

# What a simulated user sends to the benchmark's machinery instead of saying it.
SIGNAL = re.compile(r"###[A-Z_-]+###")


def main(arguments: list[str]) -> None:
    """Convert, judge and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="saved runs (JSON)")
    parser.add_argument("--judge", required=True, help="as Inspect names models")
    parser.add_argument("--log-dir", default="logs/benchmark")
    parser.add_argument("-o", "--output", default="benchmark.html")
    chosen = parser.parse_args(arguments)
    log_dir = Path(chosen.log_dir)
    log_dir.mkdir(parents=True, exist_ok=True)
    converted = log_dir / f"{chosen.file.stem}-messages.json"
    converted.write_text(json.dumps(dialogues(json.loads(chosen.file.read_text(encoding="utf-8")))), encoding="utf-8")
    [log] = inspect_eval(
        transcripts(file=str(converted), simulator_role="user", metrics="prompt_to_line,line_to_line"),
        model="none",
        model_roles={"judge": chosen.judge},
        log_dir=chosen.log_dir,
    )
    if log.status != "success":
        sys.exit(f"judging ended with status {log.status}; see {log.location}")
    command = shlex.join(["python", "examples/check_benchmark_simulator.py", *arguments])
    named, title = f"{chosen.file.stem}={log.location}", f"Simulated users of {chosen.file.stem}"
    print(write_report([named], chosen.output, title=title, command=command)[0])


def dialogues(saved: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs in the `messages` form of `persona_tasks/transcripts`: one persona for each task."""
    told = {task["id"]: told_to(task["user_scenario"]) for task in saved["tasks"]}
    return [
        {
            "id": run["id"],
            "persona_id": str(run["task_id"]),
            "persona": told[run["task_id"]],
            "messages": [said for message in run["messages"] if (said := without_signals(message)) is not None],
        }
        for run in saved["simulations"]
    ]


def told_to(scenario: dict[str, Any]) -> str:
    """What the simulated user was told: its persona, and its instructions (a text, or a text for each heading)."""
    instructions = scenario["instructions"]
    parts = {"instructions": instructions} if isinstance(instructions, str) else instructions
    parts = {"persona": scenario.get("persona"), **parts}
    return "\n\n".join(f"{name.replace('_', ' ').capitalize()}: {text}" for name, text in parts.items() if text)


def without_signals(message: dict[str, Any]) -> dict[str, Any] | None:
    """The message as it was said; None for a user's message that is nothing but a signal."""
    if message["role"] != "user" or not message.get("content"):
        return message
    said = SIGNAL.sub("", message["content"]).strip()
    return {**message, "content": said} if said else None


if __name__ == "__main__":
    main(sys.argv[1:])
