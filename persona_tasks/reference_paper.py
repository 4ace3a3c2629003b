"""The reference paper's released dialogues, and how its code scores them (Abdulhai et al. 2025, arXiv 2511.00222).

Record of abdulhaim/consistent-LLMs: `P1`, `P2` persona texts; `conversation` [[index, "Name: line"], ...]; `pturn` who
speaks first; `eval_prompt_consistency` [[index, judge's answer], ...] where **YES means contradicts**;
`eval_index_consistency` [[index, answer with a list of conflicting indices], ...]; `eval_survey_consistency`
[[line, score, answers, grades], ...] where YES means right, the questions being answered by the judge.

The stored answers can be read in two ways. `strict`, the default, takes only what the judge said: an answer with
neither or both of YES and NO, without a list or with lists that differ, is `unparsed`. `authors` reads as the released
code does, which departs from the paper's own equations: whatever is not YES is consistent, no list is no conflict.
The authors' formulas are here too, under their own names and never a default, for reproducing their numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel

from persona_tasks.transcript import Judged, Outcome, Probe, Transcript, Turn, Verdict

PARSES = ("strict", "authors")

INDEX_LIST = re.compile(r"\[\s*(?:\d{1,4}\s*(?:,\s*\d{1,4}\s*)*,?\s*)?\]")


class PaperRecord(BaseModel):
    """One dialogue as released. Fields that are not needed are ignored; an answer is None where the API failed."""

    P1: str = ""
    P2: str = ""
    conversation: list[tuple[int, str]]
    pturn: Literal[1, 2] = 1
    task_name: str = ""
    eval_prompt_consistency: list[tuple[int, str | None]] = []
    eval_index_consistency: list[tuple[int, str | None]] = []
    eval_survey_consistency: list[tuple[str, float, list[str | None], list[str | None]]] = []
    P1_backstory_test: tuple[list[str], list[str]] | None = None
    P2_backstory_test: tuple[list[str], list[str]] | None = None

    def speaker_of(self, index: int) -> int:
        return self.pturn if index % 2 == 0 else 3 - self.pturn

    def questions(self, speaker: int) -> list[str] | None:
        test = self.P1_backstory_test if speaker == 1 else self.P2_backstory_test
        return test[0] if test else None


def read_record(value: Any, name: str, speaker: int, parse: str) -> Judged:
    """One released dialogue with one of its speakers as the simulator.

    Args:
        value: The parsed JSON.
        name: The id to give it. It is also the persona's where the speaker has no persona text.
        speaker: 1 or 2.
        parse: One of `PARSES`: how the judge's stored answers are read.

    Raises:
        ValueError: The record has not the form above; says where.
    """
    record = PaperRecord.model_validate(value)
    if [index for index, _ in record.conversation] != list(range(len(record.conversation))):
        raise ValueError("conversation: the lines are not numbered 0, 1, 2, ...")
    for field in ("eval_prompt_consistency", "eval_index_consistency"):
        if beyond := [index for index, _ in getattr(record, field) if not 0 <= index < len(record.conversation)]:
            raise ValueError(f"{field}: there is no line {beyond[0]}")
    own = [index for index, _ in record.conversation if record.speaker_of(index) == speaker]
    said = _without_names(record)
    persona = record.P1 if speaker == 1 else record.P2
    transcript = Transcript(
        id=name,
        persona_id=persona_key(persona) or name,
        persona_text=persona,
        scenario=record.task_name.lower(),
        turns=[Turn(partner=said[index - 1] if index else "", line=said[index]) for index in own],
    )
    turn_of = {index: turn for turn, index in enumerate(own, start=1)}
    verdicts = [*_prompt_to_line(record, turn_of, parse), *_line_to_line(record, turn_of, parse)]
    for turn, answers, grades in _survey(record, speaker):
        for question, (answer, grade) in enumerate(zip(answers, grades, strict=True)):
            verdicts.append(_graded(turn, len(transcript.probes), grade, parse))
            transcript.probes.append(Probe(turn=turn, question=question, mode="choice", answer=answer or ""))
    if transcript.probes:  # they are no `Question`s: some are cut off, and the right answer is not always an option
        transcript.metadata = {"qa_answered_by": "judge", "questions": record.questions(speaker)}
    return Judged(transcript=transcript, verdicts=verdicts)


def persona_key(text: str) -> str:
    """An id made of the persona text, for dialogues that come without one; empty for an empty text."""
    return f"persona-{sha256(text.encode()).hexdigest()[:12]}" if text else ""


def _without_names(record: PaperRecord) -> list[str]:
    """All lines without "Name:" before them. The rest of a line may hold colons, and a line may lack the name."""
    names = {}
    for speaker in (1, 2):
        lines = [line.strip() for index, line in record.conversation if record.speaker_of(index) == speaker]
        prefixes = Counter(line.partition(":")[0] for line in lines if ":" in line)
        name, times = prefixes.most_common(1)[0] if prefixes else ("", 0)
        names[speaker] = f"{name}:" if 2 * times > len([line for line in lines if line]) else ""
    return [line.strip().removeprefix(names[record.speaker_of(index)]).strip() for index, line in record.conversation]


def _prompt_to_line(record: PaperRecord, turn_of: dict[int, int], parse: str) -> Iterator[Verdict]:
    for index, text in record.eval_prompt_consistency:
        if index in turn_of:
            outcome = YES_CONTRADICTS[strict_yes(text) if parse == "strict" else yes_substring(text)]
            yield _with_text(Verdict(metric="prompt_to_line", turn=turn_of[index], outcome=outcome), text)


def _line_to_line(record: PaperRecord, turn_of: dict[int, int], parse: str) -> Iterator[Verdict]:
    for index, text in record.eval_index_consistency:
        if index not in turn_of:
            continue
        earlier = {i: turn for i, turn in turn_of.items() if i < index}  # indices of the other speaker are no conflicts
        lists = index_lists(text) if parse == "strict" or text is None else [first_list(text)]
        readings = {tuple(sorted({earlier[i] for i in found if i in earlier})) for found in lists}
        verdict = Verdict(metric="line_to_line", turn=turn_of[index], outcome="unparsed")
        if len(readings) == 1:
            verdict.conflicts = list(readings.pop())
            verdict.outcome = "contradicts" if verdict.conflicts else "consistent"
        yield _with_text(verdict, text)


def _survey(record: PaperRecord, speaker: int) -> Iterator[tuple[int, Sequence[str | None], Sequence[str | None]]]:
    """Turn, answers and grades of each probe of a speaker. Entries have no index: they follow the lines in order."""
    surveyed = [(i, line) for i, line in record.conversation if record.questions(record.speaker_of(i)) is not None]
    entries = record.eval_survey_consistency
    if entries and [line for _, line in surveyed] != [line for line, *_ in entries]:
        raise ValueError("eval_survey_consistency: its lines are not those of the conversation")
    turn = 0
    for (index, _), (_, _, answers, grades) in zip(surveyed, entries, strict=False):
        if record.speaker_of(index) == speaker:
            turn += 1
            if len(answers) != len(grades):
                raise ValueError(f"eval_survey_consistency: {len(answers)} answers but {len(grades)} grades")
            yield turn, answers, grades


def _graded(turn: int, probe: int, grade: str | None, parse: str) -> Verdict:
    outcome = YES_IS_RIGHT[strict_yes(grade) if parse == "strict" else yes_in_any_case(grade)]
    return _with_text(Verdict(metric="qa", turn=turn, probe=probe, outcome=outcome), grade)


def _with_text(verdict: Verdict, text: str | None) -> Verdict:
    field = "answer" if verdict.outcome == "unparsed" else "reason"
    return verdict.model_copy(update={field: (text or "").strip()})


# ---------------------------------------------------------------------------------------- reading a judge's answer

YES_CONTRADICTS: dict[bool | None, Outcome] = {True: "contradicts", False: "consistent", None: "unparsed"}
YES_IS_RIGHT: dict[bool | None, Outcome] = {True: "consistent", False: "contradicts", None: "unparsed"}


def strict_yes(text: str | None) -> bool | None:
    """Whether the answer says YES or NO, as a word in capitals; None if it says neither or both."""
    said = set(re.findall(r"\b(?:YES|NO)\b", text or ""))
    return said == {"YES"} if len(said) == 1 else None


def index_lists(text: str | None) -> list[list[int]]:
    """Every bracketed list of whole numbers in an answer, read digit by digit (the authors call `eval` on it)."""
    return [[int(number) for number in re.findall(r"\d+", found)] for found in INDEX_LIST.findall(text or "")]


# ---------------------------------------------------------------------------------------------- the authors' ways


def yes_substring(text: str | None) -> bool | None:
    """Authors' prompt_to_line: "YES" anywhere contradicts; everything else, an answer to nothing too, is consistent."""
    return None if text is None else "YES" in text


def yes_in_any_case(text: str | None) -> bool | None:
    """Authors' Q&A: right where the grade contains "yes" in any case, wrong otherwise."""
    return None if text is None else "yes" in text.lower()


def first_list(text: str) -> list[int]:
    """Authors' line_to_line: what stands in the first brackets; no conflict if that is no list or there are none."""
    brackets = re.search(r"\[[^\[\]]*\]", text)
    return next(iter(index_lists(brackets[0])), []) if brackets else []


def pair_averaged_line_to_line(judged: Judged) -> float | None:
    """1 - Σ_t |conflicts_t| / Σ_t (t-1) over the judged turns t ≥ 2: conflicting pairs of lines out of all pairs.

    Eq. 2 asks whether a line conflicts with *any* earlier one. Averaged over pairs instead, the score rises with the
    length of the dialogue whatever is said: one conflict in every line is 0 by eq. 2 and .90 here over 20 lines.

    Returns:
        None if no line was judged against earlier ones.
    """
    verdicts = [verdict for verdict in judged.of("line_to_line") if verdict.turn >= 2]
    pairs = sum(verdict.turn - 1 for verdict in verdicts)
    return 1 - sum(len(verdict.conflicts) for verdict in verdicts) / pairs if pairs else None


def judge_answered_qa(judged: Judged) -> float | None:
    """Share of the Q&A answers graded right, those without a readable grade counted as wrong.

    The authors let the *judge* answer the questions, with the persona in its prompt, and store the mean number of right
    answers of five; this is that number divided by five. It says next to nothing about the simulator.

    Returns:
        None if there are no Q&A verdicts.
    """
    verdicts = judged.of("qa")
    return sum(verdict.outcome == "consistent" for verdict in verdicts) / len(verdicts) if verdicts else None
