"""Publishing to a local Hub with the unmodified client: what arrives, what happens twice, what breaks on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import CommitOperationAdd
from typer.testing import CliRunner

from persona_tasks.cli import app
from persona_tasks.embedded.weights import sha256
from persona_tasks.hub.cards import PAGE, card_file
from persona_tasks.hub.client import client
from tests.conftest import hub_environment
from tests.hub_server import OTHER, READ, WRITE, Fault, HubServer
from tests.hub_world import ADAPTER, World, adapter_folder

MAIN = "refs/heads/main"
TAG = "refs/tags/v1.0"
FILES = {
    ".gitattributes",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
}


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def publish(*options: str) -> str:
    result = call("publish", "tiny-sim", *options)
    assert result.exit_code == 0, result.output
    return str(result.output)


def fails(*options: str) -> str:
    result = call("publish", "tiny-sim", *options)
    assert result.exit_code == 2, result.output
    assert result.output.splitlines()[-1].startswith("persona-tasks: ")
    assert "Traceback" not in result.output
    return str(result.output)


def complete(hub: HubServer, world: World) -> None:
    """Everything is where it belongs, once."""
    repo = hub.repo(ADAPTER)
    assert set(repo.at("main").tree) == FILES
    assert repo.at("main").tree["adapter_model.safetensors"].sha256 == sha256(
        world.adapter / "adapter_model.safetensors"
    )
    assert len(repo.history()) == 2 and not repo.private
    assert repo.refs[TAG] == repo.refs[MAIN]
    [collection] = [collection for collection in hub.collections.values() if collection["owner"] == "org"]
    assert [item["id"] for item in collection["items"]] == [ADAPTER]
    published = world.registry.checkpoint("tiny-sim").published
    assert published is not None and published.revision == repo.refs[MAIN]


# -------------------------------------------------------------------------------------------------------- what arrives


def test_a_dry_run_only_reads(hub: HubServer, world: World) -> None:
    before = world.file.read_bytes()
    shown = publish("--dry-run")
    assert "adapter_model.safetensors" in shown and "new repository" in shown and "private → public" in shown
    assert {seen.method for seen in hub.log} <= {"GET", "HEAD"}
    assert ("model", ADAPTER) not in hub.repos and world.file.read_bytes() == before


def test_publishing_is_one_commit_and_twice_is_none(hub: HubServer, world: World, tmp_path: Path) -> None:
    publish()
    complete(hub, world)
    published = world.registry.checkpoint("tiny-sim").published
    assert published
    world.edit(published={**published.model_dump(mode="json"), "on": "2026-01-01"})  # the day it was, not the last look
    first, registry = len(hub.log), world.file.read_bytes()
    assert "as it was" in publish()
    assert hub.writes(first) == [] and world.file.read_bytes() == registry
    complete(hub, world)
    folder = Path(client().snapshot_download(ADAPTER, revision="v1.0", cache_dir=tmp_path / "fresh"))
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (world.adapter / weights).read_bytes()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny-base"
    assert config["revision"] == world.registry.checkpoint("tiny-base").revision


def test_the_card_says_what_the_registry_says(hub: HubServer, world: World) -> None:
    from huggingface_hub import ModelCard

    publish()
    card = ModelCard.load(client().hf_hub_download(ADAPTER, "README.md"))
    metadata = card.data.to_dict()
    assert metadata["base_model"] == "org/tiny-base" and metadata["base_model_relation"] == "adapter"
    assert metadata["library_name"] == "peft" and metadata["pipeline_tag"] == "text-generation"
    assert metadata["license"] == "apache-2.0" and metadata["datasets"] == ["org/persona-drift"]
    assert {"lora", "kto", "simulated-user"} <= set(metadata["tags"])
    text = card.text
    assert "A simulated patient is not a patient" in text and "No scores of the whole test split yet" in text
    for words in ("AutoPeftModelForCausalLM", "vllm serve", "lm_eval --tasks", "inspect eval", "@software"):
        assert words in text
    assert world.registry.checkpoint("tiny-sim").weights in text


def test_dialogues_side_by_side_go_with_the_card_that_names_them(hub: HubServer, world: World) -> None:
    page = (world.root / card_file(world.registry.checkpoint("tiny-sim"))).with_name(PAGE)
    page.write_text("# base and tiny-sim, side by side\n")
    world.write_cards()
    publish()
    assert set(hub.repo(ADAPTER).at("main").tree) == FILES | {PAGE}
    arrived = [Path(client().hf_hub_download(ADAPTER, name)).read_text() for name in (PAGE, "README.md")]
    assert arrived[0] == page.read_text() and f"]({PAGE})" in arrived[1]


def test_only_what_differs_is_sent(hub: HubServer, world: World) -> None:
    publish()
    world.edit(description="It plays a person, badly, and says so.")
    world.write_cards()
    first = len(hub.log)
    shown = publish()
    assert "committed 1 files" in shown
    assert not [seen for seen in hub.log[first:] if "/_lfs/" in seen.path or "xet-write" in seen.path]
    repo = hub.repo(ADAPTER)
    assert len(repo.history()) == 3 and repo.refs[TAG] != repo.refs[MAIN]  # the weights are those of the tag
    assert "and says so" in hub.text(ADAPTER, "README.md")


def test_a_merged_model_goes_to_a_repository_of_its_own(hub: HubServer, world: World, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    publish("--merged")
    publish("--merged")
    repo = hub.repo(f"{ADAPTER}-merged")
    assert len(repo.history()) == 2 and {"model.safetensors", "config.json", "README.md"} <= set(repo.at("main").tree)
    entry = world.registry.checkpoint("tiny-sim")
    assert entry.merged is not None and entry.merged.repository == f"{ADAPTER}-merged"
    folder = client().snapshot_download(f"{ADAPTER}-merged", cache_dir=tmp_path / "fresh")
    merged = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.base), str(world.adapter))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    card = hub.text(f"{ADAPTER}-merged", "README.md")
    assert "base_model_relation: finetune" in card and "library_name: transformers" in card


def test_a_private_copy_and_one_in_another_namespace_leave_the_registry_alone(
    hub: HubServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.file.read_bytes()
    publish("--private")
    assert hub.repo(ADAPTER).private and not hub.collections
    monkeypatch.setenv("HF_TOKEN", OTHER)
    publish("--namespace", "other")
    assert "other/tiny-sim" in hub.text("other/tiny-sim", "README.md")
    assert world.file.read_bytes() == before
    monkeypatch.setenv("HF_TOKEN", WRITE)
    publish()
    complete(hub, world)
    assert "is public already" in fails("--private")


def test_a_pull_request_is_opened_once(hub: HubServer, world: World) -> None:
    assert "does not exist" in fails("--create-pr")
    publish()
    world.edit(description="Another description.")
    world.write_cards()
    before = world.file.read_bytes()
    head = hub.repo(ADAPTER).refs[MAIN]
    assert "opened the pull request" in publish("--create-pr")
    assert "pull request is open" in publish("--create-pr")
    repo = hub.repo(ADAPTER)
    assert len(repo.pulls) == 1 and repo.refs[MAIN] == head and world.file.read_bytes() == before
    assert "Another description" in hub.text(ADAPTER, "README.md", revision="refs/pr/1")


def test_what_does_not_belong_is_removed_in_the_same_commit(hub: HubServer, world: World) -> None:
    publish()
    operation = CommitOperationAdd("pytorch_model.bin", b"\x80\x04 a pickle")
    client().create_commit(ADAPTER, [operation], commit_message="by hand")
    assert "delete" in publish("--dry-run")
    publish()
    assert set(hub.repo(ADAPTER).at("main").tree) == FILES


# -------------------------------------------------------------------------------------------------------- what breaks

COMMIT, TAGGING, SETTINGS = f"/api/models/{ADAPTER}/commit/", f"/api/models/{ADAPTER}/tag/", f"{ADAPTER}/settings"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/api/repos/create", 500),
        Fault("POST", COMMIT, 503),
        Fault("POST", COMMIT, 0),
        Fault("POST", COMMIT, 0, late=True),
        Fault("POST", COMMIT, 502, late=True),
        Fault("POST", TAGGING, 500),
        Fault("POST", TAGGING, 0, late=True),
        Fault("PUT", SETTINGS, 500),
        Fault("POST", "/api/collections", 500),
        Fault("POST", "/api/collections/.*/items", 429),
    ],
    ids=lambda fault: f"{fault.path.split('/')[-2] or fault.path}-{fault.status}{'-late' if fault.late else ''}",
)
def test_the_next_run_finishes_what_a_fault_left(hub: HubServer, world: World, fault: Fault) -> None:
    fault.times = 1
    hub.faults.append(fault)
    before = world.file.read_bytes()
    said = fails()
    assert fault.times == 0 and "un the command again" in said
    assert world.file.read_bytes() == before  # nothing is called published that is not
    repo = hub.repos.get(("model", ADAPTER))
    if repo and set(repo.at("main").tree) != FILES:
        assert repo.private and TAG not in repo.refs  # no half release can be seen
    publish()
    complete(hub, world)


def test_weights_that_arrived_are_not_sent_again(hub: HubServer, world: World) -> None:
    hub.faults.append(Fault("POST", COMMIT, 503))
    fails()
    first = len(hub.log)
    publish()
    assert not [seen for seen in hub.log[first:] if seen.path.startswith("/_lfs/")]


def test_a_lost_race_changes_nothing(hub: HubServer, world: World) -> None:
    publish()
    world.edit(description="Another description.")
    world.write_cards()

    def somebody_else() -> None:
        repo = hub.repo(ADAPTER)
        repo.commit(MAIN, {**repo.at("main").tree}, "somebody else's")

    hub.faults.append(Fault("POST", COMMIT, 200, call=somebody_else))
    assert "somebody else committed meanwhile" in fails()
    assert hub.repo(ADAPTER).at("main").title == "somebody else's"
    publish()
    assert "Another description" in hub.text(ADAPTER, "README.md")


@pytest.mark.parametrize("moment", [COMMIT, TAGGING, SETTINGS, "/api/collections$"])
def test_a_kill_in_the_middle_leaves_nothing_half(hub: HubServer, world: World, tmp_path: Path, moment: str) -> None:
    environment = hub_environment(hub, world, tmp_path / "process")
    command = [sys.executable, "-c", "from persona_tasks.cli import app; app()", "publish", "tiny-sim"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    method = "PUT" if moment == SETTINGS else "POST"
    hub.faults.append(Fault(method, moment, 200, call=process.kill))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output
    assert world.registry.checkpoint("tiny-sim").published is None
    publish()
    complete(hub, world)


def test_a_hub_that_stores_something_else_is_noticed(hub: HubServer, world: World) -> None:
    def tamper() -> None:
        repo = hub.repo(ADAPTER)
        head = repo.at("main")
        if "README.md" in head.tree:
            head.tree["README.md"] = hub._store(b"another card")

    hub.faults.append(Fault("GET", f"{ADAPTER}/tree/", 200, times=9, call=tamper))
    assert "is not what was sent: README.md" in fails()
    assert TAG not in hub.repo(ADAPTER).refs and hub.repo(ADAPTER).private


def test_a_gitignore_on_the_hub_is_refused(hub: HubServer, world: World) -> None:
    client().create_repo(ADAPTER)
    client().create_commit(ADAPTER, [CommitOperationAdd(".gitignore", b"*.safetensors\n")], commit_message="x")
    assert ".gitignore, which would make files disappear" in fails()


def test_a_tag_never_moves_to_other_weights(hub: HubServer, world: World) -> None:
    publish()
    adapter_folder(world.base, world.adapter, seed=1)
    world.list_files()
    world.write_cards()
    head = hub.repo(ADAPTER).refs[MAIN]
    assert "a tag never moves" in fails()
    assert hub.repo(ADAPTER).refs[MAIN] == head
    world.edit(version="v1.1")
    world.write_cards()
    publish()
    assert hub.repo(ADAPTER).refs["refs/tags/v1.1"] == hub.repo(ADAPTER).refs[MAIN]
    assert hub.repo(ADAPTER).refs[TAG] == head


# ---------------------------------------------------------------------------------------------------- who may, secrets


def test_a_token_that_may_not_write(hub: HubServer, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READ)
    assert "no access with this token" in fails()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 7)
    said = fails()
    assert "no access with this token" in said and "wrongwrong" not in said


def test_the_token_never_shows(hub: HubServer, world: World, tmp_path: Path) -> None:
    """Not even where the Hub itself repeats it in an error, and not with the client's debug logging."""
    hub.faults.append(Fault("POST", COMMIT, 500, message=f"bad header: Bearer {WRITE}"))
    environment = {**hub_environment(hub, world, tmp_path / "process"), "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    command = [sys.executable, "-c", "from persona_tasks.cli import app; app()", "publish", "tiny-sim"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 2 and "bad header: Bearer ***" in run.stderr
    assert WRITE not in run.stdout + run.stderr
    assert not [file for file in world.root.rglob("*") if file.is_file() and WRITE.encode() in file.read_bytes()]


def test_an_exception_carries_no_token(hub: HubServer, world: World) -> None:
    from persona_tasks.hub.client import HubError
    from persona_tasks.hub.commands import Options, publish_checkpoint

    hub.faults.append(Fault("POST", COMMIT, 500, message=f"Bearer {WRITE}"))
    with pytest.raises(HubError) as caught:
        publish_checkpoint("tiny-sim", False, Options(), lambda _: None)
    error = caught.value
    assert WRITE not in repr(error) + str(vars(error))
    assert error.__cause__ is None and error.__suppress_context__


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: HubServer, world: World, tmp_path: Path) -> None:
    publish()
    client().snapshot_download(ADAPTER, cache_dir=tmp_path / "fresh")
    stored = [seen for seen in hub.log if seen.path.startswith(("/_lfs/", "/_storage/"))]
    assert not [seen for seen in stored if seen.authorized]
    assert {seen.host for seen in hub.log if seen.authorized} == {"127.0.0.1"}
    assert bool(stored) == (hub.mode == "lfs")


def test_numbers_of_a_publication(hub: HubServer, world: World) -> None:
    """What the documentation says a publication costs."""
    publish("--merged")
    first, again = len(hub.log), 0
    publish("--merged")
    again = len(hub.log) - first
    assert first < 60 and again < 25 and not hub.writes(first)


# ------------------------------------------------------------------------------------------------------------- refusals


def _write(name: str, data: bytes) -> Any:
    def edit(world: World) -> None:
        path = world.adapter / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return edit


def _config(**changes: Any) -> Any:
    def edit(world: World) -> None:
        path = world.adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        world.list_files()
        world.write_cards()

    return edit


def _link(world: World) -> None:
    weights = world.adapter / "adapter_model.safetensors"
    moved = world.root / "elsewhere.safetensors"
    weights.rename(moved)
    weights.symlink_to(moved)


def _dirty(world: World) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(world.root), *who, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    world.edit(description="Changed after the commit.")
    world.write_cards()


def _truncated(world: World) -> None:
    weights = world.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    world.list_files()
    world.write_cards()


def _metadata(text: str) -> Any:
    def edit(world: World) -> None:
        from safetensors.torch import load_file, save_file

        weights = world.adapter / "adapter_model.safetensors"
        save_file(load_file(weights), weights, metadata={"note": text})
        world.list_files()
        world.write_cards()

    return edit


def _tokenizer(**changes: Any) -> Any:
    def edit(world: World) -> None:
        for file in world.base.glob("tokenizer*.json"):
            (world.adapter / file.name).write_bytes(file.read_bytes())
        path = world.adapter / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        world.list_files()
        world.write_cards()

    return edit


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (_write("training_args.bin", b"\x80\x04"), "not among its files"),
        (_write(".env", b"HF_TOKEN=x"), "not among its files"),
        (_write("checkpoint-10/optimizer.pt", b"PK"), "not among its files"),
        (_link, "a link, which would be followed"),
        (_write("adapter_model.safetensors", b"other weights"), "has changed"),
        (_truncated, "its header says"),
        (_metadata("see hf_" + "a" * 30), "looks like a secret"),
        (_config(note="/home/bob/runs/7"), "a path of this machine"),
        (_config(note="AKIA" + "A" * 16), "looks like a secret"),
        (_config(auto_map={"AutoModel": "m.M"}), "run code from the repository"),
        (_tokenizer(auto_map={"AutoTokenizer": "t.T"}), "run code from the repository"),
        (_config(base_model_name_or_path="another/base"), "its adapter_config.json is for"),
        (_dirty, "changes that are not committed"),
        (lambda world: world.edit(description="Not in the card."), "is not what the registry and the template give"),
        (lambda world: (world.root / "training/recipes/tiny.yaml").write_text("steps: 9\n"), "not the recipe"),
    ],
)
@pytest.mark.parametrize("hub", ["lfs"], indirect=True)  # no storage is touched
def test_refusals_before_anything_is_sent(hub: HubServer, world: World, edit: Any, why: str) -> None:
    edit(world)
    assert why in fails()
    assert not [seen for seen in hub.log if seen.method not in ("GET", "HEAD") or ADAPTER in seen.path]


def test_only_checkpoints_of_ours_are_published(hub: HubServer, world: World) -> None:
    result = call("publish", "tiny-base")
    assert result.exit_code == 2 and "not ours to publish" in result.output
    result = call("publish", "nobody")
    assert result.exit_code == 2 and "there are: tiny-base, tiny-sim" in result.output


def test_a_secret_in_an_entry_cannot_even_be_listed(world: World) -> None:
    data = yaml.safe_load(world.file.read_text())
    data["checkpoints"][1]["limits"] = [f"Ask with {WRITE}"]
    world.file.write_text(yaml.safe_dump(data))
    said = fails()
    assert "holds what looks like a secret" in said and WRITE not in said
