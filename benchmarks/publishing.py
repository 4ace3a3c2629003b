"""Everything we ship, published to a local Hub and used from there: files, bytes, requests, and equal scores.

python benchmarks/publishing.py [--mode lfs] [--mode xet] [--json]

A local server speaks the Hub's HTTP API (`tests/hub_server.py`); the client, peft, transformers, lm-eval and Inspect
are the released ones, each in a process of its own. The checkout is a clone of this one's last commit. The base model
is there under its own name and commit, with the weights of the installed package. From an empty cache, what was
published must be byte for byte what lies in the checkout, and must get the scores that the local folders get.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from persona_tasks.embedded.weights import embedded_folder, sha256
from persona_tasks.hub.registry import load
from tests.hub_server import LARGE, USERS, WRITE, Blob, Commit, HubServer, Repo

ROOT = Path(__file__).parents[1]
SIMULATOR, JUDGE = "sim-135m", "judge-135m"
PYTHON = [sys.executable, "-c"]
OURS = [*PYTHON, "from persona_tasks.cli import app; app()"]
INSPECT = [*PYTHON, "from inspect_ai._cli.main import main; main()", "eval", "persona_tasks/drift"]
SHORT = ["--limit", "2", "-T", "turns=2", "-T", "probes=none", "--display", "none"]

LOADS = """
import hashlib, json, sys
import torch
from huggingface_hub import ModelCard, snapshot_download
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
name, version = sys.argv[1:]
folder = snapshot_download(name, revision=version)
card = ModelCard.load(name)
adapted = AutoPeftModelForCausalLM.from_pretrained(name, revision=version, dtype=torch.float32)
merged = AutoModelForCausalLM.from_pretrained(name + "-merged", dtype=torch.float32)
plain = AutoModelForCausalLM.from_pretrained(card.data.base_model, dtype=torch.float32)
ids = AutoTokenizer.from_pretrained(name, revision=version)("What do you do on Sundays?", return_tensors="pt")
said = [model(**ids).logits for model in (adapted, merged, plain)]
print(json.dumps({
    "sha256": hashlib.sha256(open(folder + "/adapter_model.safetensors", "rb").read()).hexdigest(),
    "merged": (said[0] - said[1]).abs().max().item(), "learned": (said[0] - said[2]).abs().max().item(),
}))
"""


@dataclass
class Published:
    """What one command did.

    Attributes:
        sent: Bytes in the requests' bodies, and, with Xet, what came into its storage.
        again: Requests of a second run that changed anything.
    """

    what: str
    files: int
    size: int
    requests: int
    sent: int
    seconds: float
    again: int


class Checkout:
    """A clone that publishes to a Hub, and an empty cache beside it.

    Args:
        folder: Scratch.
        hub: The server; its `mode` says how files are stored.
    """

    def __init__(self, folder: Path, hub: HubServer):
        self.root, self.hub, self.folder = folder / "checkout", hub, folder
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.root)], check=True)
        self.registry = load(self.root / "registry.yaml")
        USERS[WRITE] = (self.registry.namespace, True)

    def environment(self, cache: str) -> dict[str, str]:
        home = self.folder / cache
        chosen = {
            "PYTHONPATH": str(self.root),
            "PERSONA_TASKS_REGISTRY": str(self.root / "registry.yaml"),
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": WRITE,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1" if self.hub.mode == "lfs" else "0",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return {**os.environ, **chosen}

    def run(self, command: list[str], cache: str, **more: str) -> str:
        environment = self.environment(cache) | more
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command[2:])}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def offer_base(self) -> None:
        """Put the embedded base model on the Hub under its own name and commit."""
        base = self.registry.checkpoint("smollm2-135m")
        assert base.revision
        tree = {file.name: self._kept(file) for file in embedded_folder().iterdir() if file.is_file()}
        repo = Repo("model", base.repository, private=False)
        repo.commits[base.revision] = Commit(base.revision, None, "base", tree)
        repo.refs["refs/heads/main"] = base.revision
        self.hub.repos["model", base.repository] = repo

    def _kept(self, file: Path) -> Blob:
        digest = sha256(file)
        shutil.copy(file, self.hub.folder / "blobs" / digest)
        if file.suffix not in LARGE:
            oid = hashlib.sha1(b"blob %d\0" % file.stat().st_size + file.read_bytes()).hexdigest()
            shutil.copy(file, self.hub.folder / "blobs" / oid)
            return Blob(oid, file.stat().st_size)
        return Blob(hashlib.sha1(digest.encode()).hexdigest(), file.stat().st_size, digest)

    def publish(self, what: str, command: list[str], repositories: list[tuple[str, str]]) -> Published:
        """Publish twice; the second run must change nothing.

        Args:
            repositories: Kind and name of each repository that the command makes.
        """
        first, stored, began = len(self.hub.log), _size(self.hub.cas), time.monotonic()
        self.run([*OURS, *command], "publisher")
        seconds, last = time.monotonic() - began, len(self.hub.log)
        sent = sum(seen.sent for seen in self.hub.log[first:last]) + _size(self.hub.cas) - stored
        trees = [self.hub.repo(name, kind).at("main").tree for kind, name in repositories]
        again = len(self.hub.log)
        self.run([*OURS, *command], "publisher")
        return Published(
            what,
            sum(map(len, trees)),
            sum(blob.size for tree in trees for blob in tree.values()),
            last - first,
            sent,
            round(seconds, 1),
            len(self.hub.writes(again)),
        )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0


def publish_all(checkout: Checkout) -> list[Published]:
    """Each checkpoint with its merged model, the benchmark, and the leaderboard."""
    registry = checkout.registry
    done = []
    for checkpoint in registry.checkpoints:
        if checkpoint.kind == "adapter":
            names = [("model", checkpoint.repository), ("model", f"{checkpoint.repository}-merged")]
            done.append(checkout.publish(checkpoint.id, ["publish", checkpoint.id, "--merged"], names))
            # the registry names the commit now: as a user would, commit that before the next one
            _commit(checkout.root)
    done.append(checkout.publish("benchmark", ["publish-benchmark"], [("dataset", registry.benchmark.repository)]))
    done.append(checkout.publish("leaderboard", ["publish-leaderboard"], [("space", registry.leaderboard)]))
    return done


def _commit(root: Path) -> None:
    who = ["-c", "user.name=publisher", "-c", "user.email=publisher@localhost"]
    subprocess.run(["git", *who, "commit", "--quiet", "-am", "Published"], cwd=root, check=True)


def loaded(checkout: Checkout) -> dict[str, dict[str, float]]:
    """Each checkpoint by its Hub id, from an empty cache: equal bytes, merged like unmerged, unlike its base."""
    found: dict[str, dict[str, float]] = {}
    for checkpoint in checkout.registry.checkpoints:
        if checkpoint.kind == "adapter":
            command = [*PYTHON, LOADS, checkpoint.repository, str(checkpoint.version)]
            shown = json.loads(checkout.run(command, "reader").splitlines()[-1])
            assert shown.pop("sha256") == checkpoint.weights, f"{checkpoint.id}: other bytes than were published"
            assert 20 * shown["merged"] < shown["learned"], f"{checkpoint.id}: {shown}"
            found[checkpoint.id] = shown
    return found


def lm_eval_scores(checkout: Checkout) -> dict[str, float]:
    """`persona_drift` of the simulator by Hub id, and by folder: the same numbers."""
    simulator = checkout.registry.checkpoint(SIMULATOR)
    base = checkout.registry.base_of(simulator).repository
    local = f"pretrained={embedded_folder()},peft={checkout.root / str(simulator.folder)}"
    scores = []
    for number, model in enumerate((f"pretrained={base},peft={simulator.repository}", local)):
        out = checkout.folder / f"lm_eval{number}"
        options = ["--tasks", "persona_drift_chat", "--model", "hf", "--limit", "2", "--output_path", str(out)]
        options += ["--model_args", f"{model},dtype=float32", "--device", "cpu", "--gen_kwargs", "temperature=0"]
        options += ["--metadata", f"judge=persona/{JUDGE}", "turns=2", "probes=2"]
        checkout.run([*OURS, "lm-eval", *options], "reader")
        [file] = out.rglob("results_*.json")
        found = json.loads(file.read_text(encoding="utf-8"))["results"]["persona_drift_chat"]
        scores.append({name: value for name, value in found.items() if "," in name})
    assert scores[0] == scores[1], scores
    return {name.partition(",")[0]: value for name, value in scores[0].items() if isinstance(value, float)}


def inspect_scores(checkout: Checkout) -> dict[str, Any]:
    """`drift` of the simulator: pulled from the Hub and as the package's copy; the merged model by its Hub id runs."""
    from inspect_ai.log import read_eval_log

    simulator = checkout.registry.checkpoint(SIMULATOR)
    judge = ["--model-role", f"judge=persona/{JUDGE}"]
    ours, offline = [f"persona/{SIMULATOR}", "--temperature", "0"], {"HF_HUB_OFFLINE": "1", "HF_HOME": "nothing"}
    runs: dict[str, tuple[list[str], dict[str, str]]] = {
        "persona/ from the Hub": (ours, {}),
        "persona/ from the package": (ours, offline),
        "hf/ merged, from the Hub": ([f"hf/{simulator.repository}-merged", "-M", "do_sample=False"], {}),
    }
    found: dict[str, Any] = {}
    for name, (model, more) in runs.items():
        logs = checkout.folder / "logs" / str(len(found))
        checkout.run([*INSPECT, "--model", *model, *SHORT, *judge, "--log-dir", str(logs)], "reader", **more)
        [file] = logs.glob("*.eval")
        log = read_eval_log(str(file))
        assert log.status == "success" and log.results and log.samples, f"{name}: {log.error}"
        found[name] = {
            score.name: score.metrics["mean"].value for score in log.results.scores if "mean" in score.metrics
        }
    first, second = (found[name] for name in list(runs)[:2])
    assert first == second, found
    return found


def prove(mode: str) -> dict[str, Any]:
    """Publish and use everything with one kind of storage."""
    with tempfile.TemporaryDirectory() as scratch, HubServer(Path(scratch) / "hub") as hub:
        hub.mode = mode
        checkout = Checkout(Path(scratch), hub)
        checkout.offer_base()
        published = publish_all(checkout)
        assert not any(done.again for done in published), published
        return {
            "published": [asdict(done) for done in published],
            "loaded": loaded(checkout),
            "lm_eval": lm_eval_scores(checkout),
            "inspect": inspect_scores(checkout),
        }


def main() -> None:
    """Parse the command line, prove, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", action="append", choices=["lfs", "xet"], help="storage; default: both")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {mode: prove(mode) for mode in options.mode or ["lfs", "xet"]}
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for mode, result in found.items():
        table = Table(
            "published", "files", "bytes", "requests", "bytes sent", "seconds", "second run writes", title=mode
        )
        for done in result["published"]:
            table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in done.values()))
        Console().print(table)
        for name in ("loaded", "lm_eval", "inspect"):
            Console().print(name, result[name], highlight=False)


if __name__ == "__main__":
    main()
