"""Verdicts per second of an embedded judge: the persona's tokens computed once, and computed with every line.

python benchmarks/verdict_speed.py [--judge smollm2-135m] [--personas 4] [--lines 10] [--json]

The labelled on-policy lines of some dev personas are judged by prompt_to_line, all at once, by the same engine with and
without keeping keys and values. Prints both ways side by side, and whether they came to the same verdicts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from persona_tasks.calibration import load_items
from persona_tasks.embedded.answers import engine_answers
from persona_tasks.embedded.engine import Engine
from persona_tasks.embedded.weights import DEFAULT
from persona_tasks.protocol.asks import Answer, Ask
from persona_tasks.protocol.judging import judge


def asks(personas: int, lines: int) -> list[Ask]:
    """What a judge is asked about the first lines of some dev personas."""
    items = load_items(["on_policy"], "dev", metric="prompt_to_line")
    names = list(dict.fromkeys(item.cluster for item in items))[:personas]
    return [
        ask
        for name in names
        for item in [item for item in items if item.cluster == name][:lines]
        for ask in next(judge(item.transcript, [item.metric], turns=[item.turn]))
    ]


def main() -> None:
    """Judge both ways and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default=DEFAULT, help="an embedded model, or a folder")
    parser.add_argument("--personas", type=int, default=4)
    parser.add_argument("--lines", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    asked = asks(options.personas, options.lines)
    found, said = {}, {}
    for name, reuse in (("kept prefixes", True), ("every prompt whole", False)):
        engine = Engine.load(options.judge, reuse=reuse)
        answer = engine_answers(engine)
        answer(asked[-1:])  # warm up, with a persona that comes last
        start = time.perf_counter()
        answers: list[Answer] = answer(asked)
        seconds = time.perf_counter() - start
        said[name] = [str(text) for text in answers]
        found[name] = {"seconds": seconds, "verdicts per second": len(asked) / seconds}
    shared, whole = said.values()
    same = sum(a == b for a, b in zip(shared, whole, strict=True))
    if options.json:
        print(json.dumps({"verdicts": len(asked), "ways": found, "same": same}, indent=2))
        return
    table = Table("", "seconds", "verdicts per second", title=f"{len(asked)} verdicts of {options.judge}")
    for name, numbers in found.items():
        table.add_row(name, f"{numbers['seconds']:.1f}", f"{numbers['verdicts per second']:.1f}")
    Console().print(table)
    print(f"the same replies: {same} of {len(asked)}")


if __name__ == "__main__":
    main()
