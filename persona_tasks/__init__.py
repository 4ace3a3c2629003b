"""Measure, train and publish simulated users that stay in character."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_tasks.hub.pull import load_simulator
    from persona_tasks.inspect_tasks.tasks import drift, transcripts

__version__ = "0.1.0"
__all__ = ["drift", "load_simulator", "transcripts"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `import persona_tasks` alone must load neither Inspect nor torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "load_simulator":
        from persona_tasks.hub import pull

        return pull.load_simulator
    from persona_tasks.inspect_tasks import tasks

    return getattr(tasks, name)
