"""The same dialogues through `persona/...` and through Inspect's own `hf/...`, side by side.

python benchmarks/provider_speed.py [--dialogues 12] [--turns 16] [--tokens 40] [--json]

Both get the same weights in the same type, the same personas and partner lines, greedy decoding, and all dialogues' requests
of a turn at once. For `hf` that is its best case: `max_connections` is the number of dialogues, so every batch is full
and it never waits for one to fill. The two take turns, so that whatever else the machine does slows both. Each plays on
with its own lines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    get_model,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table

from persona_tasks.embedded.weights import DEFAULT, embedded_folder, fitting_dtype
from persona_tasks.personas import load_bank
from persona_tasks.protocol.partners import make_partner
from persona_tasks.protocol.prompts import simulator_prompt


@dataclass
class Turn:
    """What one turn of all dialogues took.

    Attributes:
        computed: Prompt tokens the model had to read, padding included.
        reused: Prompt tokens it had read before.
    """

    seconds: float = 0.0
    computed: int = 0
    reused: int = 0
    generated: int = 0


@dataclass
class Player:
    """One provider and its dialogues."""

    model: Model
    dialogues: list[list[ChatMessage]]
    turns: list[Turn] = field(default_factory=list)

    async def play(self, partner_lines: list[str]) -> None:
        """One more turn of each dialogue."""
        for messages, line in zip(self.dialogues, partner_lines, strict=True):
            messages.append(ChatMessageUser(content=line))
        start = time.perf_counter()
        outputs = await asyncio.gather(*(self.model.generate(messages) for messages in self.dialogues))
        turn = Turn(seconds=time.perf_counter() - start)
        for messages, output in zip(self.dialogues, outputs, strict=True):
            messages.append(ChatMessageAssistant(content=output.completion))
            if output.usage is not None:
                turn.computed += output.usage.input_tokens
                turn.reused += output.usage.input_tokens_cache_read or 0
                turn.generated += output.usage.output_tokens
        self.turns.append(turn)

    @property
    def seconds(self) -> float:
        return sum(turn.seconds for turn in self.turns)

    def growth(self) -> float:
        """Seconds per turn at the end over those at the beginning: medians of four turns, the first one left out."""
        late, early = (statistics.median(turn.seconds for turn in part) for part in (self.turns[-4:], self.turns[1:5]))
        return late / early


def models(dialogues: int, tokens: int) -> dict[str, Model]:
    """Both providers, with the same weights."""
    config = GenerateConfig(max_tokens=tokens, max_connections=dialogues)
    theirs: dict[str, Any] = {
        "do_sample": False,
        "dtype": getattr(torch, fitting_dtype("cuda" if torch.cuda.is_available() else "cpu")),
        "tokenizer_call_args": {"add_special_tokens": False},
    }
    return {
        "persona": get_model(f"persona/{DEFAULT}", config=config, memoize=False),
        "hf": get_model(f"hf/{embedded_folder()}", config=config, memoize=False, **theirs),
    }


async def run(dialogues: int, turns: int, tokens: int, console: Console) -> dict[str, Player]:
    """Play all dialogues with both, taking turns."""
    bank = load_bank()
    personas = bank.select()[:dialogues]
    prompts = [simulator_prompt(persona, bank.scenarios[persona.scenario]) for persona in personas]
    partners = [
        make_partner(p, bank.scenarios[p.scenario], bank.scripts.get(p.scenario), turns, 0, "scripted")
        for p in personas
    ]
    players = {
        name: Player(model, [[ChatMessageSystem(content=prompt)] for prompt in prompts])
        for name, model in models(dialogues, tokens).items()
    }
    for player in players.values():  # loads the weights, and whatever else only the first call does
        await asyncio.gather(*(player.model.generate("Hello!") for _ in range(dialogues)))
    for turn in track(range(turns), "turns", console=console, disable=not console.is_terminal):
        for player in players.values():
            await player.play([partner.script[turn] for partner in partners])
    return players


def main() -> None:
    """Run both and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=12)
    parser.add_argument("--turns", type=int, default=16, help="at least 5")
    parser.add_argument("--tokens", type=int, default=40, help="at most so many per line")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.turns < 5:
        parser.error("--turns must be at least 5, or there is no growth to see")
    players = asyncio.run(run(options.dialogues, options.turns, options.tokens, Console(stderr=True)))
    ours, theirs = players["persona"], players["hf"]
    summary = {
        name: {
            "seconds": player.seconds,
            "growth": player.growth(),
            "computed": sum(turn.computed for turn in player.turns),
            "generated": sum(turn.generated for turn in player.turns),
        }
        for name, player in players.items()
    }
    if options.json:
        turns = {name: [asdict(turn) for turn in player.turns] for name, player in players.items()}
        print(json.dumps({"speedup": theirs.seconds / ours.seconds, **summary, "turns": turns}, indent=2))
        return
    table = Table(title=f"{options.dialogues} dialogues, at most {options.tokens} tokens a line")
    table.add_column("turn", justify="right")
    for name in players:
        for column in ("s", "read", "written"):
            table.add_column(f"{name} {column}", justify="right")
    table.add_column("ratio", justify="right")
    for number, (a, b) in enumerate(zip(ours.turns, theirs.turns, strict=True), start=1):
        cells = [cell for t in (a, b) for cell in (f"{t.seconds:.1f}", str(t.computed), str(t.generated))]
        table.add_row(str(number), *cells, f"{b.seconds / a.seconds:.1f}")
    console = Console()
    console.print(table)
    for name, values in summary.items():
        console.print(
            f"{name:8} {values['seconds']:7.1f} s, {values['computed']:7} prompt tokens read, "
            f"a late turn takes {values['growth']:.2f} times an early one"
        )
    console.print(f"persona is {theirs.seconds / ours.seconds:.1f} times as fast as hf")


if __name__ == "__main__":
    main()
