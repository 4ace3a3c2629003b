"""The engine against transformers, and against itself: alone or in a batch, with or without reuse, in any chunks."""

from __future__ import annotations

import random
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, LlamaConfig

from persona_tasks.embedded.chat import Chat, ChatTemplateError
from persona_tasks.embedded.engine import Completion, ContextOverflow, Engine, Request, UnsupportedModel
from persona_tasks.embedded.limits import GIB, ModelShape, default_kv_bytes
from persona_tasks.embedded.sampling import CANDIDATES, sample
from tests.tiny import CHATML, TEMPLATES, tiny_model_folder, tiny_tokenizer

LENGTHS = (1, 3, 17, 63, 64, 65, 130, 511, 513, 700)


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """For tiny models, threads that wait for each other take longer than the work, on a busy machine 100 times."""
    before = torch.get_num_threads()
    if not request.node.get_closest_marker("embedded"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompt(length: int, seed: int = 0) -> list[int]:
    numbers = random.Random(f"{length} {seed}")
    return [numbers.randrange(2, 300) for _ in range(length)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def engine(folder: Path) -> Engine:
    return Engine.load(str(folder), "float32")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def transformers_greedy(model: Any, ids: list[int], tokens: int) -> list[int]:
    x = torch.tensor([ids])
    out = model.generate(x, attention_mask=torch.ones_like(x), do_sample=False, max_new_tokens=tokens)
    return out[0, len(ids) :].tolist()


def exact(completions: list[Completion]) -> list[tuple[list[int], list[float]]]:
    """Everything the model computed, to the last bit."""
    return [(c.ids, [entry.logprob for entry in c.logprobs or []]) for c in completions]


@pytest.mark.parametrize("reuse", [True, False])
def test_greedy_is_what_transformers_generates(folder: Path, reference: Any, reuse: bool) -> None:
    prompts = [prompt(n) for n in LENGTHS]
    expected = [transformers_greedy(reference, p, 30) for p in prompts]
    engine = Engine.load(str(folder), "float32", reuse=reuse)
    for _ in range(2):
        assert [c.ids for c in engine.generate([Request(p, 30) for p in prompts])] == expected
    assert (engine.stats.reused_tokens > 0) == reuse


@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads"), [("bfloat16", 4, 2), ("bfloat16", 4, 4), ("bfloat16", 6, 2), ("float32", 6, 2)]
)
def test_no_bit_depends_on_the_batch_the_chunks_or_the_cache(
    tmp_path: Path, dtype: str, heads: int, kv_heads: int
) -> None:
    folder = str(
        tiny_model_folder(
            tmp_path, hidden_size=96, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=16
        )
    )
    requests = [Request(prompt(n), 10, logprobs=0) for n in (1, 3, 63, 64, 130, 513, 700)]
    alone = Engine.load(folder, dtype, reuse=False)
    expected = exact([c for request in requests for c in alone.generate([request])])
    for chunk in (512, 37):
        for reuse in (False, True):
            engine = Engine.load(folder, dtype, chunk=chunk, reuse=reuse)
            assert exact(engine.generate(requests)) == expected
            # forks in the middle of a prompt, then the prompts again: taken from the cache as far as they go
            engine.generate([Request([*r.prompt[: len(r.prompt) // 2], 7, 8], 3) for r in requests])
            assert exact(engine.generate(requests[::-1])) == expected[::-1]


def test_the_next_turn_costs_its_new_tokens(engine: Engine) -> None:
    first = prompt(300)
    [answer] = engine.generate([Request(first, 20)])
    before = engine.stats.computed_tokens
    [second] = engine.generate([Request([*first, *answer.ids, *prompt(10, seed=1)], 20)])
    # the last generated token was never fed to the model
    assert second.reused_tokens == 300 + 19
    assert engine.stats.computed_tokens - before == 1 + 10


def test_prompts_that_share_a_prefix_compute_it_once(engine: Engine) -> None:
    persona = prompt(600)
    engine.generate([Request([*persona, *prompt(20, seed)], 5) for seed in range(8)])
    assert engine.stats.prompt_tokens == 8 * 620
    assert engine.stats.computed_tokens <= 600 + 8 * 20


def test_nested_prefixes_are_shared_too(engine: Engine) -> None:
    persona = prompt(300)
    dialogues = [[*persona, *prompt(200, seed)] for seed in range(3)]
    engine.generate([Request([*dialogue, *prompt(10, seed)], 5) for seed in range(4) for dialogue in dialogues])
    assert engine.stats.computed_tokens <= 300 + 3 * 200 + 12 * 10


def test_reuse_ends_at_the_first_difference(engine: Engine) -> None:
    first = prompt(200)
    engine.generate([Request(first, 5)])
    other = [*first[:150], (first[150] + 1) % 300, *first[151:]]
    [completion] = engine.generate([Request(other, 5)])
    assert completion.reused_tokens == 150
    [again] = engine.generate([Request(first, 5)])  # the fork left the original as it was
    assert again.reused_tokens == 199


def test_little_memory_evicts_and_queues_but_changes_nothing(folder: Path, engine: Engine) -> None:
    per_token = engine.shape.bytes_per_token(torch.float32)
    small = Engine.load(str(folder), "float32", kv_bytes=640 * per_token)
    assert small.max_length == 640
    requests = [Request(prompt(n, seed), 20) for n in (30, 250, 500) for seed in range(5)]
    expected = [c.ids for c in engine.generate(requests)]
    for _ in range(2):
        assert [c.ids for c in small.generate(requests)] == expected
    small.cache.clear()
    assert small.store._free == [(0, 640)]


def test_keys_and_values_have_a_quarter_of_the_memory_and_take_it_only_when_used(folder: Path) -> None:
    room = default_kv_bytes(torch.device("cpu"))
    assert GIB <= room <= max(GIB, psutil.virtual_memory().total // 4)
    before = psutil.Process().memory_info().rss
    engine = Engine.load(str(folder), "float32")
    assert engine.store.slots * engine.shape.bytes_per_token(torch.float32) > room / 2
    assert psutil.Process().memory_info().rss - before < GIB / 2


def test_more_requests_than_may_be_active(folder: Path, engine: Engine) -> None:
    requests = [Request(prompt(20, seed), 10) for seed in range(9)]
    narrow = Engine.load(str(folder), "float32", max_active=2)
    assert exact(narrow.generate(requests)) == exact(engine.generate(requests))


def test_a_short_request_overtakes_a_long_one(engine: Engine) -> None:
    long = engine.submit(Request(prompt(20), 1500))
    while not engine.stats.generated_tokens:
        time.sleep(0.001)
    assert engine.submit(Request(prompt(30), 3)).result().completion_tokens <= 3
    assert not long.done()
    long.cancel()


def test_a_cancelled_request_leaves_the_batch(engine: Engine) -> None:
    future = engine.submit(Request(prompt(20), 2000))
    while not engine.stats.generated_tokens:
        time.sleep(0.001)
    assert future.cancel()
    engine.generate([Request(prompt(30), 3)])
    assert not engine.cache.active and engine.stats.generated_tokens < 1000


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_requests_share_a_batch(engine: Engine, backend: str) -> None:
    pytest.importorskip(backend)
    requests = [Request(prompt(20, seed), 10) for seed in range(50)]
    results: dict[int, Completion] = {}

    async def main() -> None:
        async def one(index: int) -> None:
            results[index] = await engine.complete(requests[index])

        async with anyio.create_task_group() as group:
            for index in range(len(requests)):
                group.start_soon(one, index)

    anyio.run(main, backend=backend)
    assert engine.stats.steps < 100
    engine.cache.clear()
    assert exact([results[i] for i in range(50)]) == exact(engine.generate(requests))


def test_giving_up_on_an_async_request_cancels_it(engine: Engine) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.05):
            await engine.complete(Request(prompt(20), 2000))

    anyio.run(main)
    engine.generate([Request(prompt(30), 3)])
    assert not engine.cache.active


def test_a_prompt_that_does_not_fit_is_an_error_and_never_cut(engine: Engine) -> None:
    fits = Request(prompt(10), 10)
    with pytest.raises(ContextOverflow, match=r"2000 prompt tokens and 49 to generate are more than the 2048"):
        engine.generate([fits, Request(prompt(2000), 49)])
    with pytest.raises(ContextOverflow):
        engine.submit(Request(prompt(2048)))
    assert engine.stats.steps == 0
    assert engine.generate([Request(prompt(2000), 48)])[0].prompt_tokens == 2000


def test_stop_reasons(engine: Engine) -> None:
    engine.eos = frozenset()
    [whole] = engine.generate([Request(prompt(2040))])
    assert (whole.stop_reason, whole.completion_tokens) == ("model_length", 8)
    [cut] = engine.generate([Request(prompt(40), 8)])
    assert (cut.stop_reason, cut.completion_tokens) == ("max_tokens", 8)
    engine.eos = frozenset({cut.ids[4]})
    [ended] = engine.generate([Request(prompt(40), 8)])
    first = cut.ids.index(cut.ids[4])
    assert (ended.stop_reason, ended.ids) == ("stop", cut.ids[: first + 1])
    assert ended.text == engine.tokenizer.decode(cut.ids[:first], skip_special_tokens=True)


def test_a_stop_sequence_ends_the_text_before_it(engine: Engine) -> None:
    engine.eos = frozenset()
    [whole] = engine.generate([Request(prompt(40), 60)])
    stop = whole.text[20:24]  # may lie across tokens
    [cut] = engine.generate([Request(prompt(40), 60, stop=("not in there", stop))])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.stop_reason == "stop" and cut.completion_tokens < 60


@pytest.mark.parametrize("bad", [Request([]), Request([3], max_tokens=0)])
def test_senseless_requests(engine: Engine, bad: Request) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        engine.generate([bad])


def test_logprobs_are_those_of_the_model(engine: Engine, reference: Any) -> None:
    ids = prompt(40)
    [completion] = engine.generate([Request(ids, 4, logprobs=5)])
    assert completion.logprobs is not None
    with torch.no_grad():
        logits = reference(torch.tensor([ids + completion.ids])).logits[0, len(ids) - 1 : -1]
    for token, entry, row in zip(completion.ids, completion.logprobs, logits.log_softmax(-1), strict=True):
        best = row.topk(5)
        assert entry.id == token and entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [other.id for other in entry.top] == best.indices.tolist()
        assert [other.logprob for other in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_seed_makes_sampling_repeatable_in_any_company(engine: Engine) -> None:
    def request(seed: int | None, start: int = 0) -> Request:
        return Request(prompt(20, start), 15, temperature=3.0, top_p=0.95, seed=seed)

    [alone] = engine.generate([request(1)])
    crowd = engine.generate([request(5, 2), request(1), request(2), *[request(3, i) for i in range(1, 6)]])
    assert crowd[1].ids == alone.ids
    assert len({tuple(c.ids) for c in crowd}) == len(crowd)
    free = engine.generate([request(None), request(None)])
    assert free[0].ids != free[1].ids


def test_sampling_follows_temperature_top_k_and_top_p() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.0])
    draws = [(i + 0.5) / 1000 for i in range(1000)]

    def shares(temperature: float, top_p: float | None = None, top_k: int | None = None) -> list[float]:
        counts = Counter(sample(logits, temperature, top_p, top_k, draw) for draw in draws)
        return [counts[i] / 1000 for i in range(5)]

    assert shares(2.0) == pytest.approx((logits / 2).softmax(-1).tolist(), abs=0.002)
    two = (logits[[1, 2]]).softmax(-1).tolist()
    assert shares(1.0, top_k=2) == pytest.approx([0, two[0], two[1], 0, 0], abs=0.002)
    # the best has 0.64, the two best 0.87: both are needed for 0.7
    assert shares(1.0, top_p=0.7) == pytest.approx([0, two[0], two[1], 0, 0], abs=0.002)
    assert shares(1.0, top_p=0.0) == [0, 1, 0, 0, 0]
    assert shares(1.0, top_p=0.5, top_k=4) == [0, 1, 0, 0, 0]


def test_top_p_is_exact_where_the_likeliest_tokens_do_not_suffice() -> None:
    flat = torch.zeros(4 * CANDIDATES)
    drawn = {sample(flat, 1.0, 0.75, None, i / 2000) for i in range(2000)}
    assert len(drawn) == 3 * CANDIDATES


def test_a_failing_step_fails_its_requests_and_nothing_else(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_forward", broken)
        with pytest.raises(MemoryError, match="no more"):
            engine.generate([Request(prompt(20), 5), Request(prompt(30), 5)])
    assert engine.generate([Request(prompt(20), 5)])[0].completion_tokens == 5


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"layer_types": ["full_attention", "linear_attention"]},
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    made = LlamaConfig(num_hidden_layers=2)
    for key, value in config.items():
        setattr(made, key, value)
    with pytest.raises(UnsupportedModel):
        ModelShape.of(made)


def test_an_engine_that_nobody_holds_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona_tasks.embedded.engine.CHECK_SECONDS", 0.01)
    engine = Engine.load(str(folder), "float32")
    engine.generate([Request(prompt(20), 5)])
    thread, gone = engine._thread, weakref.ref(engine)
    del engine
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive() and gone() is None


MESSAGES = [
    {"role": "system", "content": "You are Mina."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who are you?"},
]


@pytest.fixture
def chats() -> Callable[[str], Chat]:
    return lambda template: Chat(tiny_tokenizer(TEMPLATES[template]))


def test_the_persona_is_never_lost(chats: Callable[[str], Chat]) -> None:
    assert chats("chatml").text(MESSAGES).startswith("<|im_start|>system\nYou are Mina.<|im_end|>\n")
    for template in ("no_system", "ignores_system"):
        text = chats(template).text(MESSAGES)
        assert text.startswith("<|im_start|>user\nYou are Mina.\n\nHi<|im_end|>\n")
        assert text.count("You are Mina.") == 1 and text.endswith("<|im_start|>assistant\n")
    opening = chats("no_system").text(MESSAGES[:1] + MESSAGES[2:])
    assert opening.startswith("<|im_start|>user\nYou are Mina.<|im_end|>\n<|im_start|>assistant\nHello.")


def test_no_chat_template_or_one_that_says_no(chats: Callable[[str], Chat]) -> None:
    with pytest.raises(ChatTemplateError, match="no chat template"):
        chats("none").ids(MESSAGES)
    with pytest.raises(ChatTemplateError, match="roles system, user: System role not supported"):
        strict = chats("no_system")
        strict.system = True
        strict.ids(MESSAGES[:2])


def test_the_begin_token_comes_from_the_template_alone() -> None:
    tokenizer = tiny_tokenizer("<|im_start|>" + CHATML)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
    )
    assert tokenizer("Hi").input_ids[0] == 0
    ids = Chat(tokenizer).ids(MESSAGES)
    assert ids[:2] == [0, 0] and ids[2] != 0  # one from the beginning of the template, one of the first message


PERSONAS = [
    "You are Mina, a 34 year old nurse from Leeds. You never learned to drive and your sister visits on Sundays.",
    "You are Oskar, ten years old. You hate school, you love trains, and you never use long words.",
    "You are Ruth, a retired judge of 71. You are short with people and you do not like small talk.",
]
QUESTIONS = ["What did you do on Sunday?", "How do you get to work?", "Tell me about your family.", "What do you want?"]


@pytest.mark.embedded
def test_the_embedded_model_computes_the_same_bits_in_any_company() -> None:
    """The claim of attention.py, on the real model: 8 short prompts and one over several blocks."""
    engine = Engine.load()
    dialogues = [(persona, question) for persona in PERSONAS for question in QUESTIONS][:8]
    prompts = [
        engine.chat.ids([{"role": "system", "content": persona}, {"role": "user", "content": question}])
        for persona, question in dialogues
    ]
    prompts.append(
        engine.chat.ids([{"role": "system", "content": " ".join(PERSONAS * 9)}, {"role": "user", "content": "Who?"}])
    )
    assert len(prompts[-1]) > 512
    requests = [Request(p, 40, logprobs=0) for p in prompts]
    engine.reuse = False
    alone = exact([c for request in requests for c in engine.generate([request])])
    together = exact(engine.generate(requests))
    engine.reuse = True
    shared = exact(engine.generate(requests))
    reused = engine.generate(requests)
    assert together == alone
    assert shared == alone
    assert exact(reused) == alone and all(c.reused_tokens == c.prompt_tokens - 1 for c in reused)
    # a second turn: its past was generated one token at a time, or is computed in one go
    seconds = [
        Request([*p, *c.ids, *engine.tokenizer("<|im_end|>\n<|im_start|>user\nWhy?").input_ids], 10, logprobs=0)
        for p, c in zip(prompts, reused, strict=True)
    ]
    continued = exact(engine.generate(seconds))
    engine.reuse = False
    assert exact(engine.generate(seconds)) == continued


@pytest.mark.embedded
def test_the_embedded_model_speaks() -> None:
    engine = Engine.load()
    assert engine.chat.system and engine.eos == {2}
    messages = [{"role": "system", "content": PERSONAS[0]}, {"role": "user", "content": "What is your name?"}]
    [completion] = engine.generate([Request(engine.chat.ids(messages), 40)])
    assert "Leeds" in completion.text  # and that her name is Elara: it drifts from its first line on
