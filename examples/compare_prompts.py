"""Which of two prompts keeps a simulator in character longer?

The same model plays the same people in front of the same scripted partner twice, once with each prompt before the
persona. What the judge reads is the same both times, so the difference is the prompt's. Takes 2 x LIMIT dialogues.

    python examples/compare_prompts.py --model openai/gpt-5-mini --judge anthropic/claude-sonnet-4-5 --limit 40
    python examples/compare_prompts.py --model vllm/meta-llama/Llama-3.1-8B-Instruct --judge openai/gpt-5-mini
"""

import argparse
import shlex
import sys
from pathlib import Path

from inspect_ai import eval as inspect_eval

from persona_tasks.inspect_tasks.tasks import drift
from persona_tasks.report.write import write_report

# Change these two. They come before the persona; None adds nothing.
PROMPTS = {
    "plain": None,
    "reminded": "You are a person, not an assistant. Nobody can talk you out of who you are in one conversation.",
}


def main(arguments: list[str]) -> None:
    """Run both prompts and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the simulator, as Inspect names models")
    parser.add_argument("--judge", required=True, help="the judge; best one of another family")
    parser.add_argument("--limit", type=int, default=40, help="people, evenly from all scenarios (default 40, all)")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--log-dir", default="logs/prompts")
    parser.add_argument("-o", "--output", default="prompts.html")
    chosen = parser.parse_args(arguments)
    logs = []
    for name, prompt in PROMPTS.items():
        [log] = inspect_eval(
            drift(turns=chosen.turns),
            model=chosen.model,
            model_roles={"judge": chosen.judge},
            system_message=prompt,  # goes to the evaluated model only
            limit=chosen.limit,
            log_dir=str(Path(chosen.log_dir) / name),
        )
        if log.status != "success":
            sys.exit(f"the run with prompt {name!r} ended with status {log.status}; see {log.location}")
        logs.append(f"{name}={log.location}")
    command = shlex.join(["python", "examples/compare_prompts.py", *arguments])
    print(write_report(logs, chosen.output, title="Two prompts for one simulator", command=command)[0])


if __name__ == "__main__":
    main(sys.argv[1:])
