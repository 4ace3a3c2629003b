"""What the judge learns from: labelled items of the train split, and lines labelled by the persona's own facts.

Derived lines are labelled by construction: an answer that gives the right option of a persona's question is consistent,
one that gives another contradicts, and so does a statement of age, home town or job with another persona's value.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from persona_tasks.calibration import CONTRAST, SETS, Item, load_items
from persona_tasks.embedded.chat import Chat
from persona_tasks.embedded.guided import branch, possible_replies
from persona_tasks.personas import Persona, load_bank
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.prompts import persona_text
from persona_tasks.transcript import Outcome, Transcript, Turn

STATEMENTS = {
    "age": ("I'm {}.", "I turned {} this year.", "Well, at {}, what do you expect?"),
    "home town": (
        "I'm from {}.",
        "I was born in {}, if you want to know.",
        "Back in {}, where I come from, it's nicer.",
    ),
    "job": ("For a living? {}.", "My job, you ask. {}.", "I work, {}, that's what I do."),
}


@dataclass(frozen=True)
class Example:
    """A prompt that ends where the judge chooses, and how it should.

    Attributes:
        ids: The prompt, with as much of the reply as is certain.
        allowed: Tokens to choose from.
        target: The right distribution over them.
        contradicts: Index in `allowed` -> whether that choice means "contradicts"; empty for the number of a line.
        item: What it is about.
        weight: Of this example in the loss.
    """

    ids: tuple[int, ...]
    allowed: tuple[int, ...]
    target: tuple[float, ...]
    contradicts: tuple[bool, ...]
    item: Item
    weight: float = 1.0


def half_of(personas: Iterable[Persona], half: str) -> list[Persona]:
    """Every other persona of each scenario ("even" or "odd" numbers), or "all" of them."""
    parity = {"even": (0,), "odd": (1,), "all": (0, 1)}[half]
    return [persona for persona in personas if int(persona.id.rsplit("-", 1)[1]) % 2 in parity]


def training_items(half: str, seed: int, derived: int) -> list[tuple[Item, bool]]:
    """Items of the training personas, each with whether the judge sees the partner's line.

    Args:
        half: See `half_of`.
        derived: At most so many derived lines of each kind (from questions, from facts) and label for each persona.
    """
    bank = load_bank()
    personas = half_of(bank.select("all", "train"), half)
    ids = {persona.id for persona in personas}
    rng = random.Random(seed)
    labelled = [item for item in load_items((*SETS, CONTRAST), "train") if item.transcript.persona_id in ids]
    # short answers of the contrast pairs say nothing without the question
    items = [(item, item.set == CONTRAST) for item in _thinned(labelled, rng)]
    for persona in personas:
        items += [(item, True) for item in _from_questions(persona, rng, derived)]
        items += [(item, False) for item in _from_facts(persona, personas, rng, derived)]
    return items


def _thinned(items: Sequence[Item], rng: random.Random) -> list[Item]:
    """Without near copies of a line in its own dialogue, and most of the lines that contradict no earlier one.

    A small model says the same line five times over; its persona is computed with each, and nothing is learned from it.
    """
    items = [item for item in items if item.set != "on_policy" or item.conflicts or not _repeats(item)]

    def plain(item: Item) -> bool:
        return item.set == "on_policy" and item.metric == "line_to_line" and not item.conflicts

    conflicts = sum(bool(item.conflicts) for item in items if item.set == "on_policy")
    kept = [item for item in items if plain(item)]
    kept = rng.sample(kept, min(len(kept), conflicts))
    return [item for item in items if not plain(item)] + kept


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
    return Item(transcript.id, "derived", "prompt_to_line", persona.scenario, transcript, 1, label, "fact")


def examples_of(item: Item, chat: Chat, context: bool = False) -> list[Example]:
    """The choices that a judge makes about an item: the verdict, and after a conflict the number of a line."""
    asks = next(judge(item.transcript, [item.metric], context=context, turns=[item.turn]))
    schema = asks[0].schema
    assert schema is not None
    replies = possible_replies(schema.model_json_schema())
    assert replies is not None
    prompt = tuple(chat.ids([message._asdict() for message in asks[0].messages]))
    coded = {reply: tuple(chat.tokenizer(reply, add_special_tokens=False)["input_ids"]) for reply in replies}
    if item.metric == "prompt_to_line":
        right = {reply for reply in replies if f'"{item.label}"' in reply}
    else:
        right = {reply for reply in replies if any(f"[{turn}]" in reply for turn in item.conflicts)}
        right = right or {reply for reply in replies if "[]" in reply}
    found: list[Example] = []
    while len(coded) > 1:
        certain, groups = branch(coded)
        allowed = tuple(sorted(groups))
        hits = [len(right & set(groups[token])) for token in allowed]
        target = tuple(hit / sum(hits) for hit in hits)
        harmless = [any(mark in groups[token][0] for mark in ('"consistent"', "[]")) for token in allowed]
        meaning = () if found else tuple(not calm for calm in harmless)
        found.append(Example((*prompt, *certain), allowed, target, meaning, item))
        coded = {reply: coded[reply] for reply in groups[allowed[hits.index(max(hits))]]}
    return found


def balanced(examples: Sequence[Example]) -> list[Example]:
    """The same examples, weighted so that both verdicts of a metric and set weigh alike, and the mean weight is 1."""
    counts: dict[tuple[str, str, str], int] = {}
    for example in examples:
        key = (example.item.set, example.item.metric, example.item.label)
        counts[key] = counts.get(key, 0) + bool(example.contradicts)
    weighted = []
    for example in examples:
        key = (example.item.set, example.item.metric, example.item.label)
        both = sum(count for other, count in counts.items() if other[:2] == key[:2])
        weighted.append(replace(example, weight=min(4.0, both / (2 * max(1, counts[key])))))
    return weighted
