"""A small generation engine: continuous batching, prefixes computed once, results that don't depend on the batch.

    engine = Engine.load("smollm2-135m")
    prompt = engine.chat.ids([{"role": "system", "content": "You are Mina."}, {"role": "user", "content": "Hi"}])
    [completion] = engine.generate([Request(prompt, max_tokens=40)])

Requests join the running batch at its next step and leave it when they are done, so nobody waits for a batch to fill
or to end. Keys and values are kept after a request: a prompt that starts like an earlier one (a dialogue's next turn, a
probe on a fork, a judge's prompt about the same persona) costs its new tokens only.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from threading import Condition, Lock, Thread
from typing import Any

import anyio.to_thread
import numpy as np
import torch
from torch import Tensor

from persona_tasks.embedded.attention import NAME, ROWS, Chunk, make_plan
from persona_tasks.embedded.chat import Chat
from persona_tasks.embedded.job import Job
from persona_tasks.embedded.kv import KeyValueStore, PrefixCache, TokenSequence
from persona_tasks.embedded.limits import ModelShape, UnsupportedModel, default_kv_bytes
from persona_tasks.embedded.request import (
    DEFAULT_MAX_TOKENS,
    Completion,
    ContextOverflow,
    Request,
    Stats,
)
from persona_tasks.embedded.sampling import TokenLogprob
from persona_tasks.embedded.weights import DEFAULT, Sampling, load_model, own_sampling, weights_version

__all__ = ["Completion", "ContextOverflow", "Engine", "Request", "Stats", "TokenLogprob", "UnsupportedModel"]

CHECK_SECONDS = 5.0  # how often an idle worker thread looks whether its engine is still there


class Engine:
    """Generates with one model. All methods may be called from any thread.

    Args:
        model: A decoder-only transformers model. The engine takes it over: its attention is replaced.
        tokenizer: Its tokenizer.
        kv_bytes: Memory for keys and values of running and kept sequences. Default: see `limits.default_kv_bytes`.
        max_active: At most so many requests are computed at a time; more wait.
        chunk: At most so many tokens per forward pass; longer prompts take several, so that others are not held up.
        reuse: Keep keys and values for later prompts.

    Raises:
        UnsupportedModel: The model needs a kind of attention or of positions that the engine does not have.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        kv_bytes: int | None = None,
        max_active: int = 64,
        chunk: int | None = None,
        reuse: bool = True,
    ) -> None:
        self.shape = ModelShape.of(model.config)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.model, self.tokenizer = model.eval(), tokenizer
        model.set_attn_implementation(NAME)
        self.sampling = Sampling()  # how it talks unless a request says otherwise; the caller fills the request
        self.chat = Chat(tokenizer)
        self.stats = Stats()
        self.eos = _end_tokens(model, tokenizer)
        self.max_active = max_active
        self.chunk = chunk or (512 if model.device.type == "cpu" else 4096)
        self.reuse = reuse
        token_bytes = self.shape.bytes_per_token(model.dtype)
        slots = (kv_bytes or default_kv_bytes(model.device)) // token_bytes
        self.store = KeyValueStore(
            self.shape.layers, self.shape.kv_heads, self.shape.head_dim, slots, model.dtype, model.device
        )
        self.max_length = min(self.shape.max_length, self.store.slots)
        self.cache = PrefixCache(self.store)
        self._inbox: list[Job] = []
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._wake = Condition()
        self._thread: Thread | None = None

    @classmethod
    def load(cls, name: str = DEFAULT, dtype: str = "auto", device: str | None = None, **options: Any) -> Engine:
        """Load an embedded model, or a folder; see `weights.load_model`. The options are those of the class."""
        engine = cls(*load_model(name, dtype, device), **options)
        engine.sampling = own_sampling(name, engine.model)
        return engine

    @classmethod
    def shared(cls, name: str = DEFAULT, dtype: str = "auto", device: str | None = None) -> Engine:
        """This process's engine for a model: loaded at the first call, and again if the weights have changed since."""
        with _loading:
            key, version = (name, dtype, device), weights_version(name)
            if key not in _engines or _engines[key][0] != version:
                _engines.pop(key, None)
                _engines[key] = (version, cls.load(name, dtype, device))
            return _engines[key][1]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete all requests, and wait for them.

        Raises:
            ContextOverflow: One of them doesn't fit the context; nothing has been computed then.
        """
        futures = self._submit([self._job(request) for request in requests])
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def submit(self, request: Request) -> Future[Completion]:
        """Hand in a request; it joins the batch at the next step. Cancelling the future takes it out again.

        Raises:
            ContextOverflow: It doesn't fit the context.
        """
        return self._submit([self._job(request)])[0]

    async def complete(self, request: Request) -> Completion:
        """Complete one request without blocking the event loop, asyncio's or trio's.

        Raises:
            ContextOverflow: It doesn't fit the context.
        """
        future = self.submit(request)
        try:
            # a limiter of its own: anyio's default one would hold back all but 40 concurrent requests
            limiter = anyio.CapacityLimiter(1)
            return await anyio.to_thread.run_sync(future.result, limiter=limiter, abandon_on_cancel=True)
        finally:
            future.cancel()

    def _job(self, request: Request) -> Job:
        room = self.max_length - len(request.prompt)
        limit = request.max_tokens or min(DEFAULT_MAX_TOKENS, room)
        if not request.prompt or (request.max_tokens is not None and request.max_tokens < 1):
            raise ValueError("a request needs a prompt and at least one token to generate")
        if room < max(limit, 1):
            raise ContextOverflow(
                f"{len(request.prompt)} prompt tokens and {max(limit, 1)} to generate are more than the "
                f"{self.max_length} tokens of the model's context"
            )
        return Job(request, np.array(request.prompt, np.int32), limit, request.max_tokens is None and limit == room)

    def _submit(self, jobs: list[Job]) -> list[Future[Completion]]:
        with self._wake:
            self._inbox += jobs
            self._wake.notify()
            if self._thread is None or not self._thread.is_alive():  # not alive: after a fork
                # the thread must not keep the engine alive, or its memory would never be free again
                arguments = (weakref.ref(self), self._wake, self._inbox)
                self._thread = Thread(target=_serve, args=arguments, name="persona-engine", daemon=True)
                self._thread.start()
        return [job.future for job in jobs]

    def _run(self) -> None:
        """Step until there is nothing to do. Only the worker thread touches the model, the cache and running jobs."""
        while True:
            with self._wake:
                self._waiting += self._inbox
                self._inbox.clear()
            if not (self._waiting or self._running):
                return
            try:
                self._step()
            except Exception as error:  # out of memory, a model we don't support: nobody must wait forever
                for job in list(self._running):
                    self._leave(job)
                    _resolve(job.future, error)
                for job in self._waiting:
                    _resolve(job.future, error)
                self._waiting.clear()

    def _step(self) -> None:
        for job in [job for job in self._running if job.future.cancelled()]:
            self._leave(job)
        self._waiting = [job for job in self._waiting if not job.future.cancelled()]
        self._admit()
        budget = self.chunk
        batch: list[tuple[Job, TokenSequence, int]] = []
        sequences = [(job, job.sequence) for job in self._running if job.sequence is not None]
        # those that generate go first, they need one token each; what is left of the budget is for prompts
        for job, sequence in sorted(sequences, key=lambda pair: not pair[0].ids):
            if (count := min(sequence.length - sequence.computed, budget)) > 0:
                batch.append((job, sequence, count))
                budget -= count
        if not batch:
            return
        logits = self._forward([(sequence, count) for _, sequence, count in batch])
        self.stats.steps += 1
        ready = []
        for job, sequence, count in batch:
            sequence.computed += count
            if not job.ids:
                self.stats.computed_tokens += count
            if sequence.computed == sequence.length:
                ready.append(job)
        likeliest = logits.argmax(-1).tolist()
        for job, row, best in zip(ready, logits, likeliest, strict=True):
            self.stats.generated_tokens += 1
            if (completion := job.take(row, best, self.tokenizer, self.eos)) is not None:
                self._leave(job)
                _resolve(job.future, completion)

    def _admit(self) -> None:
        """Start waiting requests, each with the longest prefix there is. Where a running one is about to compute more
        of it, wait for that: of many prompts that share a prefix, one computes it."""
        for job in list(self._waiting):
            if len(self._running) == self.max_active:
                return
            if job.leader in self.cache.active and job.leader.computed < job.shared:
                continue
            match = self.cache.match(job.prompt, self.reuse)
            job.leader, job.shared = match.leader, match.soon
            if job.leader is not None:
                continue
            job.sequence = self.cache.open(job.prompt, len(job.prompt) + job.limit, match)
            if job.sequence is None:  # no memory until another one is done; first come, first served
                return
            job.reused = job.sequence.computed
            self._waiting.remove(job)
            self._running.append(job)
            self.stats.requests += 1
            self.stats.prompt_tokens += len(job.prompt)
            self.stats.reused_tokens += job.reused

    def _forward(self, new: list[tuple[TokenSequence, int]]) -> Tensor:
        """Compute `count` more tokens of each sequence.

        Returns:
            ``[sequences that are complete now, vocabulary]``, float32: the logits after their last tokens.
        """
        chunks = [Chunk(sequence.span, sequence.computed, count) for sequence, count in new]
        total = sum(chunk.count for chunk in chunks)
        padding = -total % ROWS
        ids = np.concatenate(
            [s.ids[s.computed : s.computed + count] for s, count in new] + [np.zeros(padding, np.int32)]
        )
        positions = np.concatenate(
            [np.arange(chunk.first, chunk.first + chunk.count) for chunk in chunks] + [np.zeros(padding, np.int64)]
        )
        ends = np.cumsum([count for _, count in new]) - 1
        last = [int(end) for end, (s, count) in zip(ends, new, strict=True) if s.computed + count == s.length]
        kept = last + last[:1] * (-len(last) % ROWS)
        device, dtype = self.model.device, self.model.dtype
        out = self.model(
            input_ids=torch.from_numpy(ids).to(device, torch.long)[None],
            position_ids=torch.from_numpy(positions).to(device)[None],
            use_cache=False,
            logits_to_keep=torch.tensor(kept, dtype=torch.long, device=device),
            packed=make_plan(self.store, chunks, self.shape.group, dtype, total + padding),
        )
        logits: Tensor = out.logits[0, : len(last)].float()
        return logits

    def _leave(self, job: Job) -> None:
        self._running.remove(job)
        if job.sequence is not None:
            self.cache.close(job.sequence, self.reuse)


def _serve(reference: weakref.ref[Engine], wake: Condition, inbox: list[Job]) -> None:
    """The worker thread of one engine; it ends when the engine is gone."""
    with torch.inference_mode():
        while True:
            with wake:
                if not inbox:
                    wake.wait(CHECK_SECONDS)
            engine = reference()
            if engine is None:
                return
            engine._run()
            del engine


def _resolve(future: Future[Completion], result: Completion | Exception) -> None:
    """Set a future's result unless it has been cancelled, which can happen at any moment."""
    try:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
    except InvalidStateError:
        pass


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a completion, as `model.generate` and the tokenizer know them."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)


_engines: dict[tuple[str, str, str | None], tuple[object, Engine]] = {}
_loading = Lock()
