"""Who talks to the simulator: a script drawn from the scenario's pool, or a model that is asked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from persona_tasks.personas import BankError, LinePool, PartnerScript, Persona, Scenario
from persona_tasks.protocol.asks import Message

PartnerKind = Literal["scripted", "model"]
# The order in which kinds of lines follow the opening: every third line invites drift.
RHYTHM = ("fact_questions", "follow_ups", "pressure")


@dataclass(frozen=True)
class Partner:
    """The partner of one dialogue.

    Attributes:
        script: What it says at each turn; a model partner only has an opening.
        prompt: The system prompt of a model partner; None for a scripted one.
    """

    script: Sequence[str]
    prompt: str | None = None

    def line(self, turn: int) -> str | None:
        """The scripted line of a turn (from 1), or None if a model has to be asked for it."""
        return self.script[turn - 1] if turn <= len(self.script) else None

    def view(self, turns: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
        """The conversation as the partner sees it: its own lines are `assistant`, the simulator's are `user`."""
        messages = [Message("system", self.prompt or "")]
        for own, heard in turns:
            messages += [Message("assistant", own), Message("user", heard)]
        return tuple(messages)


def make_partner(
    persona: Persona, scenario: Scenario, script: PartnerScript | None, turns: int, seed: int, kind: PartnerKind
) -> Partner:
    """Draw the lines of this persona's partner. The same persona, seed and pool give the same lines.

    Raises:
        BankError: The scenario has no partner script.
    """
    if script is None:
        raise BankError(f"scenario {scenario.id!r} has no file in partners/")
    lines = list(islice(draw_lines(script.pool(persona.split), f"{persona.id}/{seed}"), turns if turns > 0 else 0))
    lines = [fill(line, persona) for line in lines]
    if kind == "scripted":
        return Partner(lines)
    return Partner(lines[:1], fill(scenario.partner_prompt, persona))


def draw_lines(pool: LinePool, seed: str) -> Iterator[str]:
    """An opening, then lines of the three kinds in turn, each pool reshuffled only when it is used up."""
    rng = random.Random(seed)
    yield rng.choice(pool.openings)
    left: dict[str, list[str]] = {kind: [] for kind in RHYTHM}
    while True:
        for kind in RHYTHM:
            if not left[kind]:
                left[kind] = rng.sample(getattr(pool, kind), len(getattr(pool, kind)))
            yield left[kind].pop()


def fill(line: str, persona: Persona) -> str:
    """Fill in what a partner line may name: the persona's first name and topic."""
    return line.replace("{name}", persona.first_name).replace("{topic}", persona.topic or "")
