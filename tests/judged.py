"""Judged dialogues of training personas, made without any model; a tiny model that reads them in few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from persona_tasks.personas import load_bank
from persona_tasks.protocol.prompts import persona_text
from persona_tasks.transcript import Judged, Outcome, Transcript, Turn, Verdict, append_jsonl
from tests.tiny import CHATML, tiny_model_folder
from training.data import scripted

OUTCOMES: dict[str, Outcome] = {"+": "consistent", "-": "contradicts", "?": "unparsed"}


def judged(persona: str, outcomes: str, seed: int = 0, lines: Sequence[str] = (), **metadata: object) -> Judged:
    """A dialogue with one turn per sign: + consistent, - contradicts, ? unparsed."""
    said = lines or [f"Line {turn} of {persona}." for turn in range(1, len(outcomes) + 1)]
    dialogue, script = scripted(load_bank().persona(persona), len(outcomes), seed)
    next(dialogue)
    for line in said[:-1]:
        dialogue.send([line])
    try:
        dialogue.send([said[-1]])
        raise AssertionError("the dialogue should be over")
    except StopIteration as end:
        transcript: Transcript = end.value
    transcript.model = "a model"
    transcript.metadata = metadata
    assert transcript.turns == [Turn(partner=heard, line=line) for heard, line in zip(script, said, strict=True)]
    verdicts = [
        Verdict(metric="prompt_to_line", turn=turn, outcome=OUTCOMES[sign], p_contradicts=CHANCE[sign])
        for turn, sign in enumerate(outcomes, start=1)
    ]
    return Judged(transcript=transcript, verdicts=verdicts, judge="a judge")


CHANCE = {"+": 0.2, "-": 0.9, "?": None}


def branched(parent: Judged, number: int, turn: int, own: str) -> Judged:
    """A branch of `parent` whose own turns, from `turn` on, have these outcomes."""
    before = "".join(next(s for s, o in OUTCOMES.items() if o == v.outcome) for v in parent.verdicts[: turn - 1])
    lines = [*parent.transcript.lines[: turn - 1], *(f"Branch {number} says {sign}." for sign in own)]
    made = judged(parent.transcript.persona_id, before + own, parent.transcript.seed or 0, lines)
    made.transcript.id = f"{parent.transcript.id}/{number}"
    made.transcript.metadata = {"parent": parent.transcript.id, "branch": turn, "segment": len(own)}
    return made


def written(file: Path, records: Sequence[Judged]) -> Path:
    append_jsonl(file, records)
    return file


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Like that of `tests.tiny`, but it knows the words of the personas: a fifth of the tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    made.train_from_iterator([persona_text(persona) for persona in load_bank().personas], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", chat_template=CHATML)


def model_folder(folder: Path, **config: Any) -> Path:
    """A tiny model with this tokenizer."""
    made = tiny_model_folder(folder, vocab_size=len(tokenizer()), **config)
    tokenizer().save_pretrained(made)
    return made
