"""The registry: what it refuses, what `check` finds, and how scores enter it."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from persona_tasks.cli import app
from persona_tasks.hub.check import problems
from persona_tasks.hub.entries import Score
from persona_tasks.hub.registry import RegistryError, dump, load, registry_file, root_of, save
from persona_tasks.inspect_tasks.tasks import drift
from persona_tasks.transcript import METRICS
from tests import inspect_runs, lm_eval_runs
from tests.chat_server import ChatServer
from tests.hub_world import ROOT, World
from tests.inspect_runs import everybody


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def found(world: World) -> list[str]:
    return list(problems(world.registry, world.root))


# ------------------------------------------------------------------------------------------------------- our registry


def test_ours_agrees_with_everything_it_speaks_of() -> None:
    file = registry_file()
    assert file == ROOT / "registry.yaml"
    assert list(problems(load(file), root_of(file))) == []


def test_it_is_in_the_wheel_and_read_from_there(tmp_path: Path) -> None:
    build = "import sys, hatchling.build as build; print(build.build_wheel(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / run.stdout.split()[-1]) as wheel:
        wheel.extractall(tmp_path / "site")
    code = "from persona_tasks.hub.registry import load, registry_file; load(); print(registry_file())"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == str(tmp_path / "site" / "persona_tasks" / "registry.yaml")


def test_reading_and_writing_changes_nothing(tmp_path: Path) -> None:
    ours = load(ROOT / "registry.yaml")
    save(ours, tmp_path / "registry.yaml")
    assert (tmp_path / "registry.yaml").read_text() == (ROOT / "registry.yaml").read_text()


# ---------------------------------------------------------------------------------------------------- what is refused


def score_entry(world: World, **changes: Any) -> dict[str, Any]:
    value = {"metric": "qa", "scenario": "all", "value": 0.5, "interval": [0.4, 0.6], "n": 40, "personas": 40}
    entry = {
        "model": "tiny-sim",
        "checkpoint": "tiny-sim",
        "weights_sha256": world.registry.checkpoint("tiny-sim").weights,
        "task": "drift",
        "task_version": "1-A",
        "split": "test",
        "seeds": [0],
        "judge": "openai-api/local/judge",
        "harness": "inspect-ai 0.3.285",
        "command": "inspect eval persona_tasks/drift --model persona/tiny-sim",
        "date": "2026-11-22",
        "logs": [{"name": "a.eval", "sha256": "0" * 64}],
        "values": [value],
    }
    return {**entry, **changes}


BAD_ENTRIES = [
    (lambda d: d.update(extra=1), "Extra"),
    (lambda d: d["checkpoints"][1].update(weigths=1), "Extra"),
    (lambda d: d["checkpoints"].append(copy.deepcopy(d["checkpoints"][1])), "occurs twice"),
    (lambda d: d["checkpoints"][1].update(base="nobody"), "no base model"),
    (lambda d: d["checkpoints"][1].pop("recipe"), "needs recipe"),
    (lambda d: d["checkpoints"][1]["files"].append({"path": "../x.json", "size": 1, "sha256": "0" * 64}), "pattern"),
    (lambda d: d["checkpoints"][1]["files"].append({"path": "/etc/x.json", "size": 1, "sha256": "0" * 64}), "pattern"),
    (lambda d: d["checkpoints"][1]["files"].append({"path": "a.bin", "size": 1, "sha256": "0" * 64}), "safetensors"),
    (lambda d: d["checkpoints"][1].update(status="published"), "go together"),
    (lambda d: d["checkpoints"][0].update(revision="main"), "pattern"),
    (lambda d: d["checkpoints"][1]["recipe"].update(command="HF_TOKEN=hf_abcdefghijklmnopqrst x"), "secret"),
    (lambda d: d["checkpoints"][1]["recipe"].update(command="train /home/bob/recipe.yaml"), "one machine"),
    (lambda d: d["tasks"][0].update(metrics=["charm"]), "unknown metrics"),
    (
        lambda d: d["judges"].append({"id": "x", "name": "x", "title": "x", "usable": True, "checkpoint": "y"}),
        "unknown",
    ),
]


@pytest.mark.parametrize(("edit", "why"), BAD_ENTRIES)
def test_a_bad_entry_is_refused_with_its_reason(world: World, edit: Any, why: str) -> None:
    data = yaml.safe_load(world.file.read_text())
    edit(data)
    world.file.write_text(yaml.safe_dump(data))
    with pytest.raises(RegistryError, match=why) as error:
        load(world.file)
    assert str(world.file) in str(error.value)


BAD_SCORES = [
    (lambda s: s.update(checkpoint="gone"), "is gone"),
    (lambda s: s.update(weights_sha256="b" * 64), "other weights"),
    (lambda s: s.update(task="gone"), "no such task"),
    (lambda s: s.update(task_version="2-A"), "not comparable"),
    (lambda s: s["values"][0].update(value=1.5), "outside"),
    (lambda s: s["values"][0].update(value=float("nan")), "finite"),
    (lambda s: s["values"][0].update(interval=[0.6, 0.7]), "own interval"),
    (lambda s: s["values"][0].update(metric="charm"), "no such metric"),
    (lambda s: s["values"][0].update(scenario="moon"), "no such scenario"),
    (lambda s: s.update(command="lm_eval --model_args pretrained=~/models/x"), "one machine"),
    (lambda s: s.update(command="inspect eval x -M api_key=abcdefgh12345"), "secret"),
    (lambda s: s["logs"][0].update(url="javascript:alert(1)"), "pattern"),
]


@pytest.mark.parametrize(("edit", "why"), BAD_SCORES)
def test_a_bad_score_is_refused_with_its_reason(world: World, edit: Any, why: str) -> None:
    data = yaml.safe_load(world.file.read_text())
    data["scores"] = [score_entry(world)]
    world.file.write_text(yaml.safe_dump(data))
    assert load(world.file).scores
    edit(data["scores"][0])
    world.file.write_text(yaml.safe_dump(data))
    with pytest.raises(RegistryError, match=why):
        load(world.file)


def test_the_same_measurement_cannot_be_listed_twice(world: World) -> None:
    data = yaml.safe_load(world.file.read_text())
    data["scores"] = [score_entry(world), score_entry(world)]
    world.file.write_text(yaml.safe_dump(data))
    with pytest.raises(RegistryError, match="occurs twice"):
        load(world.file)


def test_files_that_are_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text("a: [")
    with pytest.raises(RegistryError, match="not readable as YAML"):
        load(file)
    file.write_text("!!python/object/apply:os.system [exit]")
    with pytest.raises(RegistryError, match="not readable as YAML"):
        load(file)
    monkeypatch.setenv("PERSONA_TASKS_REGISTRY", str(tmp_path / "none.yaml"))
    result = call("registry", "check")
    assert result.exit_code == 2 and result.output.startswith("persona-tasks: no registry at")


# -------------------------------------------------------------------------------------------------------------- check


def test_nothing_to_say_about_a_world_in_order(world: World) -> None:
    assert found(world) == []
    assert "nothing disagrees" in call("registry", "check").output


def test_changed_missing_and_unlisted_files_are_found(world: World) -> None:
    config = world.adapter / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    assert any("adapter_config.json has changed" in problem for problem in found(world))
    extra = world.adapter / "optimizer.json"
    extra.write_text("{}")
    recipe = world.root / "training" / "recipes" / "tiny.yaml"
    recipe.write_text("steps: 2\n")
    scenario = world.root / "persona_tasks" / "bank" / "scenarios" / "chat.yaml"
    scenario.write_text(scenario.read_text() + "\n")
    said = "\n".join(found(world))
    assert "optimizer.json is not among its files" in said
    assert "not the recipe it was trained with" in said
    assert "scenario chat" in said and "raise the task versions" in said
    result = call("registry", "check")
    assert result.exit_code == 1
    assert call("registry", "update").exit_code == 0
    assert not any("scenario chat" in problem for problem in found(world))
    (world.adapter / "adapter_model.safetensors").unlink()
    assert any("adapter_model.safetensors is missing" in problem for problem in found(world))


def test_an_adapter_of_another_base_is_found(world: World) -> None:
    config = world.adapter / "adapter_config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "base_model_name_or_path": "someone/else"}))
    world.list_files()
    assert any("'someone/else'" in problem for problem in found(world))


def test_other_task_versions_are_found(world: World) -> None:
    data = yaml.safe_load(world.file.read_text())
    data["tasks"][0] |= {"version": "2-A", "lm_eval_version": 2.0}
    world.file.write_text(yaml.safe_dump(data))
    said = "\n".join(found(world))
    assert "persona_tasks.inspect_tasks.tasks has 1-A" in said and "eval.yaml has 1-A" in said
    assert "persona_drift_chat's YAML has 1.0" in said


def test_scores_made_with_other_prompts_are_found(world: World) -> None:
    data = yaml.safe_load(world.file.read_text())
    data["scores"] = [score_entry(world, prompts="0" * 12)]
    world.file.write_text(yaml.safe_dump(data))
    assert any("raise the task's version" in problem for problem in found(world))


# ------------------------------------------------------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def inspect_log(world_template: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the adapter's merged model on the chat scenario, with a judge behind a server."""
    folder = tmp_path_factory.mktemp("logs")
    with ChatServer(everybody) as server:
        model = f"persona/{local_adapter(world_template, folder)}"
        inspect_runs.run(drift(scenario="chat", turns=2, probes="2"), server, folder, model=model, max_tokens=8)
    [log] = folder.glob("*.eval")
    return log


def local_adapter(world: World, folder: Path) -> Path:
    """The adapter as it lies after training: its configuration names the base by its folder."""
    copied = folder / "trained"
    shutil.copytree(world.adapter, copied)
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(world.base)}))
    return copied


def test_a_score_enters_from_an_inspect_log(world: World, inspect_log: Path) -> None:
    result = call("registry", "add-score", str(inspect_log))
    assert result.exit_code == 0, result.output
    [score] = world.registry.scores
    assert (score.checkpoint, score.task, score.judge) == ("tiny-sim", "drift", "openai-api/local/judge")
    assert score.weights_sha256 == world.registry.checkpoint("tiny-sim").weights
    assert "org/tiny-sim" in score.command and "/tmp" not in score.command
    from persona_tasks.scoring import score_file

    summary = score_file(inspect_log).overall
    for metric in METRICS:
        value = score.value(metric, "chat")
        assert value is not None and score.value(metric) is None  # one scenario is not all
        assert value.value == pytest.approx(summary.metrics[metric].score, abs=1e-4)
        assert value.n == 10 and value.personas == 10
    assert len(score.value("prompt_to_line", "chat").curve) == 2  # type: ignore[union-attr]
    assert call("registry", "add-score", str(inspect_log)).exit_code == 0
    assert len(world.registry.scores) == 1
    stale = call("registry", "check")
    assert stale.exit_code == 1 and "registry update" in stale.output
    assert call("registry", "update").exit_code == 0
    card = (world.root / "model_cards" / "tiny-sim" / "README.md").read_text()
    assert f"| chat | Prompt to line | – | {value_of(score, 'prompt_to_line'):.3f} [" in card
    assert (world.root / "model_cards" / "tiny-sim" / "drift_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing disagrees" in call("registry", "check").output


def value_of(score: Score, metric: str) -> float:
    value = score.value(metric, "chat")
    assert value is not None
    return value.value


def test_a_score_enters_from_lm_evals_results(world: World, tmp_path: Path) -> None:
    from lm_eval.loggers import EvaluationTracker

    model = {"pretrained": str(world.base), "dtype": "float32"}
    run = lm_eval_runs.judged_run(
        "hf", settings={"turns": 2, "probes": "2"}, model_args=model, limit=None, gen_kwargs="max_gen_toks=8"
    )
    per_task = run.pop("samples")
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.log_experiment_args("hf", model, "", "", False)
    tracker.save_results_aggregated(results=run, samples=per_task)
    for task, listed in per_task.items():
        tracker.save_results_samples(task_name=task, samples=listed)
    [results] = tmp_path.rglob("results_*.json")
    refused = call("registry", "add-score", str(results))
    assert refused.exit_code == 2 and "no checkpoint of the registry" in refused.output
    data = json.loads(results.read_text())
    data["config"]["model_args"] = {"pretrained": "org/tiny-base", "peft": "org/tiny-sim"}
    results.write_text(json.dumps(data))
    added = call("registry", "add-score", str(results))
    assert added.exit_code == 0, added.output
    [score] = world.registry.scores
    assert score.checkpoint == "tiny-sim" and score.harness.startswith("lm-eval ")
    value = score.value("prompt_to_line", "chat")
    assert value is not None
    printed = lm_eval_runs.scores(run)["prompt_to_line"]
    assert value.value == pytest.approx(printed, abs=1e-4)
    [samples] = tmp_path.rglob("samples_*.jsonl")
    samples.unlink()
    assert "--log_samples" in call("registry", "add-score", str(results)).output


def damaged(log: Path, folder: Path, edit: Any) -> Path:
    """A copy of a log with something else in it."""
    from inspect_ai.log import read_eval_log, write_eval_log

    data = read_eval_log(str(log))
    edit(data)
    file = folder / "damaged.eval"
    write_eval_log(data, str(file))
    return file


def _forget_one(log: Any) -> None:
    log.samples.pop()


def _another_version(log: Any) -> None:
    log.eval.task_version = "2-A"


def _unfinished(log: Any) -> None:
    log.status = "error"


def _another_person(log: Any) -> None:
    log.samples[0].store["DriftRecord:transcript"]["persona_text"] = "You are easy to play."


def _shorter(log: Any) -> None:
    transcript = log.samples[0].store["DriftRecord:transcript"]
    transcript["turns"].pop()
    transcript["probes"].clear()
    for score in log.samples[0].scores.values():
        score.metadata = {**(score.metadata or {}), "verdicts": []}


def _another_judge(log: Any) -> None:
    for sample in log.samples:
        for score in sample.scores.values():
            if score.metadata and "judge" in score.metadata:
                score.metadata["judge"] = "mockllm/model"


def _another_model(log: Any) -> None:
    log.eval.model = "openai/gpt-7"


def _unreadable_verdicts(log: Any) -> None:
    for sample in log.samples:
        for score in sample.scores.values():
            for verdict in (score.metadata or {}).get("verdicts", []):
                verdict["outcome"] = "unparsed"


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (_forget_one, "personas are missing"),
        (_another_version, "not comparable"),
        (_unfinished, "did not finish"),
        (_another_person, "not the persona of this id"),
        (_shorter, "turns, not all"),
        (_another_judge, "not in the registry"),
        (_another_model, "no checkpoint of the registry"),
        (_unreadable_verdicts, "withheld"),
    ],
)
def test_a_run_that_gives_no_score(world: World, inspect_log: Path, tmp_path: Path, edit: Any, why: str) -> None:
    result = call("registry", "add-score", str(damaged(inspect_log, tmp_path, edit)))
    assert result.exit_code == 2 and why in result.output, result.output
    assert "damaged.eval" in result.output and not world.registry.scores


def test_a_file_that_is_no_log(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.eval").write_bytes(b"PK\x03\x04 nothing")
    assert "not readable as an Inspect log" in call("registry", "add-score", str(tmp_path / "a.eval")).output
    (tmp_path / "results_1.json").write_text("{}")
    assert "no results file of lm-eval" in call("registry", "add-score", str(tmp_path / "results_1.json")).output
    assert "no such file" in call("registry", "add-score", str(tmp_path / "none.eval")).output


def test_dump_leaves_out_defaults(world: World) -> None:
    text = dump(world.registry)
    assert "null" not in text.replace("range: [0.0, null]", "") and "scores" not in text
