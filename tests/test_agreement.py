"""Judges against labels: the statistics, the Inspect task, and the card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from persona_tasks.agreement import (
    Row,
    Statistic,
    accuracy,
    auc,
    confusion,
    corrected,
    f1,
    index_recovery,
    kappa,
    statistics,
    unparsed,
)
from persona_tasks.calibration import Item, load_injections, load_items
from persona_tasks.inspect_tasks.agreement import agreement_task, judged_by, reversed_item, verdict_on_item
from persona_tasks.judge_card import Card, Run, always_consistent, card_file, known_card, measure, worth
from persona_tasks.judge_plot import draw
from persona_tasks.protocol.judging import DEFAULT_JUDGE
from persona_tasks.tables import card_markdown
from persona_tasks.transcript import Outcome, Verdict
from tests.chat_server import SERVER_ERROR, ChatServer, Reply, Request
from tests.inspect_runs import model_at, run, verdict

ITEMS = load_items(["calibration"], "test")


def rows(*pairs: tuple[Outcome, Outcome], p: list[float] | None = None) -> list[Row]:
    """Rows of (label, verdict), every one about another persona."""
    made = []
    for number, (label, outcome) in enumerate(pairs):
        found = Verdict(
            metric="prompt_to_line", turn=1, outcome=outcome, p_contradicts=None if p is None else p[number]
        )
        made.append(Row(str(number), "s", "prompt_to_line", "chat", "", str(number), label, (), found))
    return made


def test_statistics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    names: tuple[Outcome, Outcome] = ("consistent", "contradicts")
    pairs = [(names[a], names[b]) for a, b in rng.integers(0, 2, (50, 2))]
    labels, said = zip(*pairs, strict=True)
    cells = confusion(rows(*pairs))
    assert kappa(cells)[0] == pytest.approx(cohen_kappa_score(labels, said))
    assert f1(cells)[0] == pytest.approx(f1_score(labels, said, pos_label="contradicts"))
    assert accuracy(cells)[0] == pytest.approx(np.mean([a == b for a, b in pairs]))


def test_auc_ranks_by_probability_and_by_the_verdict_without_one() -> None:
    pairs: list[tuple[Outcome, Outcome]] = [("contradicts", "consistent"), ("consistent", "consistent")]
    assert auc(rows(*pairs))[0] == 0.5
    assert auc(rows(*pairs, p=[0.4, 0.1]))[0] == 1.0
    assert auc(rows(*pairs, p=[0.1, 0.4]))[0] == 0.0


def test_unparsed_verdicts_leave_the_statistics() -> None:
    some = rows(("contradicts", "contradicts"), ("consistent", "consistent"), ("contradicts", "unparsed"))
    assert unparsed(some) == pytest.approx(1 / 3)
    assert statistics(some)["accuracy"].value == 1.0
    assert statistics(some[2:]) == {}


def test_intervals_are_clustered_by_persona() -> None:
    """Ten copies of one opinion about each of four personas are no more evidence than four."""
    apart = rows(*[("contradicts", "contradicts"), ("contradicts", "consistent"), ("consistent", "consistent")] * 2)
    copies = [row for row in apart for _ in range(10)]
    one, many = statistics(apart)["accuracy"].interval, statistics(copies)["accuracy"].interval
    assert one == many
    assert one is not None and one != (None, None)


def test_a_score_is_corrected_for_the_judges_errors() -> None:
    """Of 100 lines 30 contradict; a judge with sensitivity .8 and specificity .9 calls 31 so."""
    true_share, sens, spec = 0.3, 0.8, 0.9
    called = true_share * sens + (1 - true_share) * (1 - spec)
    found = corrected(1 - called, 0.0, (sens, 10**9), (spec, 10**9))
    assert found is not None
    assert found[0] == pytest.approx(0.7)
    assert found[1] == pytest.approx((0.7, 0.7), abs=1e-3)
    wide = corrected(1 - called, 0.001, (sens, 50), (spec, 50))
    assert wide is not None and wide[1][0] < 0.6 < 0.8 < wide[1][1]
    assert corrected(0.5, 0.0, (0.5, 100), (0.5, 100)) is None
    # it raises more false alarms on labelled lines than it called contradictions here: no sign that none contradicts
    assert corrected(0.95, 0.0001, (0.8, 1000), (0.6, 1000)) is None
    few = corrected(0.95, 0.0001, (0.8, 20), (0.9, 20))
    assert few is not None and few[0] == 1.0 and 0.5 < few[1][0] < 1.0


def test_index_recovery_counts_found_conflicts_only() -> None:
    def row(label: tuple[int, ...], said: list[int]) -> Row:
        outcome: Outcome = "contradicts" if said else "consistent"
        found = Verdict(metric="line_to_line", turn=5, outcome=outcome, conflicts=said)
        return Row("x", "s", "line_to_line", "chat", "", "p", "contradicts" if label else "consistent", label, found)

    assert index_recovery([row((1, 3), [3]), row((2,), [1]), row((2,), []), row((), [1])]) == 0.5
    assert index_recovery([row((), [])]) is None


# ------------------------------------------------------------------------------------------------- the Inspect task


def of(metric: str, count: int) -> list[Item]:
    found = [item for item in ITEMS if item.metric == metric]
    return found[: count // 2] + found[-(count - count // 2) :]


def by_label(request: Request) -> str:
    """A judge that knows the labels of a few lines."""
    for item in ITEMS:
        line = json.dumps(item.transcript.lines[-1], ensure_ascii=False)
        if line in request.last and json.dumps(item.transcript.persona_text, ensure_ascii=False)[1:40] in str(
            request.messages[0]
        ):
            return json.dumps({"reason": "r", "verdict": item.label})
    return "no idea"


def test_the_task_scores_a_judge_by_the_labels(tmp_path: Path) -> None:
    items = of("prompt_to_line", 8)
    with ChatServer(by_label) as server:
        log = run(agreement_task(items), server, tmp_path, roles={})
    assert log.status == "success" and log.results is not None
    metrics = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    assert metrics["mean"] == metrics["cohens_kappa"] == metrics["roc_auc"] == 1.0
    assert len(server.log) == 8


def test_what_the_judge_did_not_say_is_unscored(tmp_path: Path) -> None:
    with ChatServer("hm") as server:
        log = run(agreement_task(of("line_to_line", 2)), server, tmp_path, roles={})
    assert log.results is not None
    assert (log.results.scores[0].scored_samples, log.results.scores[0].unscored_samples) == (0, 2)


def test_the_solver_keeps_the_verdict_and_leaves_out_nothing(tmp_path: Path) -> None:
    """`verdict_on_item` alone: the verdict in the sample, whoever scores it."""
    item = of("line_to_line", 2)[0]
    task = agreement_task([item])
    task.solver, task.scorer = verdict_on_item(), None
    with ChatServer(json.dumps({"reason": "Both cannot be.", "conflicts": [1]})) as server:
        log = run(task, server, tmp_path, roles={})
    assert log.samples is not None
    found = Verdict.model_validate(log.samples[0].metadata["verdict"])
    assert (found.outcome, found.conflicts, found.reason) == ("contradicts", [1], "Both cannot be.")


def test_reversing_keeps_the_question() -> None:
    item = next(item for item in ITEMS if item.conflicts)
    turned = reversed_item(item)
    before = [item.transcript.lines[turn - 1] for turn in item.conflicts]
    assert sorted(turned.transcript.lines[turn - 1] for turn in turned.conflicts) == sorted(before)
    assert turned.transcript.lines[-1] == item.transcript.lines[-1]
    persona, other = item.transcript.persona_text, turned.transcript.persona_text
    assert sorted(persona.split("\n")) == sorted(other.split("\n")) and persona != other
    assert reversed_item(turned) == item


def test_the_other_wording_is_another_prompt(tmp_path: Path) -> None:
    prompts: dict[str, list[Any]] = {}
    for wording in ("default", "other"):
        with ChatServer(verdict) as server:
            run(agreement_task(of("prompt_to_line", 2), wording), server, tmp_path, roles={})
        prompts[wording] = [request.messages for request in server.log]
    system = [found[0][0]["content"] for found in prompts.values()]
    users = [sorted(m[1]["content"] for m in found) for found in prompts.values()]
    assert system[0] != system[1] and users[0] == users[1]
    with pytest.raises(ValueError, match="choose default or other"):
        agreement_task(of("prompt_to_line", 2), "third")


# ------------------------------------------------------------------------------------------------------- the card


def test_the_card_of_a_judge_that_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSONA_REFERENCE_DATA", raising=False)
    card = measure("always-consistent", always_consistent)
    part = card.parts["calibration/prompt_to_line"]
    assert (part.n, part.contradictions) == (320, 160)
    assert part.statistics["auc"].value == 0.5 and part.statistics["kappa"].value == 0.0
    assert part.statistics["sensitivity"].value == 0.0 and part.statistics["specificity"].value == 1.0
    assert (card.attacks, card.attack_success) == (80, 1.0)
    assert card.self_agreement is not None and card.self_agreement.agreement == 1.0
    assert not any(name.startswith(("dnli", "decode")) for name in card.parts)
    assert card.seconds_per_verdict is None


def test_a_card_is_measured_through_a_server_that_fails_at_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the personas, seen through a judge that is unreadable for one line and out of order now and then."""
    monkeypatch.delenv("PERSONA_REFERENCE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "persona_tasks.judge_card.load_items", lambda **_: of("prompt_to_line", 6) + of("line_to_line", 6)
    )
    monkeypatch.setattr("persona_tasks.judge_card.load_injections", lambda: load_injections()[:3])

    def judge(request: Request) -> str | Reply:
        return SERVER_ERROR if request.nth == 0 and request.number % 7 == 0 else verdict(request)

    with ChatServer(judge) as server:
        passed = judged_by(model_at(server, "judge"))
        card = measure("judge", passed, "how it was made")
    part = card.parts["calibration/prompt_to_line"]
    assert part.n == 6 and part.unparsed == 0.0
    assert card.command == "how it was made"
    assert card.other_wording is not None and card.other_wording.n == 12
    assert card.self_agreement is not None and card.self_agreement.agreement == 1.0
    assert card.seconds_per_verdict is not None and card.tokens_per_verdict is not None
    assert Card.model_validate_json(card.model_dump_json()) == card
    draw(card, tmp_path / "card.svg")
    drawn = (tmp_path / "card.svg").read_text()
    assert all(text in drawn for text in ("AUC", "Cohen's κ", "chance", "calibration/prompt to line", card.judge))


def test_a_card_is_a_table_of_the_documentation_and_of_a_judges_model_card() -> None:
    card = known_card("always-consistent")
    assert card is not None
    rows = {line.split(" | ")[0]: line for line in card_markdown(card).splitlines() if line.startswith("| ")}
    part = card.parts["on_policy/prompt_to_line"]
    assert (
        f"| {part.n} | {part.contradictions} | 0.0 % | {part.statistics['accuracy'].value:.2f} ["
        in (rows["| on policy/prompt to line"])
    )
    assert "| on policy/prompt to line/therapy" in rows and all(row.count("|") == 9 for row in rows.values())


def test_every_run_says_what_its_judge_is_worth() -> None:
    assert "of no use for scores" in worth("persona/smollm2-135m")  # its card says why
    assert "kappa with labels" in worth(DEFAULT_JUDGE)
    assert "its error is not known" in worth("openai/anything")


def test_where_cards_are_kept(tmp_path: Path) -> None:
    assert card_file("persona/judge-135m", tmp_path) == tmp_path / "persona--judge-135m.json"


def test_a_run_without_readable_verdicts_is_a_card_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSONA_REFERENCE_DATA", raising=False)

    def mute(items: Any, wording: str, order: str, repeats: int) -> Run:
        return Run([Row.of(i, Verdict(metric=i.metric, turn=i.turn, outcome="unparsed")) for i in items] * repeats)

    card = measure("mute", mute)
    assert card.parts["calibration/prompt_to_line"].unparsed == 1.0
    assert card.parts["calibration/prompt_to_line"].statistics == {}
    assert card.attack_success == 0.0


def short(statistic: Statistic) -> str:
    """As the documentation writes it: `.77 [.69, .84]`."""
    assert statistic.value is not None and statistic.interval is not None
    low, high = statistic.interval
    return f"{statistic.value:.2f} [{low:.2f}, {high:.2f}]".replace("0.", ".")


def test_the_documentation_says_of_the_embedded_judges_what_their_cards_say() -> None:
    text = (Path(__file__).parents[1] / "docs" / "judges.md").read_text(encoding="utf-8")
    cards = [card for name in ("judge-135m", "judge-135m-audit") if (card := known_card(f"persona/{name}"))]
    rows = [line for line in text.splitlines() if line.startswith("| ") and "(`" in line]
    assert len(cards) == 2 and len(rows) == 8
    for row in rows:
        _, what, *cells, _ = (cell.strip() for cell in row.split("|"))
        part, statistic = re.findall(r"`([\w/-]+)`", what)
        assert cells == [short(card.parts[part].statistics[statistic]) for card in cards], row
    attacks = [f"{100 * (card.attack_success or 0):.0f} %" for card in cards]
    assert f"| {' | '.join(attacks)} |" in text
