"""What the judge learns from: labelled items of the train split, and lines labelled by the persona's own facts.

Derived lines are labelled by construction: an answer that gives the right option of a persona's question is consistent,
one that gives another contradicts, and so does a statement of age, home town or job with another persona's value.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Literal

from persona_tasks.calibration import CONTRAST, HELD, REWRITTEN, SETS, Item, load_items
from persona_tasks.embedded.chat import Chat
from persona_tasks.embedded.guided import branch, possible_replies
from persona_tasks.personas import Persona, load_bank
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.prompts import persona_text
from persona_tasks.protocol.verdicts import LINE_DRIFTS, NO_DRIFT
from persona_tasks.transcript import Outcome, Transcript, Turn
from training.short import load_short

STATEMENTS = {
    "age": ("I'm {}.", "I turned {} this year.", "Well, at {}, what do you expect?"),
    "home town": (
        "I'm from {}.",
        "I was born in {}, if you want to know.",
        "Back in {}, where I come from, it's nicer.",
    ),
    "job": ("For a living? {}.", "My job, you ask. {}.", "I work, {}, that's what I do."),
}


SetName = Literal[
    "calibration/prompt_to_line",
    "calibration/line_to_line",
    "on_policy/prompt_to_line",
    "on_policy/line_to_line",
    "trained/prompt_to_line",
    "trained/line_to_line",
    "contrast/prompt_to_line",
    "contrast/line_to_line",
    "rewritten/prompt_to_line",
    "derived/prompt_to_line",
    "short/prompt_to_line",
]
OPTIONAL: tuple[SetName, ...] = ("trained/prompt_to_line", "trained/line_to_line", "short/prompt_to_line")


def set_name(item: Item) -> str:
    """The set and the metric of an item, as recipes and validations name them (`SetName`)."""
    return f"{item.set}/{item.metric}"


@dataclass(frozen=True)
class Choice:
    """A place in a reply where the judge chooses, and how it should.

    Attributes:
        place: So many tokens of the example are read before it.
        allowed: Tokens to choose from.
        target: The right distribution over them.
    """

    place: int
    allowed: tuple[int, ...]
    target: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """A prompt with the right reply as far as it has to be read, and the choices made on the way.

    Attributes:
        ids: The prompt and the reply up to the last choice.
        choices: The verdict first; after a contradiction the drift, or the number of the line.
        contradicts: Index in the tokens of the first choice -> whether that token means "contradicts".
        item: What it is about.
        weight: Of this example in the loss.
    """

    ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    contradicts: tuple[bool, ...]
    item: Item
    weight: float = 1.0


def half_of(personas: Iterable[Persona], half: str) -> list[Persona]:
    """Every other persona of each scenario ("even" or "odd" numbers), or "all" of them."""
    parity = {"even": (0,), "odd": (1,), "all": (0, 1)}[half]
    return [persona for persona in personas if int(persona.id.rsplit("-", 1)[1]) % 2 in parity]


def training_items(
    half: str, seed: int, derived: int, weights: Mapping[SetName, float] | None = None
) -> list[tuple[Item, bool]]:
    """Items of the training personas, each with whether the judge sees the partner's line.

    Args:
        half: See `half_of`.
        derived: At most so many derived lines of each kind (from questions, from facts) and label for each persona.
        weights: What weighs 0 is left out; what is `OPTIONAL` comes only if it is named.
    """
    bank = load_bank()
    personas = half_of(bank.select("all", "train"), half)
    ids = {persona.id for persona in personas}
    rng = random.Random(seed)
    labelled = [item for item in load_items((*SETS, CONTRAST, REWRITTEN), "train") if item.transcript.persona_id in ids]
    # short answers of the contrast pairs say nothing without the question
    items = [(item, item.set == CONTRAST) for item in _thinned(labelled, rng)]
    for persona in personas:
        items += [(item, True) for item in _from_questions(persona, rng, derived)]
        items += [(item, False) for item in _from_facts(persona, personas, rng, derived)]
    items += [(item, False) for item in load_short(half)]
    named = weights or {}
    out = {name for name, weight in named.items() if not weight} | {name for name in OPTIONAL if name not in named}
    return [(item, context) for item, context in items if set_name(item) not in out]


def fingerprint(items: Iterable[tuple[Item, bool]]) -> str:
    """SHA-256, in hexadecimal, of what the items ask and how they are labelled."""
    digest = hashlib.sha256()
    for item, context in items:
        digest.update(repr((item.id, item.set, item.metric, item.turn, item.label, item.kind, item.conflicts)).encode())
        digest.update(item.transcript.model_dump_json().encode() + bytes([context]))
    return digest.hexdigest()


def _thinned(items: Sequence[Item], rng: random.Random) -> list[Item]:
    """Without near copies of a line in its own dialogue, and most of the lines that contradict no earlier one.

    A small model says the same line five times over; its persona is computed with each, and nothing is learned from it.
    """
    items = [item for item in items if item.set not in HELD or item.conflicts or not _repeats(item)]
    thinned = [item for item in items if not _plain_pair(item)]
    for name in HELD:
        plain = [item for item in items if item.set == name and _plain_pair(item)]
        conflicts = sum(item.set == name and bool(item.conflicts) for item in items)
        thinned += rng.sample(plain, min(len(plain), conflicts))
    return thinned


def _plain_pair(item: Item) -> bool:
    return item.set in HELD and item.metric == "line_to_line" and not item.conflicts


def _repeats(item: Item) -> bool:
    *earlier, line = (said.split() for said in item.transcript.lines[: item.turn])
    return any(SequenceMatcher(None, said, line, autojunk=False).ratio() > 0.8 for said in earlier)


def _from_questions(persona: Persona, rng: random.Random, count: int) -> Iterator[Item]:
    for question in rng.sample(persona.questions, min(count, len(persona.questions))):
        wrong = rng.choice([i for i in range(5) if i != question.answer])
        for option in (question.answer, wrong):
            yield _derived(persona, question.question, question.options[option], option == question.answer)


def _from_facts(persona: Persona, others: Sequence[Persona], rng: random.Random, count: int) -> Iterator[Item]:
    own = {fact.attribute: fact.value for fact in persona.facts if fact.attribute in STATEMENTS}
    for attribute in rng.sample(sorted(own), min(count, len(own))):
        values = {fact.value for other in others for fact in other.facts if fact.attribute == attribute}
        other = rng.choice(sorted(values - {own[attribute]}))
        for value in (own[attribute], other):
            yield _derived(persona, "", rng.choice(STATEMENTS[attribute]).format(value), value == own[attribute])


def _derived(persona: Persona, partner: str, line: str, right: bool) -> Item:
    transcript = Transcript(
        id=f"{persona.id}/derived",
        persona_id=persona.id,
        persona_text=persona_text(persona),
        scenario=persona.scenario,
        setting=load_bank().scenarios[persona.scenario].setting,
        turns=[Turn(partner=partner, line=line)],
    )
    label: Outcome = "consistent" if right else "contradicts"
    drift = "" if right else "fact_contradiction"
    return Item(transcript.id, "derived", "prompt_to_line", persona.scenario, transcript, 1, label, drift)


def example_of(item: Item, chat: Chat, context: bool = False) -> Example:
    """What a judge is asked about an item, and the choices that make up the right reply.

    Args:
        context: Show the judge the partner's line.
    """
    asks = next(judge(item.transcript, [item.metric], context=context, turns=[item.turn]))
    schema = asks[0].schema
    assert schema is not None
    replies = possible_replies(schema.model_json_schema())
    assert replies is not None
    ids = tuple(chat.ids([message._asdict() for message in asks[0].messages]))
    left = {reply: tuple(chat.tokenizer(reply, add_special_tokens=False)["input_ids"]) for reply in replies}
    right = {reply for reply in replies if _is_right(json.loads(reply), item)}
    choices: list[Choice] = []
    contradicts: tuple[bool, ...] = ()
    while len(left) > 1:
        certain, groups = branch(left)
        allowed = tuple(sorted(groups))
        hits = [len(right & set(groups[token])) for token in allowed]
        choices.append(Choice(len(ids) + len(certain), allowed, tuple(hit / sum(hits) for hit in hits)))
        if not contradicts:
            contradicts = tuple(not _harmless(json.loads(groups[token][0])) for token in allowed)
        best = allowed[hits.index(max(hits))]
        if item.label == "consistent" or groups[best] == [*right]:
            break  # what follows is certain, or about nothing
        left = {reply: left[reply] for reply in groups[best]}
    whole = (*ids, *certain)
    return Example(whole, tuple(choices), contradicts, item)


def _harmless(reply: dict[str, Any]) -> bool:
    return reply["verdict"] == "consistent" if "verdict" in reply else not reply["conflicts"]


def _is_right(reply: dict[str, Any], item: Item) -> bool:
    """Whether a possible reply is the label. A drift that no line shows, or an unnamed one, may be any."""
    if "conflicts" in reply:
        return any(turn in item.conflicts for turn in reply["conflicts"]) or not (item.conflicts or reply["conflicts"])
    if reply["verdict"] != item.label:
        return False
    if item.label == "consistent":
        return bool(reply["drift"] == NO_DRIFT)
    return bool(reply["drift"] == item.kind if item.kind in LINE_DRIFTS else reply["drift"] != NO_DRIFT)


def balanced(examples: Sequence[Example], weights: Mapping[SetName, float] | None = None) -> list[Example]:
    """The same examples, weighted so that both verdicts of a metric and set weigh alike, and sets as `weights` say."""
    counts = Counter((set_name(example.item), example.item.label) for example in examples)
    of_set = {str(name): weight for name, weight in (weights or {}).items()}
    weighted = []
    for example in examples:
        name, label = set_name(example.item), example.item.label
        both = sum(count for (other, _), count in counts.items() if other == name)
        weight = min(4.0, both / (2 * counts[name, label])) * of_set.get(name, 1.0)
        weighted.append(replace(example, weight=weight))
    return weighted
