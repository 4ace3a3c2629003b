"""The report's numbers, plots and files; how the page behaves in a browser is in test_report_page."""

import csv
import math
import random
import re

import numpy as np
import pandas as pd
import pytest
from lm_eval.loggers import EvaluationTracker
from typer.testing import CliRunner

from persona_tasks import judge_card
from persona_tasks.agreement import Statistic
from persona_tasks.cli import app
from persona_tasks.inspect_tasks.tasks import drift
from persona_tasks.judge_card import Card, Part
from persona_tasks.metrics import dialogue_score
from persona_tasks.report import frames, judges, plots
from persona_tasks.report.paired import paired_test
from persona_tasks.report.payload import LONGEST, plain
from persona_tasks.report.runs import Run, comparability_notes, read_runs
from persona_tasks.report.write import write_report
from persona_tasks.scoring import summarise
from persona_tasks.transcript import Judged, Transcript, TranscriptError, Turn, Verdict, append_jsonl
from tests.chat_server import ChatServer
from tests.dialogues import dialogues
from tests.inspect_runs import everybody, run
from tests.lm_eval_runs import ChatLM, judged_run


def said(outcomes, persona="p", model="m", name="d"):
    """A dialogue with these prompt_to_line outcomes: c, x or u for each turn."""
    codes = {"c": "consistent", "x": "contradicts", "u": "unparsed"}
    turns = [Turn(partner="hm", line=f"line {n}") for n, _ in enumerate(outcomes)]
    transcript = Transcript(id=name, persona_id=persona, persona_text="You.", turns=turns, model=model, scenario="chat")
    verdicts = [Verdict(metric="prompt_to_line", turn=n, outcome=codes[o]) for n, o in enumerate(outcomes, start=1)]
    return Judged(transcript=transcript, verdicts=verdicts, judge="hand")


# ---------------------------------------------------------------------------------------------------------- reading


def test_files_are_sorted_by_model_and_a_name_can_be_given(tmp_path):
    append_jsonl(tmp_path / "both.jsonl", [said("cx", model="one"), said("cc", model="two")])
    append_jsonl(tmp_path / "more.jsonl", [said("cu", model="one", name="e")])
    found = read_runs([tmp_path])
    assert [(r.name, len(r.records)) for r in found.runs] == [("one", 2), ("two", 1)]
    named = read_runs([f"short={tmp_path / 'both.jsonl'}", f"long={tmp_path / 'more.jsonl'}"])
    assert [(r.name, len(r.records)) for r in named.runs] == [("short", 2), ("long", 1)]


def test_two_judges_are_two_runs_and_the_report_says_so(tmp_path):
    second = said("xx").model_copy(update={"judge": "openai:j@http://me:secret@host/v1"})
    append_jsonl(tmp_path / "a.jsonl", [said("cc"), second])
    found = read_runs([tmp_path / "a.jsonl"])
    assert [r.name for r in found.runs] == ["m · hand", "m · openai:j@http://host/v1"]
    assert "different judges" in comparability_notes(found.runs, found.origins)[0]


def test_a_dialogue_in_two_files_counts_once(tmp_path):
    for name in "ab":
        append_jsonl(tmp_path / f"{name}.jsonl", [said("cx")])
    found = read_runs([tmp_path])
    assert len(found.runs[0].records) == 1 and "1 dialogues occur more than once" in found.notes[0]


def test_what_cannot_be_read_is_an_error_if_named_and_a_note_if_found(tmp_path):
    append_jsonl(tmp_path / "good.jsonl", [said("c")])
    (tmp_path / "bad.jsonl").write_text('{"transcript": 3}\n')
    with pytest.raises(TranscriptError, match=r"bad\.jsonl, line 1"):
        read_runs([tmp_path / "bad.jsonl"])
    assert "bad.jsonl, line 1" in read_runs([tmp_path]).notes[0]
    with pytest.raises(TranscriptError, match="no such file"):
        read_runs([tmp_path / "none.eval"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(TranscriptError, match="no dialogues in"):
        read_runs([tmp_path / "empty"])


def test_an_inspect_log_says_how_it_was_made(tmp_path):
    with ChatServer(everybody) as server:
        run(drift(scenario="therapy", turns=2, probes="2"), server, tmp_path, limit=2)
    found = read_runs([tmp_path])
    [origin] = found.origins
    assert origin.facts["command"].startswith("inspect eval persona_tasks/drift --model openai-api/local/simulator")
    assert "-T turns=2" in origin.facts["command"] and "--limit 2" in origin.facts["command"]
    assert "--model-role judge=openai-api/local/judge" in origin.facts["command"]
    assert "inspect_ai" in origin.facts["versions"] and origin.facts["seeds"] == "0"
    assert origin.settings["task version"] and origin.settings["turns"] == "2"
    assert found.runs[0].name == "openai-api/local/simulator" and len(found.runs[0].records) == 2
    page = write_report([tmp_path], tmp_path / "r.html")[0].read_text()
    assert "api_key" not in page and "inspect eval persona_tasks/drift" in page


def test_lm_eval_samples_are_read_with_the_results_beside_them(tmp_path):
    results = judged_run(ChatLM(), settings={"turns": 2, "probes": "none"})
    saved = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.save_results_aggregated(results=results, samples=saved)
    tracker.save_results_samples(task_name="persona_drift_chat", samples=saved["persona_drift_chat"])
    found = read_runs([tmp_path])
    [origin] = found.origins
    assert origin.facts["format"] == "lm-eval" and "persona_drift_chat" in origin.facts["command"]
    assert origin.settings["turns"] == "2"
    assert len(found.runs[0].records) == 2 and found.runs[0].records[0].verdicts


# ---------------------------------------------------------------------------------------------------------- numbers


def test_frames_hold_the_scores_of_scoring():
    runs = [Run("base", "j", dialogues("base", 0.6)), Run("tuned", "j", dialogues("tuned", 0.1))]
    summaries = {r.name: summarise(r.records, resamples=50) for r in runs}
    scores = frames.score_frame(summaries).set_index(["model", "scenario", "metric"])
    assert set(scores.index.get_level_values("scenario")) == {"all", "chat", "education", "service", "therapy"}
    expected = summaries["base"].scenarios["therapy"].metrics["qa"]
    assert scores.loc[("base", "therapy", "qa"), "score"] == expected.score
    curve = frames.drift_frame(summaries)
    chosen = curve[(curve.model == "tuned") & (curve.scenario == "all") & (curve.metric == "line_to_line")]
    assert [p.value for p in summaries["tuned"].overall.metrics["line_to_line"].curve[1:]] == list(chosen.value)[1:]
    survival = frames.survival_frame(summaries)
    starts = survival[survival.turn == 0]
    assert len(starts) == 30 and (starts.value == 1).all()


def test_verdict_and_dialogue_frames_by_hand():
    runs = [Run("m", "hand", [said("cxu", name="same"), said("ccc", name="same")])]
    verdicts = frames.verdict_frame(runs)
    assert list(verdicts.outcome[:3]) == ["consistent", "contradicts", "unparsed"]
    table = frames.dialogue_frame(runs)
    assert list(table.prompt_to_line) == [0.5, 1.0]
    assert table.first_prompt_to_line[0] == 2 and pd.isna(table.first_prompt_to_line[1])
    matrix = frames.outcome_matrix(verdicts, "prompt_to_line")
    assert matrix.to_numpy().tolist() == [[1, 1, 1], [1, 0, -1]]  # equal ids stay two rows, the steadier one first


def test_the_paired_test_by_hand():
    """Three personas get better by 1/2, so 2 of the 8 swaps are as extreme: p = 1/4."""
    before = [said("cx", persona=p) for p in "abcd"]
    after = [said("cc", persona=p) for p in "abcx"]
    found = paired_test(before, after, "prompt_to_line")
    assert found is not None and found.difference.absolute == 0.5
    assert (found.difference.clusters, found.difference.unpaired) == (3, 2)
    assert found.p == pytest.approx(2 / 8)
    assert paired_test(before[:1], after[:1], "prompt_to_line").p is None
    assert paired_test(before[3:], after[:1], "prompt_to_line") is None


def test_where_nothing_differs_the_paired_test_seldom_says_so():
    """At most five times in a hundred; ties make it rarer."""
    rng = np.random.default_rng(0)

    def group():
        return [said("".join(rng.choice(["c", "x"], 6)), persona=str(p)) for p in range(8)]

    ps = [paired_test(group(), group(), "prompt_to_line").p for _ in range(400)]
    assert 0 < np.mean([p <= 0.05 for p in ps]) <= 0.06


def test_the_judges_kappa_and_the_corrected_score_stand_beside_the_score(tmp_path, monkeypatch):
    measured = {
        name: Statistic(value=value) for name, value in (("kappa", 0.62), ("sensitivity", 0.8), ("specificity", 1))
    }
    part = Part(n=40, contradictions=20, unparsed=0.0, statistics=measured)
    texts = dict.fromkeys(("version", "commit", "date", "prompts", "command"), "-")
    card = Card(judge="hand", parts={"on_policy/prompt_to_line": part}, scenarios={}, drifts={}, **texts)
    assert judges.judge_kappa("hand", "prompt_to_line") is None  # no card of that name comes with the package
    for module in (judges, judge_card):
        monkeypatch.setattr(module, "known_card", {"hand": card}.get)
    assert judges.judge_kappa("hand", "prompt_to_line") == 0.62 and judges.judge_kappa("hand", "qa") is None
    append_jsonl(tmp_path / "a.jsonl", [said("cccx", persona=persona) for persona in "ab"])
    page = write_report([tmp_path / "a.jsonl"], tmp_path / "r.html")[0].read_text()
    assert "κ 0.62" in page
    assert "corrected 0.688" in page  # a judge that finds 8 of 10 contradictions: 1 - 0.25 / 0.8


# ------------------------------------------------------------------------------------------------- plots and files


def test_training_curves_have_a_panel_for_each_measure_and_a_line_for_each_run():
    steps = range(1, 11)
    frame = pd.DataFrame(
        [(m, measure, s, math.log(s)) for m in ("ppo", "grpo") for measure in ("reward", "kl") for s in steps],
        columns=["model", "measure", "step", "value"],
    )
    figure = plots.training_curves(frame)
    assert [axes.get_title("left") or axes.get_title() for axes in figure.axes] == ["reward", "kl"]
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["ppo", "grpo"]
        assert list(axes.lines[0].get_ydata()) == [math.log(s) for s in steps]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ppo", "grpo"]


def test_every_series_differs_in_more_than_colour():
    frame = pd.DataFrame(
        [(f"m{n}", "all", "qa", t, 0.5, 0.4, 0.6, 3, None) for n in range(6) for t in (1, 2)],
        columns=[*frames.POINTS, "half_life"],
    )
    lines = [line for line in plots.drift_curves(frame).axes[0].lines if line.get_label().startswith("m")]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 6
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in lines}) == 6


def test_png_pdf_and_csv(tmp_path):
    records = dialogues("base", 0.6, scenario="therapy")
    append_jsonl(tmp_path / "a.jsonl", records)
    arguments = ["report", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "r.html")]
    result = CliRunner().invoke(app, [*arguments, "--png", str(tmp_path / "p"), "--csv", str(tmp_path / "c")])
    assert result.exit_code == 0, result.output
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (tmp_path / "p").glob("*.png"))
    assert all(file.read_bytes().startswith(b"%PDF") for file in (tmp_path / "p").glob("*.pdf"))
    assert len(list((tmp_path / "p").iterdir())) == 10
    with (tmp_path / "c" / "dialogues.csv").open() as file:
        written = list(csv.DictReader(file))
    scores = [dialogue_score(record.of("qa")) for record in records]
    assert [float(row["qa"]) for row in written] == pytest.approx(scores)


def test_a_hundred_dialogues_stay_under_two_megabytes(tmp_path):
    """With lines, reasons and answers that are all different, as real ones are."""
    rng = random.Random(0)
    vocabulary = sorted({w for r in dialogues("m", 0.5) for line in r.transcript.lines for w in line.split()})
    records = dialogues("m", 0.5, turns=16, repeats=3)[:100]
    for record in records:
        for turn in record.transcript.turns:
            turn.partner, turn.line = (" ".join(rng.choices(vocabulary, k=n)) for n in (14, 35))
        for verdict in record.verdicts:
            verdict.reason = " ".join(rng.choices(vocabulary, k=18))
        for probe in record.transcript.probes:
            probe.answer = " ".join(rng.choices(vocabulary, k=12))
    append_jsonl(tmp_path / "a.jsonl", records)
    assert write_report([tmp_path / "a.jsonl"], tmp_path / "r.html")[0].stat().st_size < 2_000_000


def test_the_page_names_nothing_outside_itself(tmp_path):
    append_jsonl(tmp_path / "a.jsonl", [said("cx")])
    page = write_report([tmp_path / "a.jsonl"], tmp_path / "r.html")[0].read_text()
    addresses = set(re.findall(r"https?://[^\"'\s)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_dialogues_without_verdicts_still_make_a_report(tmp_path):
    bare = [said("cc").model_copy(update={"verdicts": [], "judge": ""})]
    append_jsonl(tmp_path / "a.jsonl", bare)
    written = write_report([tmp_path / "a.jsonl"], tmp_path / "r.html", png=tmp_path / "p", csv=tmp_path / "c")
    assert "No verdicts are stored" in written[0].read_text()


def test_texts_are_cut_and_invisible_characters_shown():
    assert plain("\x1b[2J\x00\t\n") == "␛[2J␀\t\n"
    assert plain("a\u2066b") == "a⟨U+2066⟩b"
    assert plain("x" * (LONGEST + 5)) == "x" * LONGEST + "… (5 more characters in the file)"


def test_a_user_error_is_one_line(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path / "none.eval")])
    assert result.exit_code == 2 and result.output.startswith("persona-tasks: ") and result.output.count("\n") == 1
