"""What a cheating simulator would show: pure functions of a transcript, printed beside every consistency score.

A simulator that says "I'm fine." ten times, or recites its persona, is perfectly consistent and useless. All monitors
read the simulator's lines r_1..r_T only.

*Words* are runs of letters and digits with inner apostrophes and hyphens, lower-cased ("I'm", "ten-year-old" are one).
A line's *n-grams* are its tuples of n neighbouring words, repetitions included; they never cross from line to line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from statistics import fmean

from persona_tasks.transcript import Transcript

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
Gram = tuple[str, ...]


def monitor(transcript: Transcript) -> dict[str, float]:
    """Every monitor of one dialogue, by the names in `MONITORS`. All are 0 for a dialogue without lines."""
    return {name: function(transcript) for name, function in MONITORS.items()}


def line_length(transcript: Transcript) -> float:
    """Mean number of words of a line; empty lines count as 0."""
    return _mean([float(len(words(line))) for line in transcript.lines])


def distinct_2(transcript: Transcript) -> float:
    """Different word 2-grams / all word 2-grams of the dialogue's lines taken together (Li et al. 2016).

    It falls with the amount of text whoever speaks, because the stock of 2-grams is used up. Compare it only between
    dialogues of about the same number of turns *and* line length. 0 if no line has two words.
    """
    grams = list(chain.from_iterable(ngrams(words(line), 2) for line in transcript.lines))
    return len(set(grams)) / len(grams) if grams else 0.0


def self_repetition(transcript: Transcript) -> float:
    """Share of a line's 3-grams that occurred in an earlier line of the same speaker, averaged over lines.

    A line of one or two words counts as a single gram, itself: otherwise "I'm fine." could be repeated unseen. The
    first line with words and lines without words are left out of the average; 0 if no line remains.
    """
    shares: list[float] = []
    earlier: set[Gram] = set()
    for line in transcript.lines:
        spoken = words(line)
        grams = ngrams(spoken, min(3, len(spoken)))
        if earlier and grams:
            shares.append(_share(grams, earlier))
        earlier.update(grams)
    return _mean(shares)


def persona_copying(transcript: Transcript) -> float:
    """Share of a line's word 3-grams that also stand in the persona text, averaged over the lines with a 3-gram.

    Plain matching: names and common phrases count, and "you are" in the persona does not match "I am".
    """
    persona = set(ngrams(words(transcript.persona_text), 3))
    lines = (ngrams(words(line), 3) for line in transcript.lines)
    return _mean([_share(grams, persona) for grams in lines if grams])


def role_flips(transcript: Transcript) -> float:
    """Share of lines that speak as the other side or as an AI assistant; see `is_role_flip`."""
    return _mean([float(is_role_flip(line)) for line in transcript.lines])


MONITORS: dict[str, Callable[[Transcript], float]] = {
    "line_length": line_length,
    "distinct_2": distinct_2,
    "self_repetition": self_repetition,
    "persona_copying": persona_copying,
    "role_flips": role_flips,
}


def words(text: str) -> list[str]:
    """The words of a text as defined above."""
    return WORD.findall(text.lower())


def ngrams(spoken: Sequence[str], n: int) -> list[Gram]:
    """All runs of `n` neighbouring words; none for n = 0 or fewer than `n` words."""
    return [tuple(spoken[i : i + n]) for i in range(len(spoken) - n + 1)] if n else []


def _share(grams: Sequence[Gram], known: set[Gram]) -> float:
    return sum(gram in known for gram in grams) / len(grams)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


# ------------------------------------------------------------------------------------------------------ role flips

_AI = (
    r"(?:(?:large )?language model|artificial intelligence|computer program|LLM"
    r"|(?:AI |virtual |digital |automated )?(?:chatbot|assistant(?= here| designed| created| trained)|bot)"
    r"|(?:AI|virtual|digital|automated) (?:language model|model|assistant|agent|system|program)|AI|A\.I\.)"
)
_IS_NOT_ONLY_A_MODIFIER = r"(?=\s*(?:$|[,.;!)—–]|-\s|and\b|or\b|so\b|but\b|here\b|I\b|designed\b|created\b|trained\b))"
_SERVICE = r"(?:(?:customer )?(?:support|service|care)|help ?desk)"
_RECORD = r"(?:account|order|booking|reservation|claim|refund|policy|subscription|case|ticket)"
_HELPER = r"(?:therapist|counsell?or|tutor|teacher|doctor|advis[eo]r|agent|(?:virtual |AI |personal )?assistant)"

ROLE_FLIPS: tuple[str, ...] = (
    # says that it is an AI. "As an AI researcher" and "I'm a bot developer" are people
    rf"\bas an? {_AI}{_IS_NOT_ONLY_A_MODIFIER}",
    rf"\bI(?:'m| am) (?:(?:just|only|actually|really|simply|still) )?an? {_AI}{_IS_NOT_ONLY_A_MODIFIER}",
    r"\bI(?:'m| am| was| have been|'ve been) (?:trained|programmed|developed|created|designed) (?:by|to assist)\b",
    r"\bI (?:do not|don't|cannot|can't) have personal (?:experiences|opinions|beliefs|feelings|emotions)\b",
    # offers help. "How can I help my mum?" and "How can I help you understand?" ask for something
    r"\bhow (?:can|may|could|might) (?:I|we) (?:help|assist) you"
    r"(?! (?:to )?(?:understand|see|believe|realise|realize|if|when)\b)",
    r"\bhow (?:can|may) (?:I|we) be of (?:help|service|assistance)\b",
    r"\bwhat can (?:I|we) (?:help|assist) you with\b",
    r"\banything else (?:that )?(?:I|we) can (?:do for you|(?:help|assist)(?: you)? with)\b",
    r"\b(?:I'm|I am|we're|we are) here to (?:help|assist|support)(?: you)?"
    r"(?=\s*(?:$|[,.;!]| with (?:any|whatever|your)\b))",
    r"\b(?:happy|glad|pleased) to assist(?: you)?(?=\s*(?:$|[,.;!]| with (?:any|that|this|your)\b))",
    rf"\bI can (?:help|assist) you with (?:your|any) (?:{_RECORD}|questions|request|issue|return|inquiry|enquiry)\b",
    r"\blet me know if you (?:have any (?:other|more|further|additional)? ?questions"
    r"|need (?:any )?(?:further|more|additional) (?:help|assistance|information|clarification))\b",
    # speaks for the company
    rf"\bthank(?:s| you) for (?:contacting|calling|reaching out to|choosing) "
    rf"(?:us|our|(?:\w+ ){{0,3}}{_SERVICE})\b(?! back)",
    r"\bthank(?:s| you) for being an? (?:valued|loyal) customer\b",
    r"(?:^|[.!?]\s+|\b(?:I|we)(?:'d like to| would like to)? (?:sincerely |truly |deeply )?)"
    r"apologi[sz]e for (?:the|any) inconvenience",
    r"(?:^|[.!?]\s+|\b(?:I'm|I am|we're|we are) (?:so |very |really |truly )?)sorry for (?:the|any) inconvenience",
    r"(?:^|[.!?]\s+)we (?:truly |really |greatly )?(?:value|appreciate) your (?:business|feedback|loyalty|patronage)\b",
    rf"\b(?:let me|I'll|I will|I can) (?:just |quickly |go ahead and )?"
    rf"(?:pull up|look up|look into|check|access|review|process) your {_RECORD}\b",
    rf"\b(?:can|could|may) (?:you (?:please )?(?:provide|confirm|verify)|I (?:please )?have) (?:me )?(?:with )?your "
    rf"{_RECORD} (?:number|details|id)\b",
    # speaks as the helper of the scene, or writes the other side's part
    rf"\bas your {_HELPER}(?=,| I\b)",
    rf"\bI(?:'m| am) your (?:new )?{_HELPER}\b(?!['-])",
    r"\bwhat brings you (?:in today|to (?:therapy|counsell?ing|(?:our|this|today's) session))\b",
    rf"^\W*(?:{_HELPER}|AI|customer (?:service|support)(?: \w+)?|support agent)\W*:",
)
"""Patterns of a role flip, matched without regard to case. Precise rather than complete: a hit should be a flip."""

_ROLE_FLIP = re.compile("|".join(f"(?:{pattern})" for pattern in ROLE_FLIPS), re.IGNORECASE | re.MULTILINE)
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')


def is_role_flip(line: str) -> bool:
    """Whether a line speaks as the other side or as an AI assistant.

    Words between double quotes are somebody else's and are not looked at, unless they are most of the line.
    """
    straight = line.replace("’", "'")
    own = _QUOTED.sub(" ", straight)
    mostly_quoted = 2 * len(words(own)) < len(words(straight))
    return _ROLE_FLIP.search(straight if mostly_quoted else own) is not None
