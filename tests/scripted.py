"""Answers for asks without any model: a persona, and drivers' answer functions that are plain code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from persona_tasks.personas import Fact, Persona, Question, Scenario, Trait
from persona_tasks.protocol.asks import Answer, Ask
from persona_tasks.protocol.partners import Partner

PERSONA = Persona(
    id="chat-test-99",
    name="Mina Sato",
    scenario="chat",
    description="You are Mina, a retired pilot in Oslo who dislikes talking about herself.",
    facts=(Fact(attribute="job", value="retired pilot"), Fact(attribute="pet", value="a cat called Ole")),
    traits=(Trait(name="short", behaviour="You answer in five words.", guards_against="out_of_style"),),
    questions=(
        Question(
            question="What did you do for a living?",
            options=("Baker", "Pilot", "Nurse", "Judge", "Tailor"),
            answer=1,
            about="job",
        ),
        Question(question="Which pet?", options=("Dog", "Fish", "Bird", "Horse", "Cat"), answer=4, about="pet"),
    ),
)
SCENARIO = Scenario(
    id="chat",
    title="Chat",
    setting="Two people meet on a train.",
    simulator_role="one of the travellers",
    partner_role="the other traveller",
    partner_prompt="You are a traveller who talks to {name}.",
    drifts=({"type": "cheerfulness", "means": "is merry"},),  # type: ignore[arg-type]
)
LINES = ["Hello there.", "What did you do?", "And then?", "You sound so happy now!", "Any pets?", "Really?"]
SCRIPTED = Partner(LINES)
MODEL_PARTNER = Partner(LINES[:1], "You are a traveller.")


def echo(asks: list[Ask]) -> list[Answer]:
    """An answer that depends on every word of the prompt, so that equal answers mean equal prompts."""
    return [answer_to(ask) for ask in asks]


def answer_to(ask: Ask) -> Answer:
    if ask.role == "judge":
        return verdict_for(ask)
    digest = hashlib.sha256(repr(ask.messages).encode()).hexdigest()[:8]
    return f"{ask.purpose} {digest}"


def verdict_for(ask: Ask) -> str:
    """A judge that looks at the prompt's hash: about a third contradicts."""
    digest = int(hashlib.sha256(repr(ask.messages).encode()).hexdigest(), 16)
    assert ask.schema is not None
    if "verdict" in ask.schema.model_fields:
        return json.dumps({"reason": "r", "verdict": "contradicts" if digest % 3 == 0 else "consistent"})
    if "conflicts" in ask.schema.model_fields:
        return json.dumps({"reason": "r", "conflicts": [1] if digest % 3 == 0 else []})
    return json.dumps({"reason": "r", "option": digest % 6})


def judging(reply: Callable[[Ask], Answer]) -> Callable[[list[Ask]], list[Answer]]:
    return lambda asks: [reply(ask) for ask in asks]
