"""A request type of our own: one request is one dialogue, and turn t of all dialogues is one `generate_until` call.

lm-eval's evaluator runs ``getattr(lm, request_type)(requests)`` once per request type. A method of that name on `LM`
therefore gets all dialogues of this process at once, of all tasks, and may call ``self.generate_until`` as often as
it likes. Adding it overrides nothing. `CachingLM` gets it too, so that the calls inside go through `--use_cache`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from logging import getLogger
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM

from persona_tasks.lm_eval_tasks.render import Renderer
from persona_tasks.lm_eval_tasks.roles import Role, open_role
from persona_tasks.lm_eval_tasks.settings import Settings
from persona_tasks.personas import load_bank
from persona_tasks.protocol.asks import Answer, Ask, Dialogue, Failure, Message
from persona_tasks.protocol.limits import LINE_TOKENS, PROBE_TOKENS
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.play import blank, play
from persona_tasks.transcript import Transcript

logger = getLogger("lm_eval.persona_tasks")  # shown, formatted and filtered like the harness's own

REQUEST_TYPE = "persona_drift_dialogue"
# lm-eval knows the limit under these names, the first given one counts.
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass
class DialogueRequest(Instance):  # type: ignore[misc]
    """One dialogue to hold. Its arguments are the first prompt (for the log), generation options and settings.

    Attributes:
        lm: The model that held it, so that the task can gather over its ranks.
    """

    lm: Any = None


def persona_drift_dialogue(self: Any, requests: Sequence[DialogueRequest]) -> list[str]:
    """Hold all dialogues; becomes a method of `LM`.

    Returns:
        One transcript as JSON per request, in their order.
    """
    alike: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(json.dumps(request.args[1:], sort_keys=True, default=str), []).append(number)
    # The same request comes again for each of the task's `repeats`: like Inspect's epochs, with the next seed.
    seen: Counter[tuple[str, int]] = Counter()
    repeats = []
    for request in requests:
        repeats.append(seen[request.task_name, request.doc_id])
        seen[request.task_name, request.doc_id] += 1

    transcripts: dict[int, str] = {}
    with one_batch_size(self):
        for numbers in alike.values():
            _, options, settings = requests[numbers[0]].args
            held = Rollout(self, options, settings).hold([(requests[n].doc, repeats[n]) for n in numbers])
            transcripts |= {n: t.model_dump_json(exclude_defaults=True) for n, t in zip(numbers, held, strict=True)}
    for request in requests:
        request.lm = self
    return [transcripts[number] for number in range(len(requests))]


for holder in (LM, CachingLM):
    setattr(holder, REQUEST_TYPE, persona_drift_dialogue)


class Rollout:
    """Dialogues with the same settings, answered in lockstep.

    Args:
        lm: The evaluated model, possibly under lm-eval's cache.
        options: lm-eval's generation options (`--gen_kwargs`).
        settings: `Settings.in_rollout`, with `form` and `system_instruction`.
    """

    def __init__(self, lm: Any, options: dict[str, Any], settings: dict[str, Any]):
        self.lm = lm
        self.settings = Settings.model_validate(settings)
        self.instruction: str = settings["system_instruction"]
        self.renderer = Renderer(lm, settings["form"])
        limits = [options[name] for name in TOKEN_LIMITS if options.get(name) is not None]
        self.line_tokens = int(limits[0]) if limits else LINE_TOKENS
        self.options = {name: value for name, value in options.items() if name not in TOKEN_LIMITS}
        until = self.options.get("until") or []
        self.options["until"] = [*([until] if isinstance(until, str) else until), *self.renderer.stops]
        self.partner = self._partner()

    def _partner(self) -> Role | None:
        chosen = self.settings
        if chosen.partner == "scripted":
            return None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and self.lm.world_size == 1:
            raise ValueError(
                "tensor parallel runs need the scripted partner: each process would ask a model of its own"
            )
        return open_role(chosen.partner, "partner", chosen.endpoint_connections, chosen.endpoint_timeout)

    def hold(self, wanted: Sequence[tuple[dict[str, Any], int]]) -> list[Transcript]:
        """Hold one dialogue per document and repetition."""
        dialogues = [self._open(doc["persona_id"], repeat) for doc, repeat in wanted]
        transcripts = lockstep(dialogues, self.answer)
        for transcript in transcripts:
            transcript.metadata["form"] = self.renderer.form
            if self.renderer.folds:
                transcript.metadata["persona_in_first_message"] = True
            if transcript.ended:
                logger.warning("%s ended early: %s", transcript.id, transcript.ended)
        return transcripts

    def _open(self, persona_id: str, repeat: int) -> Dialogue[Transcript]:
        chosen = self.settings
        bank = load_bank(chosen.personas)
        persona = bank.persona(persona_id)
        scenario = bank.scenarios[persona.scenario]
        seed, kind = chosen.seed + repeat, "scripted" if self.partner is None else "model"
        script = bank.scripts.get(scenario.id)
        partner = make_partner(persona, scenario, script, chosen.turns, seed, kind)  # type: ignore[arg-type]
        transcript = blank(persona, scenario, partner, seed)
        transcript.model = model_name(self.lm)
        transcript.metadata = {"epoch": repeat + 1, "split": persona.split}
        if self.partner is not None:
            transcript.metadata["partner"] = self.partner.name
        return play(persona, scenario, partner, chosen.turns, chosen.after, chosen.probe_mode, seed, transcript)

    def answer(self, asks: list[Ask]) -> list[Answer]:
        """Everything that all dialogues ask at this moment: one call of each model."""
        first = asks[0]
        logger.info("%d answers: %s, turn %d of %d", len(asks), first.purpose, first.turn, self.settings.turns)
        replies = [ask for ask in asks if ask.role == "partner"]
        replied = iter(self.partner.answer(replies) if self.partner is not None and replies else [])
        said = iter(self._generate([ask for ask in asks if ask.role == "simulator"]))
        return [next(replied) if ask.role == "partner" else next(said) for ask in asks]

    def _generate(self, asks: list[Ask]) -> list[Answer]:
        answers: list[Answer] = []
        batch: list[Instance] = []
        for ask in asks:
            tokens = PROBE_TOKENS if ask.purpose == "probe" else self.line_tokens
            prompt = self.renderer.render(self._messages(ask))
            if not self.renderer.fits(prompt, tokens):
                answers.append(Failure("the context window is full"))
                continue
            answers.append("")
            arguments = (prompt, {**deepcopy(self.options), "max_gen_toks": tokens})  # backends add stops in place
            batch.append(Instance("generate_until", {}, arguments, len(answers) - 1))
        texts = self.lm.generate_until(batch) if batch else []
        for request, text in zip(batch, texts, strict=True):
            answers[request.idx] = text
        return answers

    def _messages(self, ask: Ask) -> tuple[Message, ...]:
        first, *rest = ask.messages
        if not self.instruction or first.role != "system":
            return ask.messages
        return (Message("system", f"{self.instruction}\n\n{first.content}"), *rest)


@contextmanager
def one_batch_size(lm: Any) -> Iterator[None]:
    """With `--batch_size auto`, lm-eval's hf model looks for the largest batch in every call; here it does once."""
    lm = getattr(lm, "lm", lm)
    if getattr(lm, "batch_size_per_gpu", None) != "auto" or not hasattr(lm, "_detect_batch_size"):
        yield
        return
    lm.batch_size_per_gpu = lm._detect_batch_size()
    logger.info("batch size %s", lm.batch_size_per_gpu)
    try:
        yield
    finally:
        lm.batch_size_per_gpu = "auto"


def model_name(lm: Any) -> str:
    """A name for the transcript: path, repository or endpoint's model."""
    lm = getattr(lm, "lm", lm)
    names = (getattr(lm, "pretrained", None), getattr(lm, "model", None), type(lm).__name__)
    return next(name for name in names if isinstance(name, str))
