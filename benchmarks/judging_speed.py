"""Judging against a real local HTTP server that takes 200 ms per answer: all calls at once, and one after another.

python benchmarks/judging_speed.py [--json]

Ten transcripts of 60 lines (30 by the simulator) are judged by prompt_to_line and line_to_line: 590 calls. The first
way is `inspect eval persona_tasks/transcripts`; the second makes the same requests one by one, as the reference paper's
code does. Both run here, in one go, against the same server.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("LOCAL_API_KEY", "none")
sys.path.insert(0, str(Path(__file__).parents[1]))

from inspect_ai import eval as inspect_eval
from inspect_ai.model import get_model
from openai import OpenAI
from rich.console import Console
from rich.progress import track
from rich.table import Table

from persona_tasks.protocol.asks import Ask
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.lockstep import lockstep
from persona_tasks.transcript import Judged, Transcript, Turn, append_jsonl
from tests.chat_server import ChatServer, Reply, Request

LATENCY = 0.2
CONNECTIONS = 100
# Inspect writes every event to a database as it happens, for whoever watches; that takes time of the one interpreter.
WAYS = {"persona_tasks/transcripts": True, "the same, --no-log-realtime": False}
ONE_BY_ONE = "one after another"
WORDS = ("train", "late", "again", "walked", "home", "past", "mill", "talked", "nothing", "rain", "bread", "letter")


def transcripts(count: int, lines: int) -> list[Transcript]:
    """Dialogues of `lines` lines by both speakers, every other one by the simulator."""
    rng = random.Random(0)
    say = lambda: " ".join(rng.choices(WORDS, k=15))  # noqa: E731
    return [
        Transcript(
            id=f"d{n}",
            persona_id=f"p{n}",
            persona_text=" ".join(rng.choices(WORDS, k=120)),
            turns=[Turn(partner=say(), line=say()) for _ in range(lines // 2)],
        )
        for n in range(count)
    ]


def reply(request: Request) -> Reply:
    """The verdict, in the form the prompt asks for."""
    form = '"conflicts": []' if "New line:" in request.last else '"verdict": "consistent"'
    return Reply('{"reason": "Nothing speaks against it.", ' + form + "}", delay=LATENCY)


def serve(end: Connection) -> None:
    """Serve until told to stop; any other message is answered with the number of requests so far."""
    with ChatServer(reply) as server:
        end.send(server.url)
        while end.recv() != "stop":
            end.send(len(server.log))


@contextmanager
def server_process() -> Iterator[tuple[str, Connection]]:
    """A server in a process of its own, as a real one is, so that it takes no time from the client's interpreter."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield here.recv(), here
    finally:
        here.send("stop")
        process.join(5)


def main() -> None:
    """Run both ways and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transcripts", type=int, default=10)
    parser.add_argument("--lines", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console = Console(stderr=True)
    dialogues = transcripts(options.transcripts, options.lines)

    with tempfile.TemporaryDirectory() as folder, server_process() as (url, server):
        file = Path(folder) / "dialogues.jsonl"
        append_jsonl(file, [Judged(transcript=t) for t in dialogues])
        os.environ["INSPECT_CACHE_DIR"] = folder
        model = get_model("openai-api/local/judge", base_url=url, api_key="none", memoize=False)
        model.config.max_connections = CONNECTIONS
        seconds, counts = {}, {}

        def counted() -> int:
            server.send("count")
            return int(server.recv())

        for name, realtime in WAYS.items():
            os.environ["INSPECT_CACHE_DIR"] = str(Path(folder) / f"cache-{realtime}")
            before, start = counted(), time.perf_counter()
            [log] = inspect_eval(
                "persona_tasks/transcripts",
                task_args={"file": str(file), "metrics": "prompt_to_line,line_to_line"},
                model="none/none",
                model_roles={"judge": model},
                max_samples=options.transcripts,
                log_dir=folder,
                log_realtime=realtime,
                display="none",
            )
            seconds[name], counts[name] = time.perf_counter() - start, counted() - before
            if log.status != "success" or log.results is None:
                sys.exit(f"the run ended with status {log.status}: {log.error}")

        client = OpenAI(base_url=url, api_key="none")

        def one_by_one(asks: list[Ask]) -> list[str]:
            answers = []
            for ask in track(asks, "one after another", console=console, disable=not console.is_terminal):
                messages = [{"role": m.role, "content": m.content} for m in ask.messages]
                done = client.chat.completions.create(model="judge", messages=messages)  # type: ignore[arg-type]
                answers.append(done.choices[0].message.content or "")
            return answers

        before, start = counted(), time.perf_counter()
        lockstep([judge(t, ["prompt_to_line", "line_to_line"]) for t in dialogues], one_by_one)
        seconds[ONE_BY_ONE], counts[ONE_BY_ONE] = time.perf_counter() - start, counted() - before

    if options.json:
        rows = {name: {"calls": counts[name], "seconds": taken} for name, taken in seconds.items()}
        print(json.dumps(rows, indent=2))
        return
    table = Table("", "calls", "seconds", "times as fast", title=f"{LATENCY * 1000:.0f} ms per answer")
    for name, taken in seconds.items():
        table.add_row(name, str(counts[name]), f"{taken:.1f}", f"{seconds[ONE_BY_ONE] / taken:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
