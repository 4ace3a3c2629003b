"""Everything that Inspect finds under the prefix `persona_tasks/`."""

from persona_tasks.embedded.provider import persona
from persona_tasks.inspect_tasks.agreement import agreement, judge_agreement, verdict_on_item
from persona_tasks.inspect_tasks.dialogue import recorded_dialogue, simulated_dialogue
from persona_tasks.inspect_tasks.scorers import line_to_line, monitors, prompt_to_line, qa
from persona_tasks.inspect_tasks.tasks import drift, transcripts

__all__ = [
    "agreement",
    "drift",
    "judge_agreement",
    "line_to_line",
    "monitors",
    "persona",
    "prompt_to_line",
    "qa",
    "recorded_dialogue",
    "simulated_dialogue",
    "transcripts",
    "verdict_on_item",
]
