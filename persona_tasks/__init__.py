"""Measure, train and publish simulated users that stay in character."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_tasks.inspect_tasks.tasks import drift, transcripts

__version__ = "0.1.0"
__all__ = ["drift", "transcripts"]


def __getattr__(name: str) -> Any:
    """The tasks, imported when they are first asked for: `import persona_tasks` alone must not load Inspect."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from persona_tasks.inspect_tasks import tasks

    return getattr(tasks, name)
