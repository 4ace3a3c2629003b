"""Rewards of dialogues: the three metrics by a judge, and guards against what only looks consistent.

Per line
    prompt_to_line   the line against the persona          1 - p(contradicts), or 1 and 0
    line_to_line     the line against the earlier lines    the same; none for the first line
    length           0 inside the band of words, down to -1 the further outside
    copying          minus the share of its word 3-grams that stand in the persona
    repetition       minus the share of its word 3-grams that the simulator has said before
    role_flip        -1 if it speaks as the other side or as an AI
Per dialogue
    qa               share of right answers about itself, among those that could be read

A verdict that is missing gives no reward (None), neither good nor bad. Judges' rewards are capped: above `cap` nothing
is gained by convincing the judge still more. The same question about the same words is asked once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from persona_tasks.lm_eval_tasks.roles import Role
from persona_tasks.monitors import Gram, is_role_flip, ngrams, words
from persona_tasks.protocol.asks import Answer, Ask
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.transcript import METRICS, Judged, Metric, Transcript, Turn, Verdict

Name = Literal["prompt_to_line", "line_to_line", "qa", "length", "copying", "repetition", "role_flip"]
Values = list[float | None]
SILENT = ("judge failed", "unreadable")  # how the reasons of verdicts begin that a judge should have given


class JudgeError(RuntimeError):
    """The judge gives no verdicts, so there is nothing to learn from. The message says what it answered."""


class RewardSettings(BaseModel):
    """Weights of the rewards, 0 for those that are not wanted, and how they are made."""

    model_config = ConfigDict(extra="forbid")
    prompt_to_line: float = Field(1.0, ge=0, description="Weight of the line against the persona.")
    line_to_line: float = Field(0.5, ge=0, description="Weight of the line against the earlier lines.")
    qa: float = Field(0.0, ge=0, description="Weight of the answers about itself; over 0 questions are asked.")
    length: float = Field(0.5, ge=0, description="Weight of the length band.")
    copying: float = Field(0.5, ge=0, description="Weight of the persona's words in the line.")
    repetition: float = Field(0.5, ge=0, description="Weight of the simulator's own earlier words in the line.")
    role_flip: float = Field(1.0, ge=0, description="Weight of speaking as the other side or as an AI.")
    verdict: Literal["soft", "hard"] = Field(
        "soft", description="soft: the judge's probability of `consistent` where it gives one; hard: 1 or 0."
    )
    cap: float = Field(1.0, gt=0, le=1, description="A judge's reward above this counts as this.")
    words: tuple[int, int] = Field((8, 60), description="Band of words a line; outside it costs.")

    def weights(self) -> dict[Name, float]:
        """Those that are not 0, in the order above."""
        names: tuple[Name, ...] = Name.__args__  # type: ignore[attr-defined]
        return {name: weight for name in names if (weight := getattr(self, name))}


@dataclass
class Scores:
    """Rewards of some dialogues.

    Attributes:
        rewards: For each dialogue, by name: one value per line, or a single one for `qa`.
        judged: The dialogues with their verdicts.
        asks: Questions to the judge.
        calls: Those that were sent: equal ones once.
        missing: Share of verdicts that could not be had.
    """

    rewards: list[dict[Name, Values]]
    judged: list[Judged]
    asks: int = 0
    calls: int = 0
    missing: float = 0.0


@dataclass
class Rewards:
    """Gives rewards by its settings; `check` first."""

    settings: RewardSettings
    judge: Role
    weights: dict[Name, float] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = self.settings.weights()
        self.metrics: list[Metric] = [metric for metric in METRICS if metric in self.weights]

    def check(self, transcript: Transcript) -> None:
        """Judge one dialogue, to find out before a long run that there is a judge.

        Raises:
            JudgeError: It gave no verdict.
        """
        if self.metrics:
            self.judge.prepare()
            _stop_if_silent(self.judge.name, self._judged([transcript])[0])

    def score(self, transcripts: Sequence[Transcript]) -> Scores:
        """Judge the dialogues and give the rewards of those in the recipe.

        Raises:
            JudgeError: More than half of the verdicts are missing because the judge failed.
        """
        verdicts, asks, calls = self._judged(transcripts)
        _stop_if_silent(self.judge.name, verdicts)
        missing = [verdict.outcome == "unparsed" for own in verdicts for verdict in own]
        return Scores(
            [self._rewards(*pair) for pair in zip(transcripts, verdicts, strict=True)],
            [
                Judged(transcript=transcript, verdicts=own, judge=self.judge.name)
                for transcript, own in zip(transcripts, verdicts, strict=True)
            ],
            asks,
            calls,
            sum(missing) / max(len(missing), 1),
        )

    def _judged(self, transcripts: Sequence[Transcript]) -> tuple[list[list[Verdict]], int, int]:
        asks = calls = 0

        def once(batch: list[Ask]) -> list[Answer]:
            nonlocal asks, calls
            different = {ask.messages: ask for ask in batch}
            asks, calls = asks + len(batch), calls + len(different)
            found = dict(zip(different, self.judge.answer(list(different.values())), strict=True))
            return [found[ask.messages] for ask in batch]

        if not self.metrics:
            return [[] for _ in transcripts], 0, 0
        return lockstep([judge(transcript, self.metrics) for transcript in transcripts], once), asks, calls

    def _rewards(self, transcript: Transcript, verdicts: Sequence[Verdict]) -> dict[Name, Values]:
        by_name: dict[Name, Callable[[], Values]] = {
            "prompt_to_line": lambda: self._per_line("prompt_to_line", transcript, verdicts),
            "line_to_line": lambda: self._per_line("line_to_line", transcript, verdicts),
            "qa": lambda: [_right_answers(verdicts)],
            "length": lambda: [length_penalty(line, *self.settings.words) for line in transcript.lines],
            "copying": lambda: copying_penalties(transcript.lines, transcript.persona_text),
            "repetition": lambda: repetition_penalties(transcript.lines),
            "role_flip": lambda: [-float(is_role_flip(line)) for line in transcript.lines],
        }
        return {name: by_name[name]() for name in self.weights}

    def _per_line(self, metric: Metric, transcript: Transcript, verdicts: Sequence[Verdict]) -> Values:
        values: Values = [None] * len(transcript.turns)
        for verdict in verdicts:
            if verdict.metric == metric and verdict.outcome != "unparsed":
                consistent = float(verdict.outcome == "consistent")
                if self.settings.verdict == "soft" and verdict.p_contradicts is not None:
                    consistent = 1 - verdict.p_contradicts
                values[verdict.turn - 1] = min(consistent, self.settings.cap)
        return values


def sample_dialogue(transcript: Transcript) -> Transcript:
    """A dialogue for `Rewards.check`: somebody says something, twice."""
    turns = [Turn(partner="How are you?", line="I am fine."), Turn(partner="Really?", line="Yes, I am fine.")]
    return transcript.model_copy(update={"turns": turns})


def length_penalty(line: str, low: int, high: int) -> float:
    """0 for `low` to `high` words; minus the share that is missing, or that is too much, down to -1.

    >>> length_penalty("one two three four", 8, 60), length_penalty("one two", 1, 4), length_penalty("a a a", 1, 2)
    (-0.5, 0.0, -0.5)
    """
    count = len(words(line))
    if count < low:
        return (count - low) / low
    return -min(1.0, max(0, count - high) / high)


def copying_penalties(lines: Sequence[str], persona_text: str) -> Values:
    """Minus the share of each line's word 3-grams that also stand in the persona; 0 for a line without any."""
    persona = set(ngrams(words(persona_text), 3))
    return [-_share(ngrams(words(line), 3), persona) for line in lines]


def repetition_penalties(lines: Sequence[str]) -> Values:
    """Minus the share of each line's word 3-grams (of a line of one or two words: itself) that were said before."""
    earlier: set[Gram] = set()
    penalties: Values = []
    for line in lines:
        spoken = words(line)
        grams = ngrams(spoken, min(3, len(spoken)))
        penalties.append(-_share(grams, earlier))
        earlier.update(grams)
    return penalties


def _share(grams: Sequence[Gram], known: set[Gram]) -> float:
    return sum(gram in known for gram in grams) / max(len(grams), 1)


def _right_answers(verdicts: Sequence[Verdict]) -> float | None:
    read = [verdict.outcome for verdict in verdicts if verdict.metric == "qa" and verdict.outcome != "unparsed"]
    return sum(outcome == "consistent" for outcome in read) / len(read) if read else None


def _stop_if_silent(name: str, verdicts: Sequence[Sequence[Verdict]]) -> None:
    """The judge is silent if it failed, or answered what nobody can read, for most of what it was asked."""
    flat = [verdict for own in verdicts for verdict in own]
    silent = [verdict for verdict in flat if verdict.reason.startswith(SILENT)]
    if 2 * len(silent) > len(silent) + sum(verdict.outcome != "unparsed" for verdict in flat):
        said = f"; it said {silent[0].answer[:200]!r}" if silent[0].answer else ""
        raise JudgeError(f"the judge {name} gave no verdict, {len(silent)} times: {silent[0].reason}{said}")
