"""The same model and partner in lm-eval and in Inspect: the same words, the same verdicts, the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import get_model

from persona_tasks.inspect_tasks.record import DriftRecord
from persona_tasks.inspect_tasks.tasks import drift
from persona_tasks.monitors import MONITORS
from persona_tasks.personas import load_bank
from persona_tasks.protocol.prompts import simulator_prompt
from persona_tasks.transcript import Transcript
from tests.chat_server import ChatServer
from tests.inspect_runs import everybody, model_at
from tests.inspect_runs import scores as inspect_scores
from tests.lm_eval_runs import evaluate, judged, scores, transcripts
from tests.tiny import tiny_model_folder, tiny_tokenizer

SCENARIOS = ("chat", "education", "service", "therapy")


def in_inspect(task: Any, model: Any, server: ChatServer, folder: Path, **options: Any) -> EvalLog:
    roles = {"judge": model_at(server, "judge"), "partner": model_at(server, "partner")}
    [log] = inspect_eval(task, model=model, model_roles=roles, log_dir=str(folder / "logs"), display="none", **options)
    assert log.status == "success", log.error
    return log


def inspect_transcripts(log: EvalLog) -> dict[str, Transcript]:
    found = {}
    for sample in log.samples or []:
        transcript = sample.store_as(DriftRecord).transcript
        assert transcript is not None
        found[transcript.id] = transcript
    return found


def assert_same(transcript: Transcript, other: Transcript) -> None:
    """Equal in all that was said; only what names the harness may differ."""
    assert transcript.model_copy(update={"model": "", "metadata": {}}) == other.model_copy(
        update={"model": "", "metadata": {}}
    )
    assert (transcript.metadata["epoch"], transcript.metadata["split"]) == (
        other.metadata["epoch"],
        other.metadata["split"],
    )


@pytest.mark.parametrize(("partner", "probes"), [("scripted", [2]), ("model", "none")])
def test_lm_eval_and_inspect_agree_on_a_tiny_model(tmp_path: Path, partner: str, probes: Any) -> None:
    folder = tiny_model_folder(tmp_path, max_position_embeddings=4096)
    settings = {"turns": 3, "probes": probes, "seed": 5, "context": True}
    with ChatServer(everybody) as server:
        ours = evaluate(
            "hf",
            "persona_drift",
            settings
            | {
                "judge": f"openai:judge@{server.url}",
                "partner": f"openai:partner@{server.url}" if partner == "model" else "scripted",
            },
            limit=1,
            model_args={"pretrained": str(folder), "dtype": "float32"},
            gen_kwargs={"max_gen_toks": 16},
            batch_size=3,
        )
        model = get_model(f"persona/{folder}", dtype="float32", device="cpu", memoize=False)
        log = in_inspect(drift(partner=partner, **settings), model, server, tmp_path, limit=4, max_tokens=16)

    theirs = inspect_transcripts(log)
    held = [transcript for name in SCENARIOS for transcript in transcripts(ours, f"persona_drift_{name}")]
    assert sorted(theirs) == sorted(transcript.id for transcript in held)
    assert len({line for transcript in held for line in transcript.lines}) > 6
    for transcript in held:
        assert_same(transcript, theirs[transcript.id])

    group, found = scores(ours, "persona_drift"), inspect_scores(log)
    compared = [
        "prompt_to_line",
        "line_to_line",
        *MONITORS,
        *(["qa", "qa_without_persona"] if partner == "scripted" else []),
    ]
    for metric in compared:
        assert group[metric] == pytest.approx(found[metric], abs=1e-9), metric

    verdicts = {
        sample.id: {name: score.metadata["verdicts"] for name, score in sample.scores.items() if name != "monitors"}
        for sample in log.samples or []
    }
    for name in SCENARIOS:
        for record in judged(ours, f"persona_drift_{name}"):
            for metric in ("prompt_to_line", "line_to_line"):
                expected = verdicts[record.transcript.persona_id][metric]
                assert [verdict.model_dump(exclude_defaults=True) for verdict in record.of(metric)] == expected


def test_both_end_a_dialogue_that_outgrows_the_context_at_the_same_line(tmp_path: Path) -> None:
    bank = load_bank()
    told = [simulator_prompt(persona, bank.scenarios["chat"]) for persona in bank.select("chat", "dev")[:3]]
    longest = max(len(tokens) for tokens in tiny_tokenizer(None)(told)["input_ids"])
    folder = tiny_model_folder(tmp_path, max_position_embeddings=longest + 150)
    settings = {"turns": 4, "probes": "none", "split": "dev"}
    with ChatServer(everybody) as server:
        judge = {"judge": f"openai:judge@{server.url}"}
        ours = evaluate(
            "hf",
            "persona_drift_chat",
            settings | judge,
            limit=3,
            model_args={"pretrained": str(folder), "dtype": "float32"},
            gen_kwargs={"max_gen_toks": 24},
        )
        model = get_model(f"persona/{folder}", dtype="float32", device="cpu", memoize=False)
        log = in_inspect(drift(scenario="chat", **settings), model, server, tmp_path, limit=3, max_tokens=24)
    theirs = inspect_transcripts(log)
    lengths = [len(transcript.turns) for transcript in transcripts(ours)]
    assert any(length < 4 for length in lengths)
    assert lengths == [len(theirs[transcript.id].turns) for transcript in transcripts(ours)]
    for transcript in transcripts(ours):
        assert transcript.turns == theirs[transcript.id].turns
        assert bool(transcript.ended) == bool(theirs[transcript.id].ended)


@pytest.mark.embedded
def test_lm_eval_and_inspect_agree_on_the_embedded_model(tmp_path: Path) -> None:
    """The documented comparison (docs/lm-eval.md), small: evaluated model and judge are the embedded one in both."""
    from persona_tasks.embedded.weights import embedded_folder

    settings = {"turns": 2, "probes": "none"}
    ours = evaluate(
        "hf",
        "persona_drift_therapy",
        settings,
        limit=2,
        model_args={"pretrained": str(embedded_folder()), "dtype": "float32"},
        gen_kwargs={"max_gen_toks": 40},
    )
    model = get_model("persona/smollm2-135m", dtype="float32", device="cpu", memoize=False)
    [log] = inspect_eval(
        drift(scenario="therapy", **settings),
        model=model,
        limit=2,
        max_tokens=40,
        temperature=0,
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error
    theirs = inspect_transcripts(log)
    for transcript in transcripts(ours, "persona_drift_therapy"):
        assert_same(transcript, theirs[transcript.id])
    found, expected = scores(ours, "persona_drift_therapy"), inspect_scores(log)
    compared = [metric for metric in ("prompt_to_line", "line_to_line", "qa", *MONITORS) if metric in found]
    assert [found[metric] for metric in compared] == pytest.approx([expected[metric] for metric in compared], abs=1e-9)
