"""The whole path without a network: `persona_tasks/drift` on `persona/...` models."""

from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog

from persona_tasks.embedded.answers import engine_answers
from persona_tasks.embedded.engine import Engine
from persona_tasks.inspect_tasks.tasks import drift
from persona_tasks.personas import load_bank
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.play import play
from persona_tasks.transcript import METRICS, Transcript, Verdict
from tests.tiny import tiny_model_folder, tiny_tokenizer


def run(model: str, log_dir: Path, **options: Any) -> EvalLog:
    roles = {"judge": options.pop("judge", model)}
    task = drift(**options.pop("task", {}))
    [log] = inspect_eval(task, model=model, model_roles=roles, display="none", log_dir=str(log_dir), **options)
    assert log.status == "success", log.error
    return log


def transcript_of(sample: Any) -> Transcript:
    return Transcript.model_validate(sample.store["DriftRecord:transcript"])


@pytest.mark.embedded
def test_lockstep_and_inspect_are_the_same_on_the_embedded_model(tmp_path):
    """Greedy, in batches of different make-up: every line, probe and verdict is the same."""
    log = run("persona/smollm2-135m", tmp_path, limit=3, temperature=0.0, task={"turns": 2, "probes": [2]})
    bank = load_bank()
    personas, answer = bank.select()[:3], engine_answers(Engine.shared("smollm2-135m"))
    dialogues = []
    for persona in personas:
        setting = bank.scenarios[persona.scenario]
        partner = make_partner(persona, setting, bank.scripts[setting.id], 2, 0, "scripted")
        dialogues.append(play(persona, setting, partner, 2, [2]))
    transcripts = lockstep(dialogues, answer)
    judged = lockstep([judge(transcript) for transcript in transcripts], answer)
    for sample, transcript, verdicts in zip(log.samples, transcripts, judged, strict=True):
        seen = transcript_of(sample)
        assert seen.turns == transcript.turns and seen.probes == transcript.probes
        theirs = [Verdict.model_validate(v) for metric in METRICS for v in sample.scores[metric].metadata["verdicts"]]
        assert theirs == verdicts


@pytest.mark.parametrize("template", ["no_system", "ignores_system"])
def test_a_template_without_a_system_role_still_hears_the_persona(tmp_path, template):
    """Both of the simulator's prompts are longer than the persona alone. The judge, another model, is counted apart."""
    folder = tiny_model_folder(tmp_path, template, max_position_embeddings=8192)
    judge_model = f"persona/{tiny_model_folder(tmp_path, seed=1, max_position_embeddings=8192)}"
    options = {"judge": judge_model, "limit": 1, "max_tokens": 8, "task": {"turns": 2, "probes": "none"}}
    log = run(f"persona/{folder}", tmp_path / "logs", **options)
    usage = log.stats.model_usage[f"persona/{folder}"]
    assert len(transcript_of(log.samples[0]).turns) == 2
    persona_tokens = len(tiny_tokenizer(None)(transcript_of(log.samples[0]).persona_text)["input_ids"])
    assert usage.input_tokens + (usage.input_tokens_cache_read or 0) > 2 * persona_tokens


def test_a_context_that_overflows_ends_the_dialogue_and_keeps_the_persona(tmp_path):
    folder = tiny_model_folder(tmp_path, max_position_embeddings=1500)
    judge_folder = tiny_model_folder(tmp_path, seed=1, max_position_embeddings=8192)
    log = run(
        f"persona/{folder}",
        tmp_path / "logs",
        judge=f"persona/{judge_folder}",
        limit=1,
        max_tokens=64,
        task={"turns": 30, "probes": "none"},
    )
    [sample] = log.samples
    transcript = transcript_of(sample)
    assert 0 < len(transcript.turns) < 30
    assert transcript.ended == f"simulator, turn {len(transcript.turns) + 1}: the context window is full"
    assert len(sample.scores["prompt_to_line"].metadata["verdicts"]) == len(transcript.turns)
