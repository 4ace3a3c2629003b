"""Who continues token ids during a rollout, always with the weights that are being trained.

`EngineVoice` runs our engine (`persona_tasks.embedded.engine`) over the trainer's own modules: keys and values are
kept from turn to turn, so a turn costs its new tokens only, where transformers' `generate` computes the whole
dialogue again. An adapter is merged into its base meanwhile, as it is when the result is used: half as fast again.
When the rollout ends the base is put back bit by bit, the attention function is switched back, and keys and values
are forgotten, because the next update makes them wrong. `TrainerVoice` asks TRL's trainer, which asks vLLM or
transformers' `generate`.

**What is sampled from is what is trained.** The policy is

    pi(v | context) = softmax_v((logits_v - f * count_v) / T)

with temperature T, frequency penalty f and count_v, how often v was said in this line so far (OpenAI's definition).
`training.credit.spoken_logprobs` computes the same in the training pass, so that the importance ratio is 1 before the
first update. In bfloat16 the rounding of merged weights comes between the two: persona/sim-135m's log-probabilities
differ by .04 in the mean of their magnitude and .00 in their mean. The penalty depends on what was said before, as any
policy may; it needs no correction. Truncation (top-p, top-k, min-p) is another matter: the set that is kept changes
with the weights, and a token can fall out of it. It is therefore off in training, and no recipe has a key for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, tensor

from persona_tasks.embedded.attention import NAME
from persona_tasks.embedded.engine import Engine, Request


@dataclass(frozen=True)
class Wanted:
    """A context to be continued.

    Attributes:
        limit: At most so many tokens.
        seed: The same context and seed get the same continuation, from a voice that can.
    """

    context: list[int]
    limit: int
    seed: int


@dataclass(frozen=True)
class Said:
    """A continuation.

    Attributes:
        ids: With the token that ended it, if one did.
        logprobs: As the sampler computed them, where the trainer needs that (vLLM).
    """

    ids: list[int]
    logprobs: list[float] | None = None


class Voice(Protocol):
    """Continues contexts between ``with voice:`` and the end of the block; the weights do not change meanwhile."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, wanted: Sequence[Wanted]) -> list[Said]:
        """Continue all of them; the answers are in their order."""


class EngineVoice:
    """Our engine over a model that is being trained."""

    def __init__(self, model: Any, tokenizer: Any, temperature: float, frequency_penalty: float):
        self.adapted = model if isinstance(model, PeftModel) else None
        self.model = model.get_base_model() if self.adapted else model
        self.attention: str = self.model.config._attn_implementation
        self.temperature, self.frequency_penalty = temperature, frequency_penalty
        training = self.model.training
        self.engine = Engine(self.model, tokenizer)  # takes the model over, until we give it back
        self.model.set_attn_implementation(self.attention)
        self.model.train(training)

    def __enter__(self) -> EngineVoice:
        self.training = self.model.training
        self.model.eval()
        self.model.set_attn_implementation(NAME)
        self.base: dict[str, Tensor] = {}
        if self.adapted:
            self.base = {n: part.detach().clone() for n, part in self.model.named_parameters() if "base_layer" in n}
            self.adapted.merge_adapter(["default"])
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.cache.clear()
        if self.adapted:
            self.adapted.unmerge_adapter()  # by subtraction, which leaves rounding errors behind
            with torch.no_grad():
                for name, weight in self.base.items():
                    self.model.get_parameter(name).copy_(weight)
            self.base.clear()
        self.model.set_attn_implementation(self.attention)
        self.model.train(self.training)

    def __call__(self, wanted: Sequence[Wanted]) -> list[Said]:
        completions = self.engine.generate(
            [
                Request(
                    one.context,
                    one.limit,
                    temperature=self.temperature,
                    frequency_penalty=self.frequency_penalty,
                    seed=one.seed,
                )
                for one in wanted
            ]
        )
        return [Said(completion.ids) for completion in completions]


class TrainerVoice:
    """TRL's own generation: vLLM, or transformers' `generate`.

    With a vLLM server, ZeRO-3 or FSDP a call is a collective: every process must make as many calls, with as many
    rows, as every other. Processes whose dialogues are over, or fewer, join in with a filler that nobody reads.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def __enter__(self) -> TrainerVoice:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        while kind is None and self._round([]) is not None:
            pass

    def __call__(self, wanted: Sequence[Wanted]) -> list[Said]:
        said = self._round(wanted)
        return said or []

    def _round(self, wanted: Sequence[Wanted]) -> list[Said] | None:
        """One call in all processes; None when no process wants anything any more."""
        trainer = self.trainer
        own = tensor([len(wanted)], device=trainer.accelerator.device)
        rows = int(trainer.accelerator.gather(own).max())
        if not rows:
            return None
        contexts = [one.context for one in wanted] + [[trainer.eos_token_ids[0]]] * (rows - len(wanted))
        ids, logprobs = trainer._generate_single_turn(contexts, None, {}, num_generations=1)
        return [
            Said(list(ids[row][: one.limit]), list(logprobs[row][: one.limit]) if logprobs is not None else None)
            for row, one in enumerate(wanted)
        ]
