"""TRL's GRPO trainer on whole dialogues: what GRPO and PPO share.

TRL gives the loss (clipped ratio, KL to the base), batches, accumulation, distribution and checkpoints. From us come
the dialogues (its public hook `rollout_func`) and, by overriding three of its private methods, advantages of single
tokens, ``[B, T]``, and log-probabilities under the distribution that was sampled from, of the simulator's tokens only.
tests/test_training_grpo.py holds what this relies on.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer

from persona_tasks.monitors import MONITORS
from persona_tasks.transcript import Judged, append_jsonl
from training.credit import spoken_logprobs
from training.rewards import JudgeError, Name, Rewards, Scores, Values
from training.rollout import Rollout, RolloutError, Spoken, as_trl
from training.shared_prefix import dialogue_logits
from training.voices import EngineVoice, TrainerVoice, Voice

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is "experimental"; a test watches it
GIB = 1024**3


class DialogueTrainer(GRPOTrainer):
    """A GRPO trainer whose rows are dialogues. Subclasses give the advantages.

    Args:
        rollout: Holds the dialogues of the personas that the dataset's column `persona_id` names.
        rewards: Judges them.
        out: Folder of the run.
        engine: Generate with our engine; otherwise as TRL's arguments say.
        frequency_penalty: Part of the policy; see `training.voices`.
        sample_every: Print a dialogue every so many steps.
    """

    def __init__(
        self,
        *,
        rollout: Rollout,
        rewards: Rewards,
        out: Path,
        engine: bool,
        frequency_penalty: float,
        sample_every: int,
        **options: Any,
    ):
        self.rollout, self.rewards, self.out = rollout, rewards, out
        self.frequency_penalty, self.sample_every = frequency_penalty, sample_every
        self.rows: list[dict[str, Any]] = []
        self.turn_ids = torch.empty(0)
        functions = [_reader(name) for name in rewards.weights]
        super().__init__(reward_funcs=functions, rollout_func=self._hold, **options)
        if engine and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise RolloutError("generation=engine needs whole weights in every process: use vllm or transformers here")
        self.voice: Voice
        if engine:
            self.voice = EngineVoice(self.model, self.processing_class, self.temperature, frequency_penalty)
        else:
            self.voice = TrainerVoice(self)

    # ------------------------------------------------------------------------------------------ dialogues and rewards

    def _hold(self, prompts: Sequence[Any], _trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`. It is given the prompts only, so `self.rows` holds the rest."""
        step = self.state.global_step // self.num_iterations + 1
        names = [row["persona_id"] for row in self.rows]
        begun = time.perf_counter()
        with self.voice as voice:
            spoken = self.rollout.hold(names, step, voice, first=self.accelerator.process_index * len(names))
        held = time.perf_counter()
        try:
            scores = self.rewards.score([one.transcript for one in spoken])
        except JudgeError:
            append_jsonl(self._dialogues, [Judged(transcript=one.transcript) for one in spoken])
            raise
        judged = time.perf_counter()
        append_jsonl(self._dialogues, scores.judged)
        self.turn_ids = pad_sequence([torch.tensor(one.turns) for one in spoken], True, -1).to(self.accelerator.device)
        self._note_rollout(spoken, scores, held - begun, judged - held)
        if self.accelerator.is_main_process and step % self.sample_every == 0:
            print(f"step {step}\n{_readable(scores.judged[0], scores.rewards[0])}", flush=True)
        return {**as_trl(spoken), "rewards": scores.rewards}

    @property
    def _dialogues(self) -> Path:
        rank = self.accelerator.process_index
        return self.out / (f"dialogues.{rank}.jsonl" if rank else "dialogues.jsonl")

    def _note_rollout(self, spoken: Sequence[Spoken], scores: Scores, generation: float, judging: float) -> None:
        said = sum(turn >= 0 for one in spoken for turn in one.turns)
        transcripts = [one.transcript for one in spoken]
        notes = {
            "seconds/generation": generation,
            "seconds/judging": judging,
            "tokens/said": said,
            "tokens/per_second": said / generation,
            "judge/asks": scores.asks,
            "judge/calls": scores.calls,
            "judge/missing": scores.missing,
            "dialogues/ended_early": fmean(transcript.ended is not None for transcript in transcripts),
        } | {f"monitors/{name}": fmean(map(function, transcripts)) for name, function in MONITORS.items()}
        for name, value in notes.items():
            self.note(name, value)

    def note(self, name: str, value: float) -> None:
        """Log a number of this step."""
        self._metrics["train"][name].append(value)

    def line_rewards(self, name: Name) -> Tensor:
        """``[dialogues of all processes, turns]`` (questions: one column), NaN where there is none."""
        width = 1 if name == "qa" else self.rollout.turns
        table = torch.full((len(self.rows), width), torch.nan, device=self.accelerator.device)
        for row, inputs in enumerate(self.rows):
            for place, value in enumerate(inputs["rewards"][name]):
                if value is not None:
                    table[row, place] = value
        gathered: Tensor = self.accelerator.gather(table)
        if name != "qa":
            for turn, mean in enumerate(gathered.nanmean(0).tolist()):
                if mean == mean:  # NaN: nobody has a reward at this turn
                    self.note(f"rewards/{name}/line_{turn + 1}", mean)
        return gathered

    def own(self, table: Tensor) -> Tensor:
        """The rows of this process in a table of all."""
        count = len(self.rows)
        return table[self.accelerator.process_index * count :][:count]

    def advantages(self, output: dict[str, Tensor]) -> Tensor:
        """Advantages of the tokens of this process's dialogues, ``[B, T]``; 0 where nobody sampled."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------- TRL's methods, overridden

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.rows = inputs
        output: dict[str, Tensor] = super()._generate_and_score_completions(inputs)
        output["turn_ids"] = self.turn_ids
        output["advantages"] = self.advantages(output)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        self.turn_ids = inputs["turn_ids"]
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Of the rows whose lines are in `self.turn_ids`; 0 for partner's tokens."""
        size = batch_size or len(input_ids)
        parts = [
            self._score(model, input_ids[start : start + size], attention_mask[start : start + size], turns)
            for start, turns in zip(range(0, len(input_ids), size), self.turn_ids.split(size), strict=True)
        ]
        return torch.cat([logps for logps, _ in parts]), torch.cat([entropies for _, entropies in parts]), None

    def _score(self, model: Any, input_ids: Tensor, attention_mask: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        prompt = input_ids.shape[1] - turns.shape[1]
        columns = (turns >= 0).any(0).nonzero()[:, 0]  # only there does the vocabulary's projection cost anything
        with self.accelerator.autocast():
            # checkpointing knows no keys of an earlier pass; and each process must make as many passes as any other
            if self.args.gradient_checkpointing or self.accelerator.num_processes > 1:
                logits = model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=attention_mask.cumsum(1).sub(1).clamp(min=0),  # prompts are padded on the left
                    logits_to_keep=columns + prompt - 1,
                    use_cache=False,
                ).logits
            else:
                logits = dialogue_logits(model, input_ids, attention_mask, columns, prompt)
        found = spoken_logprobs(
            logits.float(),
            input_ids[:, prompt:][:, columns],
            turns[:, columns],
            self.temperature,
            self.frequency_penalty,
        )
        logps, entropies = (
            turns.new_zeros(turns.shape, dtype=part.dtype).index_copy(1, columns, part) for part in found
        )
        return logps, entropies

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        notes = self._metrics["train"]
        if notes["step_time"] and notes["seconds/generation"]:
            others = notes["seconds/generation"][-1] + notes["seconds/judging"][-1]
            self.note("seconds/update", notes["step_time"][-1] - others)
        self.note("memory/peak_gib", peak_bytes() / GIB)
        for name in [name for name, values in notes.items() if all(math.isnan(value) for value in values)]:
            del notes[name]  # nobody has that reward at this step
        super().log(logs, start_time)
        if "loss" in logs and self.accelerator.is_main_process:
            shown: dict[str, float | None] = {n: logs.get(f"rewards/{n}/mean") for n in self.rewards.weights}
            shown |= {"reward": logs.get("reward"), "kl": logs.get("kl"), "seconds": logs.get("step_time")}
            found = "  ".join(f"{name} {value:.3g}" for name, value in shown.items() if value is not None)
            print(f"step {self.state.global_step} of {self.args.max_steps}: {found}", flush=True)
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.state.global_step, **logs}) + "\n")

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: TRL's would say little that is true of this model. Cards are made by `persona-tasks`."""

    def _send_telemetry(self) -> None:
        """Nobody is told that somebody trains something."""


def forget_after(out: Path, step: int, updates: int) -> None:
    """Drop what an interrupted run logged after its last checkpoint: it will happen again."""
    for file in [out / "log.jsonl", *out.glob("dialogues*.jsonl")]:
        if file.exists():
            whole = [line for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in whole if _step(json.loads(line), updates) <= step]
            file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step(record: dict[str, Any], updates: int) -> int:
    if "transcript" in record:
        return int(record["transcript"]["metadata"]["step"]) * updates
    return int(record["step"])


def peak_bytes() -> int:
    """The most memory of this process so far; on a GPU that of the GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reader(name: Name) -> Callable[..., list[float | None]]:
    """A reward function for TRL, which wants one number per dialogue: the mean over the lines that have one."""

    def mean(rewards: list[dict[Name, Values]], **_: Any) -> list[float | None]:
        found = [[value for value in row[name] if value is not None] for row in rewards]
        return [fmean(values) if values else None for values in found]

    mean.__name__ = name
    return mean


def _readable(judged: Judged, rewards: dict[Name, Values]) -> str:
    """A dialogue with the rewards of its lines, to be read in the log."""
    lines = [judged.transcript.id]
    for place, turn in enumerate(judged.transcript.turns):
        earned = {name: row[place] for name, row in rewards.items() if name != "qa"}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in earned.items() if value)
        lines += [f"  partner    {turn.partner}", f"  simulator  {turn.line}", f"             [{shown}]"]
    return "\n".join(lines)
