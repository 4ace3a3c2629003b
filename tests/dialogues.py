"""Judged dialogues for tests of pictures and pages: bank personas, scripted partners, lines of the calibration set."""

from __future__ import annotations

import random
from functools import cache

import yaml

from persona_tasks.personas import BANK, Persona, load_bank
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.prompts import persona_text
from persona_tasks.transcript import Judged, Outcome, Probe, Transcript, Turn, Verdict

JUDGE = "hand/labels"


def dialogues(model: str, drift: float = 0.1, turns: int = 8, repeats: int = 1, scenario: str = "all") -> list[Judged]:
    """One judged dialogue per test persona of the scenario and repeat.

    Args:
        drift: Chance that the last line contradicts the persona; on earlier turns it is lower in proportion.
    """
    personas = load_bank().select(scenario)
    return [_dialogue(persona, model, drift, turns, seed) for seed in range(repeats) for persona in personas]


def _dialogue(persona: Persona, model: str, drift: float, turns: int, seed: int) -> Judged:
    bank = load_bank()
    rng = random.Random(f"{persona.id}/{model}/{seed}")
    scenario = bank.scenarios[persona.scenario]
    script = make_partner(persona, scenario, bank.scripts[persona.scenario], turns, seed, "scripted").script
    lines = labelled_lines(persona.id)
    said: list[Turn] = []
    verdicts: list[Verdict] = []
    for turn in range(1, turns + 1):
        outcome: Outcome = "contradicts" if rng.random() < drift * turn / turns else "consistent"
        chosen = rng.choice(lines[outcome])
        if rng.random() < 0.04:
            outcome = "unparsed"
        said.append(Turn(partner=script[turn - 1], line=chosen["line"]))
        drifted = chosen["kind"] if outcome == "contradicts" else None
        verdicts.append(
            Verdict(metric="prompt_to_line", turn=turn, outcome=outcome, drift=drifted, reason=chosen["why"])
        )
    for turn in range(2, turns + 1):
        conflicts = sorted(rng.sample(range(1, turn), 1)) if rng.random() < drift / 2 else []
        outcome = "contradicts" if conflicts else "consistent"
        reason = "Both cannot be true of one person." if conflicts else "Nothing before it rules it out."
        verdicts.append(Verdict(metric="line_to_line", turn=turn, outcome=outcome, conflicts=conflicts, reason=reason))
    probes, answers = _questions(persona, rng, turns, drift)
    transcript = Transcript(
        id=f"{persona.id}/{seed}",
        persona_id=persona.id,
        persona_text=persona_text(persona),
        scenario=persona.scenario,
        setting=scenario.setting,
        questions=list(persona.questions),
        turns=said,
        probes=probes,
        model=model,
        partner="scripted",
        seed=seed,
    )
    return Judged(transcript=transcript, verdicts=[*verdicts, *answers], judge=JUDGE)


def _questions(persona: Persona, rng: random.Random, turns: int, drift: float) -> tuple[list[Probe], list[Verdict]]:
    probes: list[Probe] = []
    verdicts: list[Verdict] = []
    for after in (0, 1, turns // 2, turns):
        for number, question in enumerate(persona.questions):
            right = rng.random() < (1 - drift * after / turns if after else 0.25)
            option = question.answer if right else (question.answer + 1) % 5
            metric = "qa" if after else "qa_without_persona"
            verdicts.append(
                Verdict(
                    metric=metric,
                    turn=after,
                    outcome="consistent" if right else "contradicts",
                    reason=f"option {'ABCDE'[option]}, by its text",
                    probe=len(probes),
                )
            )
            answer = question.options[option]
            probes.append(Probe(turn=after, question=number, mode="open", answer=answer, persona=after > 0))
    return probes, verdicts


@cache
def labelled_lines(persona_id: str) -> dict[str, list[dict[str, str]]]:
    """The persona's labelled lines by label."""
    scenario, split, _ = persona_id.split("-")
    everything = _calibration(f"{scenario}/{split}.yaml")
    return {
        label: [item for item in everything if item["persona"] == persona_id and item["label"] == label]
        for label in ("consistent", "contradicts")
    }


@cache
def _calibration(file: str) -> list[dict[str, str]]:
    text = (BANK / "calibration" / file).read_text(encoding="utf-8")
    lines: list[dict[str, str]] = yaml.safe_load(text)["lines"]
    return lines
