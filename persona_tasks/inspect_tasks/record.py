"""What a dialogue leaves in the sample's store for the scorers, so that `inspect score` needs no simulator."""

from __future__ import annotations

from inspect_ai.model import ChatMessageAssistant
from inspect_ai.solver import TaskState
from inspect_ai.util import StoreModel

from persona_tasks.transcript import Transcript


class DriftRecord(StoreModel):
    """Renaming this class or its field makes old logs unreadable for rescoring."""

    transcript: Transcript | None = None


def recorded(state: TaskState) -> Transcript:
    """The transcript of this sample.

    Raises:
        ValueError: The sample was not made by one of our solvers.
    """
    transcript = state.store_as(DriftRecord).transcript
    if transcript is None:
        raise ValueError(
            "this sample holds no dialogue of persona_tasks; score other logs with "
            "`inspect eval persona_tasks/transcripts -T file=LOG`"
        )
    return transcript


def line_messages(state: TaskState) -> list[tuple[int, str]]:
    """Message number (from 1, as the viewer prints it) and id of each of the simulator's lines."""
    return [
        (number, message.id or "")
        for number, message in enumerate(state.messages, start=1)
        if isinstance(message, ChatMessageAssistant)
    ]
