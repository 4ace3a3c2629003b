"""Rules of the bank we ship, beyond what the schema asks of any bank."""

import re
from collections import Counter
from itertools import combinations

import pytest

from persona_tasks.personas import SPLITS, Persona, load_bank

SCENARIOS = ("chat", "education", "therapy", "service")
SIZES = {"train": 24, "dev": 6, "test": 10}
FIRST_LETTERS = {"chat": "ABCDE", "education": "FGHIJK", "therapy": "LMNOP", "service": "QRSTUVWXYZ"}


def personas(scenario: str) -> list[Persona]:
    return [p for p in load_bank().personas if p.scenario == scenario]


def words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.lower())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sizes(scenario: str) -> None:
    assert Counter(p.split for p in personas(scenario)) == SIZES


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_persona_is_complete(scenario: str) -> None:
    problems = []
    for p in personas(scenario):
        n = len(words(p.description))
        checks = {
            f"id {p.id}": p.id.startswith(f"{scenario}-{p.split}-"),
            f"description has {n} words": 60 <= n <= 150,
            "description starts with You": p.description.startswith("You"),
            f"{len(p.facts)} facts": 6 <= len(p.facts) <= 8,
            f"{len(p.traits)} traits": 3 <= len(p.traits) <= 4,
            f"{len(p.questions)} questions": len(p.questions) == 8,
            "no topic": scenario not in ("education", "service") or p.topic is not None,
            "attributes differ": len({f.attribute for f in p.facts}) == len(p.facts),
            "questions about at least 5 different things": len({q.about for q in p.questions}) >= 5,
            f"first name in {FIRST_LETTERS[scenario]}": p.name[0] in FIRST_LETTERS[scenario],
        }
        problems += [f"{p.id}: {name}" for name, holds in checks.items() if not holds]
    assert not problems, "\n".join(problems)


def test_first_names_are_unique() -> None:
    counts = Counter(p.first_name for p in load_bank().personas)
    assert not [name for name, n in counts.items() if n > 1]


def test_no_wording_is_shared_across_splits() -> None:
    """Traits must not be near copies, and no job with the same town may occur, across splits."""
    traits = [(p, t, set(words(t.behaviour))) for p in load_bank().personas for t in p.traits]
    shared = []
    for (p, t, a), (q, u, b) in combinations(traits, 2):
        if p.split != q.split and len(a & b) / len(a | b) > 0.6:
            shared.append(f"{p.id} {t.behaviour!r} ~ {q.id} {u.behaviour!r}")
    places = [
        (p, frozenset(f.value.casefold() for f in p.facts if f.attribute in ("job", "home town")))
        for p in load_bank().personas
    ]
    shared += [
        f"{p.id} ~ {q.id}: {sorted(a)}"
        for (p, a), (q, b) in combinations(places, 2)
        if p.split != q.split and len(a) == 2 and a == b
    ]
    assert not shared, "\n".join(shared)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("split", SPLITS)
def test_right_positions_are_uniform(scenario: str, split: str) -> None:
    counts = Counter(q.answer for p in personas(scenario) if p.split == split for q in p.questions)
    assert max(counts.values()) - min(counts[i] for i in range(5)) <= 2, counts


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_right_option_is_not_given_away_by_its_length(scenario: str) -> None:
    """Always picking the longest (or shortest) option must not beat chance by much."""
    questions = [q for p in personas(scenario) for q in p.questions]
    for pick in (max, min):
        right = sum(pick(range(5), key=lambda i: len(q.options[i])) == q.answer for q in questions)
        assert right / len(questions) < 0.32, (pick.__name__, right / len(questions))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_partner_pools(scenario: str) -> None:
    script = load_bank().scripts[scenario]
    for pool, least in ((script.train, (12, 18, 18, 22)), (script.test, (10, 14, 14, 16))):
        sizes = tuple(map(len, (pool.openings, pool.fact_questions, pool.follow_ups, pool.pressure)))
        assert all(n >= m for n, m in zip(sizes, least, strict=True)), sizes
    lines = [set(words(line)) for line in script.train], [set(words(line)) for line in script.test]
    close = [(a, b) for a in lines[0] for b in lines[1] if len(a & b) / len(a | b) > 0.75]
    assert not close
