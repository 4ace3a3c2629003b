"""Running our lm-eval tasks in tests: a language model that is plain code, small runs, and reading what they leave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from persona_tasks.lm_eval_tasks import TASKS
from persona_tasks.transcript import Judged, Transcript
from tests.chat_server import Behaviour, ChatServer
from tests.inspect_runs import everybody

NO_JUDGE = {"predict_only": True}


class ChatLM(LM):  # type: ignore[misc]
    """A chat model of which every answer depends on every word of its prompt.

    Attributes:
        calls: The prompts of each call of `generate_until`.
        options: The generation options of each prompt, in the same shape.
    """

    tokenizer_name = "chat"

    def __init__(self, reply: Callable[[str], str] | None = None):
        super().__init__()
        self.reply = reply or (lambda prompt: "line " + hashlib.sha256(prompt.encode()).hexdigest()[:8])
        self.calls: list[list[str]] = []
        self.options: list[list[dict[str, Any]]] = []

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in chat_history)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        self.calls.append([request.args[0] for request in requests])
        self.options.append([request.args[1] for request in requests])
        return [self.reply(request.args[0]) for request in requests]

    def loglikelihood(self, requests: Any) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise NotImplementedError


def evaluate(
    model: Any,
    tasks: str | Sequence[str] = "persona_drift_chat",
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run tasks as the command line does, quickly: only our task folder is indexed, and few bootstrap samples drawn."""
    model_args = options.get("model_args") or {}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=dict(model_args) | (settings or {}))
    chosen = {"limit": 2, "bootstrap_iters": 10, "device": "cpu", **options}
    return simple_evaluate(
        model=model, tasks=[tasks] if isinstance(tasks, str) else list(tasks), task_manager=manager, **chosen
    )


def judged_run(
    model: Any,
    tasks: str | Sequence[str] = "persona_drift_chat",
    settings: dict[str, Any] | None = None,
    judge: Behaviour = everybody,
    **options: Any,
) -> dict[str, Any]:
    """A run with a judge that is served over HTTP; by default about a third of its verdicts are contradictions."""
    with ChatServer(judge) as server:
        return evaluate(model, tasks, {"judge": f"openai:judge@{server.url}", **(settings or {})}, **options)


def samples(results: dict[str, Any], task: str = "persona_drift_chat") -> list[dict[str, Any]]:
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


def transcripts(results: dict[str, Any], task: str = "persona_drift_chat") -> list[Transcript]:
    """What was generated, in the order of the documents."""
    return [Transcript.model_validate_json(sample["resps"][0][0]) for sample in samples(results, task)]


def judged(results: dict[str, Any], task: str = "persona_drift_chat") -> list[Judged]:
    return [Judged.model_validate_json(sample["filtered_resps"][0]) for sample in samples(results, task)]


def scores(results: dict[str, Any], task: str = "persona_drift_chat") -> dict[str, Any]:
    """Values by metric name, without standard errors."""
    found = {key.partition(",")[0]: value for key, value in results["results"][task].items() if "," in key}
    return {name: value for name, value in found.items() if not name.endswith("_stderr")}


def strict_json(path: Path) -> Any:
    """A JSON file that must hold no NaN and no infinity."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
