"""A chat server on a free local port that speaks OpenAI chat completions, says what a test wants, fails on demand.

    with ChatServer(lambda request: f"You said: {request.last}") as server:
        ...  # base URL: server.url
    assert [request.model for request in server.log] == ["judge"]

A behaviour is called with each `Request` and returns the text of the answer, or a `Reply` for anything else: an error
status, a hang, a body that is no JSON, a slow answer. It is called from several threads at once, one per request.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias


@dataclass
class Request:
    """One request as it arrived.

    Attributes:
        number: From 0, in the order of arrival.
        nth: How often this very conversation was asked before (a retry has the `number` of its own, and `nth` 1).
        path: `/v1/chat/completions`.
        body: The whole JSON.
        headers: With lower-case names.
        status: What was sent back; None for a connection that was cut or still hangs.
    """

    number: int
    nth: int
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    status: int | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> str:
        return str(self.body.get("model"))

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.body.get("messages", []))

    @property
    def last(self) -> str:
        """The text of the last message."""
        return text_of(self.messages[-1]["content"]) if self.messages else ""

    @property
    def key(self) -> str | None:
        """The API key that was sent."""
        kind, _, key = self.headers.get("authorization", "").partition(" ")
        return key if kind == "Bearer" else None


@dataclass(frozen=True)
class Reply:
    """What is sent back.

    Attributes:
        text: The assistant's text; None is sent as `null`.
        status: HTTP status; from 400 on an error object is sent instead of an answer.
        delay: Seconds before anything is sent.
        body: Sent as it is instead of a completion, for garbage.
        headers: Further headers, such as Retry-After.
        finish: The finish_reason, such as "length" or "content_filter".
        hang: Never answer: the connection stays open until the client or the server closes it.
        cut: Close the connection without an answer.
    """

    text: str | None = ""
    status: int = 200
    delay: float = 0.0
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    finish: str = "stop"
    hang: bool = False
    cut: bool = False


RATE_LIMIT = Reply("slow down", status=429, headers={"Retry-After": "0"})
SERVER_ERROR = Reply("internal error", status=500)
BAD_REQUEST = Reply("no such thing", status=400)
HANG = Reply(hang=True)
CUT = Reply(cut=True)
GARBAGE = Reply(body=b"<html>502 Bad Gateway</html>")
NO_CHOICES = Reply(body=b'{"object": "chat.completion", "choices": []}')

Behaviour: TypeAlias = Callable[[Request], "str | Reply"]


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a message's content, which some clients send in parts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def by_model(**behaviours: Behaviour | str) -> Behaviour:
    """One server for several roles: the behaviour (or constant text) of the model that the request names."""

    def behave(request: Request) -> str | Reply:
        chosen = behaviours.get(request.model, BAD_REQUEST)
        return chosen(request) if callable(chosen) else chosen

    return behave


def failing(behaviour: Behaviour, faults: Mapping[int, Reply]) -> Behaviour:
    """The behaviour, but the requests with these numbers get the fault. A retry is a request with its own number."""
    return lambda request: faults[request.number] if request.number in faults else behaviour(request)


def failing_first(behaviour: Behaviour, fault: Reply, times: int = 1) -> Behaviour:
    """The behaviour, but every conversation gets the fault the first `times` times that it is asked."""
    return lambda request: fault if request.nth < times else behaviour(request)


class ChatServer:
    """Serves until the `with` block ends.

    Attributes:
        url: Base URL for clients, such as `http://127.0.0.1:40001/v1`.
        log: All requests in the order of their arrival; kept after the server has stopped.
        peak: The most requests that were in work at one time.
        errors: Exceptions of the behaviour; leaving the `with` block raises the first.
    """

    def __init__(self, behaviour: Behaviour | str = "ok"):
        self.behaviour: Behaviour = behaviour if callable(behaviour) else lambda _: behaviour
        self.log: list[Request] = []
        self.errors: list[Exception] = []
        self.peak = 0
        self._busy = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.chat = self
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping.set()  # ends hangs and delays
        self._http.shutdown()
        self._http.server_close()
        if self.errors and kind is None:
            raise self.errors[0]

    def of(self, model: str) -> list[Request]:
        """The requests for one model."""
        return [request for request in self.log if request.model == model]

    def arrived(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Request:
        conversation = json.dumps([body.get("model"), body.get("messages")], sort_keys=True)
        with self._lock:
            request = Request(len(self.log), self._seen[conversation], path, body, headers)
            self._seen[conversation] += 1
            self.log.append(request)
            self._busy += 1
            self.peak = max(self.peak, self._busy)
        return request

    def left(self) -> None:
        with self._lock:
            self._busy -= 1

    def reply_to(self, request: Request) -> Reply | None:
        """The reply once its delay is over; None to close the connection without one."""
        try:
            said = self.behaviour(request)
        except Exception as error:  # a failed assertion in a behaviour must fail the test
            self.errors.append(error)
            said = Reply(f"{type(error).__name__}: {error}", status=400)
        reply = Reply(said) if isinstance(said, str) else said
        self._stopping.wait(None if reply.hang else reply.delay)
        return None if reply.hang or reply.cut else reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    chat: ChatServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client's ACK
    server: _Server

    def do_POST(self) -> None:
        chat = self.server.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = chat.arrived(self.path, body, {name.lower(): value for name, value in self.headers.items()})
        try:
            reply = chat.reply_to(request)
        finally:
            chat.left()
        if reply is None:
            self.close_connection = True
            return
        known = self.path == "/v1/chat/completions"
        request.status = reply.status if known else 404
        self._send(request.status, reply.headers, reply.body or _json(request, reply, request.status))

    def do_GET(self) -> None:
        self._send(404, {}, b'{"error": {"message": "only /v1/chat/completions is served"}}')

    def _send(self, status: int, headers: Mapping[str, str], payload: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr for what matters."""


def _json(request: Request, reply: Reply, status: int) -> bytes:
    if status >= 400:
        return json.dumps({"error": {"message": reply.text, "type": "test", "code": status}}).encode()
    words = sum(len(text_of(message["content"]).split()) for message in request.messages)
    said = len((reply.text or "").split())
    return json.dumps(
        {
            "id": f"chatcmpl-{request.number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": reply.text},
                    "finish_reason": reply.finish,
                }
            ],
            "usage": {"prompt_tokens": words, "completion_tokens": said, "total_tokens": words + said},
        }
    ).encode()
