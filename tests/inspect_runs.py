"""Running our Inspect tasks in tests: models behind a real local HTTP server, logs in a temporary folder."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, get_model

from persona_tasks.personas import load_bank
from tests.chat_server import Behaviour, ChatServer, Request

# Rescoring makes the roles anew from the log, which holds no key.
os.environ.setdefault("LOCAL_API_KEY", "none")


def model_at(server: ChatServer, name: str, **config: Any) -> Model:
    from inspect_ai.model import GenerateConfig

    return get_model(
        f"openai-api/local/{name}",
        base_url=server.url,
        api_key="none",
        memoize=False,
        config=GenerateConfig(max_connections=50, **config),
    )


def run(task: Any, server: ChatServer, log_dir: Any, roles: dict[str, Any] | None = None, **options: Any) -> EvalLog:
    """Evaluate with `simulator`, `partner` and `judge` all served by `server`."""
    bound = {"judge": model_at(server, "judge"), "partner": model_at(server, "partner")}
    chosen = {"model": model_at(server, "simulator"), "display": "none", "log_dir": str(log_dir)}
    [log] = inspect_eval(task, model_roles=bound if roles is None else roles, **{**chosen, **options})
    return log


def scores(log: EvalLog) -> dict[str, float]:
    """Means by score name."""
    assert log.results is not None
    return {score.name: score.metrics["mean"].value for score in log.results.scores if "mean" in score.metrics}


def hashed(request: Request) -> str:
    digest = hashlib.sha256(json.dumps(request.messages, sort_keys=True).encode()).hexdigest()
    return digest[:8]


def say(request: Request) -> str:
    """A line or reply that depends on every word of the prompt."""
    return f"{request.model} {hashed(request)}"


def verdict(request: Request) -> str:
    """A readable verdict of the form asked for; a third contradicts."""
    number = int(hashed(request), 16)
    if "New line:" in request.last:
        return json.dumps({"reason": "r", "conflicts": [1] if number % 3 == 0 else []})
    if "Options:" in request.last:
        return json.dumps({"reason": "r", "option": number % 6})
    return json.dumps({"reason": "r", "verdict": "contradicts" if number % 3 == 0 else "consistent"})


def everybody(request: Request) -> str:
    return verdict(request) if request.model == "judge" else say(request)


def with_judge(judge: Behaviour) -> Behaviour:
    return lambda request: judge(request) if request.model == "judge" else say(request)


TEST_IDS = [persona.id for persona in load_bank().select()]
