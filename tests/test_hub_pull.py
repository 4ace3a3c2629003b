"""Getting checkpoints: from the Hub, the cache or the package, verified; and other tools on what was published."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

import persona_tasks
from persona_tasks.cli import app
from persona_tasks.hub.pull import PullError, pull
from tests.chat_server import ChatServer
from tests.conftest import hub_environment
from tests.hub_server import HubServer
from tests.hub_world import ADAPTER, BASE, World
from tests.inspect_runs import everybody

FILE = "adapter_model.safetensors"


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def published(hub: HubServer, world: World) -> HubServer:
    result = call("publish", "tiny-sim")
    assert result.exit_code == 0, result.output
    return hub


def forget_own_copy(world: World) -> None:
    (world.adapter / FILE).unlink()


def test_a_published_checkpoint_comes_from_the_hub_at_its_commit(published: HubServer, world: World) -> None:
    expected = (world.adapter / FILE).read_bytes()
    forget_own_copy(world)
    published.repo(ADAPTER).commit("refs/heads/main", {}, "emptied afterwards")
    result = call("pull", "tiny-sim")
    assert result.exit_code == 0, result.output
    assert "downloaded to" in result.output and "--model persona/tiny-sim" in result.output
    assert (pull("tiny-sim").folder / FILE).read_bytes() == expected


def test_offline_it_comes_from_the_cache_and_says_so(
    published: HubServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull("tiny-sim")
    forget_own_copy(world)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = call("pull", "tiny-sim")
    assert result.exit_code == 0 and "from the cache, " in result.output


def test_offline_without_a_cache_it_is_the_packages_copy(
    published: HubServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = call("pull", "tiny-sim")
    assert result.exit_code == 0 and "the copy in this package" in result.output
    assert pull("tiny-sim").folder == world.adapter
    forget_own_copy(world)
    result = call("pull", "tiny-sim")
    assert result.exit_code == 2 and "could not be downloaded" in result.output


def test_a_tampered_cache_is_refused(published: HubServer, world: World) -> None:
    file = pull("tiny-sim").folder / FILE
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.unlink()
    file.write_bytes(changed)
    with pytest.raises(PullError, match="sha256 differs"):
        pull("tiny-sim")


def test_a_tampered_copy_is_refused(world: World) -> None:
    file = world.adapter / FILE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = call("pull", "tiny-sim")
    assert result.exit_code == 2 and "sha256 differs" in result.output


def test_a_checkpoint_that_is_not_published_is_the_packages_copy(world: World) -> None:
    assert pull("tiny-sim").source == "embedded"
    assert "there are: tiny-base, tiny-sim" in call("pull", "nobody").output


def test_load_simulator_gives_the_merged_model(published: HubServer, world: World) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    forget_own_copy(world)
    model, tokenizer = persona_tasks.load_simulator("tiny-sim", dtype="float32", device="cpu")
    ids = torch.tensor([tokenizer("What do you do on Sundays?")["input_ids"]])
    adapter = str(pull("tiny-sim").folder)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.base), adapter)
    plain = AutoModelForCausalLM.from_pretrained(world.base)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, adapted(ids).logits, atol=1e-4)
        assert not torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-1)


# ------------------------------------------------------------------------------------- other tools, other processes

LOADS = """
import hashlib, json, sys
from huggingface_hub import ModelCard, snapshot_download
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
name = sys.argv[1]
folder = snapshot_download(name, revision="v1.0")
card = ModelCard.load(name)
model = AutoPeftModelForCausalLM.from_pretrained(name, revision="v1.0")
tokenizer = AutoTokenizer.from_pretrained(name, revision="v1.0")
merged = AutoModelForCausalLM.from_pretrained(name + "-merged")
ids = tokenizer("What do you do on Sundays?", return_tensors="pt")
same = (model(**ids).logits - merged(**ids).logits).abs().max().item()
digest = hashlib.sha256(open(folder + "/adapter_model.safetensors", "rb").read()).hexdigest()
print(json.dumps({"sha256": digest, "base": card.data.base_model, "difference": same}))
"""


def run(command: list[str], environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_everybodys_tools_load_it_by_its_name(published: HubServer, world: World, tmp_path: Path) -> None:
    """huggingface_hub, peft, transformers, lm-eval and Inspect, each in a process of its own with an empty cache."""
    assert call("publish", "tiny-sim", "--merged").exit_code == 0
    environment = hub_environment(published, world, tmp_path / "empty")
    shown = json.loads(run([sys.executable, "-c", LOADS, ADAPTER], environment, tmp_path).splitlines()[-1])
    assert shown["sha256"] == world.registry.checkpoint("tiny-sim").weights
    assert shown["base"] == BASE and shown["difference"] < 1e-4

    by_name = f"pretrained={BASE},peft={ADAPTER},dtype=float32"
    by_folder = f"pretrained={world.base},peft={world.adapter},dtype=float32"
    scores = [lm_eval_scores(model, environment, tmp_path / str(n)) for n, model in enumerate((by_name, by_folder))]
    assert scores[0] == scores[1] and "prompt_to_line,none" in scores[0]

    with ChatServer(everybody) as server:
        asked = {**environment, "LOCAL_API_KEY": "none", "LOCAL_BASE_URL": server.url}
        command = [sys.executable, "-c", "from inspect_ai._cli.main import main; main()", "eval", "persona_tasks/drift"]
        options = ["--limit", "1", "-T", "turns=1", "-T", "probes=none", "--max-tokens", "8", "--display", "none"]
        roles = ["--model-role", "judge=openai-api/local/judge", "--log-dir", str(tmp_path / "logs")]
        forget_own_copy(world)
        for model in (f"hf/{ADAPTER}", "persona/tiny-sim"):
            run([*command, "--model", model, *options, *roles], asked, tmp_path)
    from inspect_ai.log import read_eval_log

    logs = [read_eval_log(str(file)) for file in (tmp_path / "logs").glob("*.eval")]
    assert {log.eval.model for log in logs} == {f"hf/{ADAPTER}", "persona/tiny-sim"}
    assert all(log.status == "success" and log.samples and log.samples[0].scores for log in logs)


def lm_eval_scores(model: str, environment: dict[str, str], out: Path) -> dict[str, Any]:
    with ChatServer(everybody) as server:
        command = [sys.executable, "-c", "from persona_tasks.cli import app; app()", "lm-eval"]
        options = ["--tasks", "persona_drift_chat", "--model", "hf", "--model_args", model, "--limit", "2"]
        settings = ["--metadata", f"judge=openai:judge@{server.url}", "turns=2", "probes=2"]
        more = ["--gen_kwargs", "max_gen_toks=8", "--device", "cpu", "--output_path", str(out)]
        run([*command, *options, *settings, *more], environment, out.parent)
    [file] = out.rglob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())["results"]["persona_drift_chat"]
    return {name: value for name, value in found.items() if "," in name}
