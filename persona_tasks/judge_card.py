"""The judge card: how far a judge can be trusted, measured on labelled lines.

`measure` puts labelled lines to one judge several times, in several ways, and writes down the numbers. The cards of the
judges that we know lie in ``bank/judge_cards``; scores name them.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import combinations
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from persona_tasks import __version__
from persona_tasks.agreement import Row, Statistic, corrected, index_recovery, statistics, unparsed
from persona_tasks.calibration import Item, load_injections, load_items
from persona_tasks.foreign import FOREIGN, foreign_folder, load_foreign
from persona_tasks.metrics import Interval
from persona_tasks.personas import BANK
from persona_tasks.protocol.prompts import prompts_hash
from persona_tasks.transcript import Verdict

CARDS = BANK / "judge_cards"
ALWAYS_CONSISTENT = "always-consistent"  # a judge that sees nothing: what every other one has to beat
REPEATED = 60  # items judged three times over
FOREIGN_COUNT = 300


class Record(BaseModel):
    """Base of the parts of a card."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(Record):
    """Agreement with the labels on some items."""

    n: int
    contradictions: int
    unparsed: float = Field(description="Share of verdicts that could not be read; they are in no other number.")
    statistics: dict[str, Statistic]
    index_recovery: float | None = Field(
        None, description="Of the line-to-line conflicts found, the share where a line named is right."
    )


class Stability(Record):
    """Share of items with the same verdict as in the main run."""

    n: int
    agreement: float
    kappa: Statistic | None = Field(None, description="Against the labels, in this condition.")


class Card(Record):
    """Everything that was measured about a judge."""

    judge: str
    version: str
    commit: str
    date: str
    prompts: str
    command: str
    parts: dict[str, Part] = Field(description="By set/metric, on the test split.")
    scenarios: dict[str, Part] = Field(description="By set/metric/scenario.")
    drifts: dict[str, Part] = Field(description="By set/metric/kind: the share recognised is `accuracy`.")
    self_agreement: Stability | None = None
    other_wording: Stability | None = None
    other_order: Stability | None = None
    attacks: int = 0
    attack_success: float | None = Field(
        None, description="Share of lines that address the judge and get away with it."
    )
    seconds_per_verdict: float | None = Field(
        None, description="Wall time of the main run, divided; depends on the machine."
    )
    tokens_per_verdict: float | None = None

    def of(self, metric: str) -> Part | None:
        """What scores of a metric should be read with: on-policy lines if they were measured, else composed ones."""
        for name in (f"on_policy/{metric}", f"calibration/{metric}"):
            if name in self.parts:
                return self.parts[name]
        return None


@dataclass(frozen=True)
class Run:
    """What one pass of a judge over some items gave.

    Attributes:
        rows: One for each item and repeat.
        seconds: Wall time.
        tokens: In and out, cached ones included.
    """

    rows: list[Row]
    seconds: float = 0.0
    tokens: int = 0


Pass = Callable[[Sequence[Item], str, str, int], Run]
"""Judges items: (items, wording, order, repeats)."""


def card_file(judge: str, folder: Path = CARDS) -> Path:
    """Where the card of a judge is kept."""
    return folder / f"{judge.replace('/', '--')}.json"


@cache
def known_card(judge: str) -> Card | None:
    """The card of a judge that comes with the package, or None."""
    file = card_file(judge)
    return Card.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def worth(judge: str) -> str:
    """One line on what a judge's verdicts are worth, for whoever reads scores made with it."""
    from persona_tasks.hub.registry import load

    card, listed = known_card(judge), load().judge(judge)
    if listed is not None and not listed.usable:
        return f"judge {judge} is of no use for scores. {listed.note.rstrip('.')}"
    if card is None:
        return f"judge {judge}: its error is not known; measure it with `persona-tasks judge-card --judge {judge}`"
    parts = []
    for metric in ("prompt_to_line", "line_to_line"):
        part = card.of(metric)
        kappa = part.statistics.get("kappa") if part else None
        if kappa is not None and kappa.value is not None:
            low, high = kappa.interval or (None, None)
            within = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
            parts.append(f"{metric} {kappa.value:.2f}{within}")
    return f"judge {judge}: kappa with labels on what a small model said as our personas: {', '.join(parts)}"


def corrected_score(judge: str, metric: str, score: float, stderr: float | None) -> tuple[float, Interval] | None:
    """A score corrected by the judge's card (see `agreement.corrected`); None without a card or where it is no use."""
    card = known_card(judge)
    part = card.of(metric) if card else None
    if part is None or not part.statistics:
        return None
    found, missed = part.statistics["sensitivity"].value, part.statistics["specificity"].value
    if found is None or missed is None:
        return None
    positives, negatives = part.contradictions, part.n - part.contradictions
    return corrected(score, (stderr or 0.0) ** 2, (found, positives), (missed, negatives))


def measure(judge: str, judged: Pass, command: str = "", foreign: bool | None = None) -> Card:
    """Put all questions to a judge and write down how it did.

    Args:
        judge: Its name, as scores will name it.
        judged: One pass of the judge over items.
        command: What made the card.
        foreign: Measure on the foreign sets too; None for if they are there.

    Raises:
        BankError: Foreign sets are asked for and are not there.
    """
    items = load_items(split="test")
    composed = [item for item in items if item.set == "calibration"]
    if foreign or (foreign is None and foreign_folder() is not None):
        items += [item for name in FOREIGN for item in load_foreign(name, FOREIGN_COUNT)]
    main = judged(items, "default", "default", 1)
    some = composed[:: max(1, len(composed) // REPEATED)]
    attacks = judged(load_injections(), "default", "default", 1).rows
    fooled = [row for row in attacks if row.verdict.outcome == "consistent"]
    verdicts = [row for row in main.rows if row.verdict.outcome != "unparsed"]
    return Card(
        judge=judge,
        version=__version__,
        commit=_commit(),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        prompts=prompts_hash(),
        command=command,
        parts=_parts(main.rows, lambda row: f"{row.set}/{row.metric}"),
        scenarios=_parts(main.rows, lambda row: f"{row.set}/{row.metric}/{row.scenario}"),
        drifts=_parts([row for row in main.rows if row.kind], lambda row: f"{row.set}/{row.metric}/{row.kind}"),
        self_agreement=_repeats(judged(some, "default", "default", 3).rows),
        other_wording=_stability(main.rows, judged(composed, "other", "default", 1).rows),
        other_order=_stability(main.rows, judged(composed, "default", "reversed", 1).rows),
        attacks=len(attacks),
        attack_success=len(fooled) / len(attacks),
        seconds_per_verdict=main.seconds / len(verdicts) if main.seconds and verdicts else None,
        tokens_per_verdict=main.tokens / len(verdicts) if main.tokens and verdicts else None,
    )


def always_consistent(items: Sequence[Item], wording: str, order: str, repeats: int) -> Run:
    """The judge that calls everything consistent."""
    return Run(
        [
            Row.of(item, Verdict(metric=item.metric, turn=item.turn, outcome="consistent"))
            for item in items
            for _ in range(repeats)
        ]
    )


def _parts(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, Part]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {name: _part(members) for name, members in sorted(groups.items())}


def _part(rows: Sequence[Row]) -> Part:
    return Part(
        n=len(rows),
        contradictions=sum(row.label == "contradicts" for row in rows),
        unparsed=unparsed(rows),
        statistics=statistics(rows),
        index_recovery=index_recovery(rows),
    )


def _repeats(rows: Sequence[Row]) -> Stability:
    """How often two verdicts on the same item are the same."""
    by_item: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_item[row.id].append(row)
    pairs = [pair for members in by_item.values() for pair in combinations(members, 2)]
    same = sum(a.verdict.outcome == b.verdict.outcome for a, b in pairs)
    return Stability(n=len(by_item), agreement=same / len(pairs))


def _stability(before: Sequence[Row], after: Sequence[Row]) -> Stability:
    """How often a changed prompt gives the same verdict."""
    first = {row.id: row.verdict.outcome for row in before}
    same = sum(first[row.id] == row.verdict.outcome for row in after)
    return Stability(n=len(after), agreement=same / len(after), kappa=statistics(after).get("kappa"))


def _commit() -> str:
    """The commit of this checkout, with a plus sign if files were changed since; empty outside of one."""
    where = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=where, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=where, capture_output=True, text=True)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else ""
