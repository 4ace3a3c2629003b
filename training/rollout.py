"""The token driver: `play`'s dialogues as token ids, in lockstep, for training.

    rollout = Rollout(personas, bank, template, turns=6, seed=0)
    with voice:
        spoken = rollout.hold(["therapy-train-01"] * 8, step=1, voice=voice)

Turn t of all dialogues is one batch. Token ids are appended and never tokenised again:

    context_1   = the system message and the partner's opening, rendered by the chat template
    context_t+1 = context_t + the ids that the simulator sampled + the template's ids around the partner's next line

so every line is trained on exactly the ids that it was sampled after. Partner's tokens, and the end token that is put
behind a line cut by the limit, are not the simulator's and are marked with the turn -1. The persona's questions are
asked on copies of the context after the last line and leave no trace in it. Dialogues of one group have the same
persona, the same partner's lines and the same questions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from persona_tasks.embedded.chat import SENTINEL, Chat
from persona_tasks.lm_eval_tasks.roles import Role
from persona_tasks.personas import Bank, Persona
from persona_tasks.protocol.asks import Answer, Ask, Dialogue, Failure, Message
from persona_tasks.protocol.limits import LINE_TOKENS, PROBE_TOKENS, REPLY_TOKENS
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.protocol.partners import PartnerKind, fill, make_partner
from persona_tasks.protocol.play import play, question_text
from persona_tasks.protocol.prompts import simulator_prompt
from persona_tasks.transcript import ProbeMode, Transcript
from training.voices import Voice, Wanted


class RolloutError(RuntimeError):
    """No dialogues can be held like this. The message says what is in the way."""


class Template:
    """A chat template as token ids.

    Args:
        tokenizer: With a chat template.
        ends: Tokens that end a line.

    Raises:
        RolloutError: A line does not stand in the history as it stood when it was sampled (the template strips or adds
            something), or does not end with one of `ends`. The simulator would be trained on contexts it never saw.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int]):
        self.tokenizer, self.ends = tokenizer, frozenset(ends)
        self.chat = Chat(tokenizer)
        opening = [{"role": "system", "content": "You are Mina."}, {"role": "user", "content": "How are you?"}]
        said = self.chat.text(opening) + "Fine."
        more = [{"role": "assistant", "content": "Fine."}, {"role": "user", "content": "And now?"}]
        if not (whole := self.chat.text([*opening, *more])).startswith(said):
            raise RolloutError(
                "the chat template is not prefix-preserving: after an assistant's line and a user's, it renders "
                f"{whole[: len(said)]!r} where {said!r} stood when the line was sampled. Give the tokenizer a template "
                "that leaves earlier turns as they are"
            )
        first = self.reply("And now?", cut=True)[:1]
        if not self.ends.intersection(first):
            raise RolloutError(
                f"the chat template ends a line with {tokenizer.decode(first)!r}, which does not end generation; "
                "set the model's eos_token_id to the token that does"
            )

    def start(self, messages: Sequence[Message]) -> list[int]:
        """A conversation's beginning, up to where the simulator speaks."""
        return self.chat.ids([message._asdict() for message in messages])

    def reply(self, line: str, cut: bool) -> list[int]:
        """What stands between two lines of the simulator when the partner says `line` in between.

        Args:
            cut: The line before did not end by itself, so the end token is missing too.
        """
        roles = [("user", "Hello"), ("assistant", SENTINEL), ("user", line)]
        text = self.chat.text([{"role": role, "content": content} for role, content in roles])
        ids = self.tokenizer(text.split(SENTINEL, 1)[1], add_special_tokens=False)["input_ids"]
        return list(ids if cut else ids[1:])


@dataclass
class Spoken:
    """A dialogue in words and in tokens.

    Attributes:
        prompt: Ids before the first line.
        ids: All after it.
        turns: For each of `ids` the line it belongs to, from 0; -1 for what the simulator did not say.
        logprobs: For each of `ids`, 0 where the turn is -1; empty where the voice gives none.
    """

    transcript: Transcript
    prompt: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def append(self, ids: Sequence[int], turn: int, logprobs: Sequence[float] | None) -> None:
        self.ids += ids
        self.turns += [turn] * len(ids)
        if logprobs is not None:
            self.logprobs += logprobs

    @property
    def context(self) -> list[int]:
        return [*self.prompt, *self.ids]


def speak(
    talk: Dialogue[Transcript], template: Template, seed: str, line_tokens: int, max_length: int
) -> Generator[list[Wanted] | list[Ask], list[Any], Spoken]:
    """Turn one dialogue's asks into contexts to be continued, and the continuations into its answers.

    Args:
        talk: What `play` returned, not yet started.
        seed: Of this dialogue alone; each turn and question draws its own from it.
        line_tokens: At most so many tokens a line.
        max_length: The model's context. A dialogue that would outgrow it ends.

    Yields:
        Lists of `Wanted` to be answered by as many `Said`, or a partner's asks.
    """
    spoken = Spoken(Transcript(id="", persona_id="", persona_text=""))
    cut = False
    full = Failure(f"the context of {max_length} tokens is full")
    answers: list[Answer] | None = None
    while True:
        try:
            asks = next(talk) if answers is None else talk.send(answers)
        except StopIteration as end:
            spoken.transcript = end.value
            return spoken
        purpose, turn = asks[0].purpose, asks[0].turn
        if purpose == "reply":
            answers = yield asks
        elif purpose == "line":
            if turn == 1:
                spoken.prompt = template.start(asks[0].messages)
                between = []
            else:
                between = template.reply(asks[0].messages[-1].content, cut)
            if len(spoken.context) + len(between) + line_tokens > max_length:
                answers = [full]
                continue
            wanted = Wanted(spoken.context + between, line_tokens, _seed(seed, turn))
            [said] = yield [wanted]
            spoken.append(between, -1, None if said.logprobs is None else [0.0] * len(between))
            spoken.append(said.ids, turn - 1, said.logprobs)
            cut = said.ids[-1] not in template.ends
            answers = [template.tokenizer.decode(said.ids, skip_special_tokens=True)]
        elif turn == 0:  # questions without a persona: a floor for scores, of no use here
            answers = [Failure("not asked in training") for _ in asks]
        else:
            forks = [spoken.context + template.reply(ask.messages[-1].content, cut) for ask in asks]
            fitting = [number for number, fork in enumerate(forks) if len(fork) + PROBE_TOKENS <= max_length]
            answers = [full for _ in asks]
            heard = yield [Wanted(forks[n], PROBE_TOKENS, _seed(seed, turn, n)) for n in fitting]
            for number, said in zip(fitting, heard, strict=True):
                answers[number] = template.tokenizer.decode(said.ids, skip_special_tokens=True)


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "little")


@dataclass
class Rollout:
    """Holds the dialogues of a training step.

    Attributes:
        personas: By id; those that may be asked for.
        template: The simulator's.
        max_length: The simulator's context.
        partner: A model that talks to the simulator; None for the script of the personas' split.
        questions: How many of a persona's questions are asked after the last turn; another choice at every step.
    """

    personas: dict[str, Persona]
    bank: Bank
    template: Template
    max_length: int
    turns: int
    seed: int = 0
    partner: Role | None = None
    questions: int = 0
    mode: ProbeMode = "choice"
    line_tokens: int = LINE_TOKENS

    def hold(self, names: Sequence[str], step: int, voice: Voice, first: int = 0) -> list[Spoken]:
        """Hold one dialogue for each of `names`, persona ids that may repeat.

        Args:
            step: Numbers the rollouts of a run: with the seed it decides what partner and simulator draw.
            voice: The simulator's; inside its ``with`` block.
            first: The number of the first dialogue among those of all processes.

        Raises:
            RolloutError: The partner answered nothing at all.
        """
        numbers = range(first, first + len(names))
        talks: list[Any] = [self._dialogue(name, step, number) for name, number in zip(names, numbers, strict=True)]

        def answer(batch: Sequence[Any]) -> list[Any]:
            wanted = [one for one in batch if isinstance(one, Wanted)]
            asks = [one for one in batch if isinstance(one, Ask)]
            said = iter(voice(wanted) if wanted else [])
            replies = iter(self._replies(asks) if asks else [])
            return [next(said) if isinstance(one, Wanted) else next(replies) for one in batch]

        spoken: list[Spoken] = lockstep(talks, answer)
        for one, number in zip(spoken, numbers, strict=True):
            transcript = one.transcript
            transcript.id = f"{transcript.id}/{number}"
            transcript.probes = [probe for probe in transcript.probes if probe.persona]
            transcript.metadata = {"step": step}
        return spoken

    def _dialogue(self, name: str, step: int, number: int) -> Generator[Any, Any, Spoken]:
        seed = self.seed * 100_000 + step
        persona = self.personas[name]
        chosen = random.Random(f"{name}/{seed}").sample(persona.questions, min(self.questions, len(persona.questions)))
        persona = persona.model_copy(update={"questions": tuple(chosen)})
        scenario = self.bank.scenarios[persona.scenario]
        kind: PartnerKind = "scripted" if self.partner is None else "model"
        partner = make_partner(persona, scenario, self.bank.scripts[scenario.id], self.turns, seed, kind)
        probes = (self.turns,) if self.questions else ()
        talk = play(persona, scenario, partner, self.turns, probes, self.mode, seed)
        return speak(talk, self.template, f"{seed}/{number}", self.line_tokens, self.max_length)

    def _replies(self, asks: list[Ask]) -> list[Answer]:
        assert self.partner is not None
        replies = self.partner.answer(asks)
        failures = [reply.reason for reply in replies if isinstance(reply, Failure)]
        if len(failures) == len(asks):
            raise RolloutError(f"the partner {self.partner.name} answered nothing: {failures[0]}")
        return replies

    def longest(self) -> int:
        """The most tokens that a dialogue can have, its questions included."""
        return max(self._longest(persona) for persona in self.personas.values())

    def _longest(self, persona: Persona) -> int:
        scenario = self.bank.scenarios[persona.scenario]
        pool = self.bank.scripts[scenario.id].pool(persona.split)
        heard = self.template.reply(fill(max(pool, key=len), persona), cut=True)
        between = len(self.template.reply("", cut=True)) + REPLY_TOKENS if self.partner else len(heard)
        opening = fill(max(pool.openings, key=len), persona)
        prompt = (Message("system", simulator_prompt(persona, scenario)), Message("user", opening))
        length = len(self.template.start(prompt)) + self.turns * self.line_tokens + (self.turns - 1) * between
        if not self.questions:
            return length
        asked = [question_text(question, self.mode) for question in persona.questions]
        return length + max(len(self.template.reply(text, cut=True)) for text in asked) + PROBE_TOKENS


def as_trl(spoken: Sequence[Spoken]) -> dict[str, Any]:
    """What TRL's trainer takes from a rollout."""
    return {
        "prompt_ids": [one.prompt for one in spoken],
        "completion_ids": [one.ids for one in spoken],
        "logprobs": [one.logprobs for one in spoken] if spoken[0].logprobs else None,
        "env_mask": [[int(turn >= 0) for turn in one.turns] for one in spoken],
    }
