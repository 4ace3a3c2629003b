"""Measure, train and publish simulated users that stay in character."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_tasks.hub.pull import load_simulator
    from persona_tasks.inspect_tasks.agreement import judge_agreement
    from persona_tasks.inspect_tasks.tasks import drift, transcripts

__version__ = "0.1.0"
__all__ = ["drift", "judge_agreement", "load_simulator", "transcripts"]

HOMES = {
    "drift": "persona_tasks.inspect_tasks.tasks",
    "judge_agreement": "persona_tasks.inspect_tasks.agreement",
    "load_simulator": "persona_tasks.hub.pull",
    "transcripts": "persona_tasks.inspect_tasks.tasks",
}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `import persona_tasks` alone must load neither Inspect nor torch."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
