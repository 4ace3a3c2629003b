"""Judge and partner: the models that are asked beside the evaluated one.

    persona/smollm2-135m          an embedded model, or persona//path/to/a/folder, as in Inspect
    /path/to/a/folder             the same
    openai:MODEL@BASE_URL         an OpenAI-compatible endpoint; without @BASE_URL, OpenAI itself or OPENAI_BASE_URL

API keys come from the environment only: PERSONA_JUDGE_API_KEY or PERSONA_PARTNER_API_KEY, else OPENAI_API_KEY.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from persona_tasks.protocol.asks import Answer, Ask, Failure
from persona_tasks.protocol.limits import REPLY_TOKENS, VERDICT_TOKENS

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = getLogger("lm_eval.persona_tasks")  # shown, formatted and filtered like the harness's own
Result = TypeVar("Result")
RoleName = Literal["judge", "partner"]

BATCH = 64  # asks of an embedded model between two steps of the progress bar
TOKENS: dict[RoleName, int] = {"judge": VERDICT_TOKENS, "partner": REPLY_TOKENS}
RETRIES = 6  # of 408, 409, 429, 5xx, timeouts and broken connections, by the openai package
GARBLED_RETRIES = 2  # of an answer with status 200 that is no completion
GARBLED_WAIT = 5.0  # seconds at most before each of them
ENDPOINT = re.compile(r"openai:(?P<model>.+?)(?:@(?P<url>https?://.*))?")
# What an endpoint may refuse to know; it is then left out of the requests to it.
OPTIONAL = ("response_format", "temperature", "max_tokens")


class RoleError(ValueError):
    """No such judge or partner, or it cannot work. The message says what to give."""


class Role(Protocol):
    """A model that is asked. `name` goes into results, so it never holds a key."""

    name: str

    def prepare(self) -> None:
        """Find out, before hours of generation, whether the role can work at all."""

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer all asks; where there is no answer for good, with a `Failure`."""


def open_role(spec: str, role: RoleName, connections: int = 16, timeout: float = 120.0) -> Role:
    """The model behind a specification. Nothing is loaded or asked yet.

    Raises:
        RoleError: It is not one of the forms above, or there is no such folder.
    """
    if endpoint := ENDPOINT.fullmatch(spec):
        return Endpoint(endpoint["model"], endpoint["url"], role, connections, timeout)
    if spec.startswith("persona/"):
        return Local(spec.removeprefix("persona/"), role)
    if Path(spec).expanduser().is_dir():
        return Local(str(Path(spec).expanduser()), role)
    raise RoleError(
        f"{role}={spec!r}: give persona/smollm2-135m, openai:MODEL@https://host/v1, or an existing folder with a model"
    )


class Local:
    """An embedded model or a folder with one, loaded once per process."""

    def __init__(self, model: str, role: RoleName):
        self.model, self.role = model, role
        self.name = f"persona/{model}"

    def prepare(self) -> None:
        """Raises: WeightsError if there is no such model."""
        from persona_tasks.embedded.weights import check_name

        check_name(self.model)

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        from persona_tasks.embedded.answers import engine_answers
        from persona_tasks.embedded.engine import Engine

        answer = engine_answers(Engine.shared(self.model))
        parts = [asks[start : start + BATCH] for start in range(0, len(asks), BATCH)]
        return [
            text for part in tqdm(parts, desc=self.role, unit=f"{BATCH} answers", disable=None) for text in answer(part)
        ]


class Garbled(Exception):
    """An endpoint's answer is no chat completion."""


class Endpoint:
    """An OpenAI-compatible endpoint. All asks are sent at once, `connections` at a time."""

    def __init__(self, model: str, url: str | None, role: RoleName, connections: int, timeout: float):
        if url and (urlsplit(url).username or urlsplit(url).query):
            raise RoleError(f"{role}: its address holds a user name or a query; keys belong into the environment")
        self.model, self.role, self.connections, self.timeout = model, role, connections, timeout
        self.url = re.sub(r"(/chat/completions)?/?$", "", url) if url else os.environ.get("OPENAI_BASE_URL")
        self.name = f"openai:{model}" + (f"@{self.url}" if self.url else "")
        self.refused: set[str] = set()
        self.told: set[str] = set()

    def prepare(self) -> None:
        """Raises: RoleError if this is OpenAI itself and there is no key."""
        if self.url is None and not self._key():
            names = f"PERSONA_{self.role.upper()}_API_KEY or OPENAI_API_KEY"
            raise RoleError(f"{self.role}={self.name}: set {names}, or name a server: {self.name}@http://...")

    def _key(self) -> str | None:
        return os.environ.get(f"PERSONA_{self.role.upper()}_API_KEY") or os.environ.get("OPENAI_API_KEY")

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        return run(self._answer(asks))

    async def _answer(self, asks: Sequence[Ask]) -> list[Answer]:
        from openai import AsyncOpenAI
        from tqdm.asyncio import tqdm_asyncio

        key = self._key()
        gate = asyncio.Semaphore(self.connections)

        async def one(ask: Ask, client: AsyncOpenAI) -> Answer:
            async with gate:
                try:
                    return await self._ask(ask, client)
                except Exception as error:  # one broken request must not cost the others
                    reason = f"{type(error).__name__}: {error}"
                    reason = reason.replace(key, "***") if key else reason
                    if reason not in self.told:
                        logger.warning("%s: a request failed for good: %s", self.name, reason)
                    self.told.add(reason)
                    return Failure(reason)

        async with AsyncOpenAI(
            api_key=key or "none", base_url=self.url, max_retries=RETRIES, timeout=self.timeout
        ) as client:
            waiting = [one(ask, client) for ask in asks]
            return list(await tqdm_asyncio.gather(*waiting, desc=self.role, unit="answer", disable=None))

    async def _ask(self, ask: Ask, client: AsyncOpenAI) -> str:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        patience = AsyncRetrying(
            retry=retry_if_exception_type(Garbled),
            stop=stop_after_attempt(1 + GARBLED_RETRIES),
            wait=wait_random_exponential(max=GARBLED_WAIT),
            reraise=True,
        )
        text: str = await patience(self._complete, ask, client)
        return text

    async def _complete(self, ask: Ask, client: AsyncOpenAI) -> str:
        from openai import APIResponseValidationError, BadRequestError, UnprocessableEntityError

        body = self._body(ask)
        try:
            completion: Any = await client.chat.completions.create(**body)
        except (json.JSONDecodeError, APIResponseValidationError) as error:
            raise Garbled(f"no JSON: {error}") from None
        except (BadRequestError, UnprocessableEntityError) as error:
            sent = [option for option in OPTIONAL if option in body]
            named = [option for option in sent if option in str(error)] or sent[:1]
            if not named:
                raise
            logger.warning("%s refuses %s; it is left out from now on (%s)", self.name, named[0], error)
            self.refused.add(named[0])
            return await self._complete(ask, client)
        try:
            return completion.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):
            raise Garbled(f"no chat completion: {str(completion)[:200]}") from None

    def _body(self, ask: Ask) -> dict[str, Any]:
        limit = "max_completion_tokens" if "max_tokens" in self.refused else "max_tokens"
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message._asdict() for message in ask.messages],
            limit: TOKENS[self.role],
            "temperature": 0.0,
        }
        if ask.schema is not None:
            form = {"name": ask.schema.__name__, "strict": True, "schema": ask.schema.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return {option: value for option, value in body.items() if option not in self.refused}


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, also inside a notebook, where an event loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
