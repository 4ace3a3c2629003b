"""`persona/...` as Inspect sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer
from inspect_ai.solver import TaskState, generate
from inspect_ai.tool import ToolInfo

from persona_tasks.embedded.engine import Engine
from persona_tasks.embedded.weights import WeightsError, fitting_dtype
from tests.tiny import tiny_model_folder

MESSAGES = [ChatMessageSystem(content="You are Mina."), ChatMessageUser(content="Who are you?")]


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """For tiny models, threads that wait for each other take longer than the work, on a busy machine 100 times."""
    before = torch.get_num_threads()
    if not request.node.get_closest_marker("embedded"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models"))


def model_at(folder: Path, **config: Any) -> Model:
    return get_model(f"persona/{folder}", config=GenerateConfig(**config), memoize=False)


def ask(model: Model, messages: Any = MESSAGES, **config: Any) -> ModelOutput:
    async def main() -> ModelOutput:
        return await model.generate(messages, config=GenerateConfig(**config))

    return anyio.run(main)


def ask_engine(model: Model) -> Engine:
    return anyio.run(model.api.engine)  # type: ignore[attr-defined]


def test_an_answer_and_its_cost(folder: Path) -> None:
    model = model_at(folder, max_tokens=8)
    first = ask(model)
    assert first.usage and first.completion and first.stop_reason == "max_tokens"
    prompt = first.usage.input_tokens + (first.usage.input_tokens_cache_read or 0)
    assert (first.usage.output_tokens, first.usage.total_tokens) == (8, prompt + 8)
    assert first.metadata and first.metadata["dtype"] == fitting_dtype(ask_engine(model).model.device.type)
    turn = [*MESSAGES, ChatMessageAssistant(content=first.completion), ChatMessageUser(content="And why?")]
    second = ask(model, turn)
    assert second.usage and (second.usage.input_tokens_cache_read or 0) >= prompt


def test_every_setting_reaches_the_engine(folder: Path) -> None:
    model = model_at(folder, max_tokens=20)
    greedy = ask(model).completion
    assert ask(model, temperature=0.0).completion == greedy == ask(model, temperature=2.0, top_k=1).completion
    assert ask(model, temperature=2.0, top_p=0.0).completion == greedy
    wild = [ask(model, temperature=3.0, seed=seed).completion for seed in (1, 1, 2)]
    assert wild[0] == wild[1] != wild[2]
    stopped = ask(model, stop_seqs=[greedy[3:5]])
    assert stopped.completion == greedy[: greedy.index(greedy[3:5])] and stopped.stop_reason == "stop"


def test_logprobs(folder: Path) -> None:
    output = ask(model_at(folder, max_tokens=5), logprobs=True, top_logprobs=3)
    assert output.choices[0].logprobs
    content = output.choices[0].logprobs.content
    assert len(content) == 5
    for entry in content:
        assert entry.top_logprobs and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0  # greedy: the chosen one is the likeliest
    assert ask(model_at(folder, max_tokens=5)).choices[0].logprobs is None


def test_a_full_context_is_an_outcome_not_a_crash(folder: Path) -> None:
    output = ask(model_at(folder, max_tokens=8), [ChatMessageUser(content="word " * 3000)])
    assert (output.stop_reason, output.completion) == ("model_length", "")
    assert "more than the 2048 tokens of the model's context" in (output.error or "")


def test_a_temperature_of_the_models_own(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 5.0, "eos_token_id": 1}')
    model = model_at(folder, max_tokens=20)
    assert ask(model, seed=1).completion != ask(model, seed=2).completion
    assert ask(model, temperature=0.0, seed=1).completion == ask(model, temperature=0.0, seed=2).completion


def test_roles_share_one_engine_until_the_weights_change(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)

    async def engines(*models: Model) -> list[Engine]:
        return [await model.api.engine() for model in models]  # type: ignore[attr-defined]

    first, second = anyio.run(engines, model_at(folder), get_model(f"persona/{folder}", role="judge"))
    assert first is second
    (other,) = anyio.run(engines, get_model(f"persona/{folder}", dtype="float32", memoize=False))
    assert other is not first
    os.utime(folder / "model.safetensors", (0, 0))
    (anew,) = anyio.run(engines, model_at(folder))
    assert anew is not first


def test_an_unknown_model_is_refused_before_anything_runs() -> None:
    with pytest.raises(WeightsError, match=r"neither one of .*smollm2-135m"):
        get_model("persona/gpt-7")


def test_tools_are_refused(folder: Path) -> None:
    async def main() -> None:
        await model_at(folder).generate(MESSAGES, tools=[ToolInfo(name="look", description="Look.")])

    with pytest.raises(ValueError, match="cannot call tools"):
        anyio.run(main)


def test_registering_imports_nothing_heavy() -> None:
    code = (
        "import sys, persona_tasks.embedded.provider as p; p.PersonaAPI('smollm2-135m'); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "False\n"


@scorer(metrics=[accuracy()])
def judged_by_a_role() -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        verdict = await get_model(role="judge").generate(f"Is this consistent? {state.output.completion}")
        return Score(value=1 if verdict.completion else 0)

    return score


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_evaluation(folder: Path, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    samples = [Sample(input=f"Question {i}", id=i) for i in range(20)]
    task = Task(dataset=samples, solver=generate(), scorer=judged_by_a_role(), config=GenerateConfig(max_tokens=6))

    async def main() -> Any:
        name = f"persona/{folder}"
        return await eval_async(task, model=name, model_roles={"judge": name}, log_dir=str(tmp_path))

    [log] = anyio.run(main, backend=backend)
    assert log.status == "success" and log.results.completed_samples == 20
    assert log.results.scores[0].metrics["accuracy"].value == 1


@pytest.mark.embedded
def test_the_embedded_model() -> None:
    output = ask(get_model("persona/smollm2-135m"), max_tokens=12)
    assert output.completion and output.model == "smollm2-135m"
