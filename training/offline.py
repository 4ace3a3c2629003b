"""What the methods that learn from judged dialogues share: a recipe's settings, and its dialogues as tokens and labels.

The tokens of a dialogue are those of the prompts that the simulator saw. What it said at turn t stands between its
prompt of turn t and the end token that follows in the prompt of turn t + 1::

    ids      <system> <user 1> | line 1 <end> | <user 2> | line 2 <end> | ...
    spans                        [start, end)              [start, end)

So a template must be prefix-preserving: each prompt begins with the one before, word for word. One that is not (some
drop the thoughts of earlier turns) is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from persona_tasks.embedded.chat import Chat
from persona_tasks.embedded.weights import load_model
from persona_tasks.personas import Bank
from persona_tasks.protocol.asks import Message
from persona_tasks.protocol.limits import LINE_TOKENS
from persona_tasks.protocol.play import SILENCE
from persona_tasks.protocol.prompts import persona_text, simulator_prompt
from persona_tasks.transcript import Judged, Outcome, Transcript, read_jsonl
from training import recipe as common
from training.people import training_bank
from training.recipe import RecipeError

IGNORED = -100  # label of tokens that are not trained on
Row = dict[str, Any]


class Recipe(common.Recipe):
    """Settings of all methods that learn from judged dialogues."""

    start: Path | None = Field(None, description=common.START)
    data: list[Path] = Field(min_length=1, description="Files that `training.data judge` wrote.")
    label_by: list[Literal["prompt_to_line", "line_to_line"]] = Field(
        ["prompt_to_line"], min_length=1, description="A line is consistent if all of these verdicts on it are."
    )
    certain: float = Field(
        0.5, ge=0.5, le=1, description="Verdicts that the judge gives a lower probability count as unparsed."
    )
    any_split: bool = Field(False, description="Train on dev and test personas too. Never for a result.")
    limit: int | None = Field(None, gt=0, description="At most so many rows, drawn at random.")
    epochs: float = Field(1, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    rank: int = Field(16, ge=0, description="Of the LoRA adapter; 0 trains all weights.")
    first_layer: int = Field(0, ge=0, description="Layers below get no adapter, and cost no backward pass.")
    batch: int = Field(1, gt=0, description="Rows that are computed at once.")
    accumulate: int = Field(8, gt=0, description="Such batches per step.")
    checkpointing: bool = Field(False, description="Compute activations twice and keep fewer of them.")
    save_every: int = Field(50, gt=0, description="Steps between checkpoints.")
    report_to: list[str] = Field([], description="Beside log.jsonl: tensorboard, trackio, wandb.")


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass(frozen=True)
class Dialogue:
    """A judged dialogue as tokens.

    Attributes:
        record: Where it comes from.
        ids: ``[tokens]``, up to the end of the last line.
        spans: For each turn, where the simulator's own tokens begin and end in `ids`.
        outcomes: For each turn, the verdict on its line.
        scores: For each turn, how consistent its line is, from 0 to 1; None if unparsed.
        first: The first turn (from 1) that is this dialogue's own: a branch begins with turns of its parent.
    """

    record: Judged
    ids: list[int]
    spans: list[tuple[int, int]]
    outcomes: list[Outcome]
    scores: list[float | None]
    first: int

    @property
    def persona(self) -> str:
        return self.record.transcript.persona_id

    @property
    def own_turns(self) -> range:
        return range(self.first, len(self.spans) + 1)

    def prompt(self, turn: int) -> list[int]:
        return self.ids[: self.spans[turn - 1][0]]

    def line(self, turn: int) -> list[int]:
        start, end = self.spans[turn - 1]
        return self.ids[start:end]


def read_dialogues(recipe: Recipe) -> list[Judged]:
    """Read the judged dialogues of a recipe.

    Raises:
        RecipeError: A file is missing, a dialogue occurs twice or is one of a persona that must not be trained on, or
            no verdict can be learned from.
        TranscriptError: A file is broken; names its line.
    """
    bank, records = training_bank(), dict[str, Judged]()
    for file in recipe.data:
        if not file.is_file():
            raise RecipeError(f"data: there is no file {file}")
        for record in read_jsonl(file):
            transcript = record.transcript
            if transcript.id in records:
                raise RecipeError(f"{file}: dialogue {transcript.id!r} occurs twice in the data")
            persona = bank.persona(transcript.persona_id)
            if persona.split != "train" and not recipe.any_split:
                raise RecipeError(
                    f"{file}: {transcript.id!r} is of a persona of the {persona.split} split. Results on it would be "
                    "worth nothing once it is trained on (any_split: true does it all the same)"
                )
            if persona_text(persona) != transcript.persona_text:
                raise RecipeError(f"{file}: {transcript.id!r} was held with another version of its persona")
            records[transcript.id] = record
    if not records:
        raise RecipeError(f"data: there is no dialogue in {', '.join(map(str, recipe.data))}")
    found = Counter(v.outcome for record in records.values() for v in record.verdicts if v.metric in recipe.label_by)
    wanted = " or ".join(recipe.label_by)
    if not found:
        raise RecipeError(f"data: no line has a verdict by {wanted}; run `python -m training.data judge` first")
    if set(found) == {"unparsed"}:
        raise RecipeError(f"data: all {found['unparsed']} verdicts by {wanted} are unparsed: this judge judges nothing")
    return list(records.values())


def tokens_of(record: Judged, recipe: Recipe, chat: Chat, ends: Collection[int], longest: int) -> Dialogue:
    """A dialogue as tokens and labels.

    Args:
        record: The dialogue.
        recipe: How lines are labelled.
        chat: Renders prompts as the engine does.
        ends: Tokens that end a line.
        longest: The model's context.

    Raises:
        RecipeError: It doesn't fit the context, or the template is not prefix-preserving.
    """
    transcript = record.transcript
    messages = messages_of(transcript, training_bank())
    prompts = [chat.ids([m._asdict() for m in messages[: 2 * turn]]) for turn in range(1, len(transcript.turns) + 2)]
    ids, spans = prompts[-1], list[tuple[int, int]]()
    for before, after in pairwise(prompts):
        if ids[: len(after)] != after or after[: len(before)] != before:
            raise RecipeError(
                "the model's chat template is not prefix-preserving: it renders a turn differently once it is history, "
                "so what is trained would not be what the simulator sees. Give the tokenizer a template that is"
            )
        end = next((place for place in range(len(before), len(after)) if after[place] in ends), None)
        if end is None:
            raise RecipeError(f"the model's chat template ends a line with none of its end tokens {sorted(ends)}")
        # a line that ran into the cap was cut off: the simulator never ended it, and must not learn to end there
        spans.append((len(before), end if end - len(before) >= LINE_TOKENS else end + 1))
    ids = ids[: spans[-1][1]] if spans else []
    if len(ids) > longest:
        raise RecipeError(f"dialogue {transcript.id!r} has {len(ids)} tokens, more than the model's context {longest}")
    judged = [_label(record, turn, recipe) for turn in range(1, len(spans) + 1)]
    outcomes, scores = [outcome for outcome, _ in judged], [score for _, score in judged]
    return Dialogue(record, ids, spans, outcomes, scores, transcript.metadata.get("branch", 1))


def messages_of(transcript: Transcript, bank: Bank) -> list[Message]:
    """The dialogue as the simulator saw it, and one more message of the partner, so that the last line ends."""
    persona = bank.persona(transcript.persona_id)
    messages = [Message("system", simulator_prompt(persona, bank.scenarios[persona.scenario]))]
    for turn in transcript.turns:
        messages += [Message("user", turn.partner), Message("assistant", turn.line or SILENCE)]
    return [*messages, Message("user", SILENCE)]


def _label(record: Judged, turn: int, recipe: Recipe) -> tuple[Outcome, float | None]:
    """Outcome and score of a line: the worst of its verdicts. Nothing can contradict a line before the first."""
    by = [metric for metric in recipe.label_by if metric == "prompt_to_line" or turn > 1]
    verdicts = [verdict for verdict in record.verdicts if verdict.turn == turn and verdict.metric in by]
    chances = [v.p_contradicts if v.p_contradicts is not None else float(v.outcome == "contradicts") for v in verdicts]
    sure = all(max(chance, 1 - chance) >= recipe.certain for chance in chances)
    outcomes = {verdict.outcome for verdict in verdicts}
    if not by or len(verdicts) < len(by) or "unparsed" in outcomes or not sure:
        return "unparsed", None
    return "contradicts" if "contradicts" in outcomes else "consistent", 1 - max(chances)


def load(recipe: Recipe) -> tuple[Any, Any]:
    """The base, with the adapter that training goes on from if there is one, and the tokenizer.

    Under an adapter the base has the type that the device computes fastest in. The adapter's own weights are always
    float32 (peft makes them so) and are what Adam moves: a step of 1e-5 on a bfloat16 weight of .05 would be rounded
    away. For the same reason all weights, where they are trained, are float32.

    Raises:
        RecipeError: `start` holds no adapter of the base, or all weights are to be trained.
    """
    common.check_start(recipe.start, recipe.rank)
    model, tokenizer = load_model(recipe.base, "auto" if recipe.rank else "float32")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return (common.load_adapter(model, recipe.base, recipe.start) if recipe.start else model), tokenizer


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a line, as the engine knows them."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)
