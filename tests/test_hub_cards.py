"""Model cards: scores beside the base model's, dialogues before and after, and text of models that must stay text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from persona_tasks.hub.cards import CURVE, card_file, card_problems, keep_examples, render, write_cards
from persona_tasks.hub.entries import Score
from persona_tasks.hub.figure import draw, drawn_from, fingerprint
from persona_tasks.transcript import Judged, Transcript, Turn, Verdict
from tests.hub_scores import call, score
from tests.hub_world import World

HOSTILE = "</details><script>alert(1)</script> [link](javascript:x) **bold** | `code`\n\n---\nlicense: mine"


@pytest.fixture
def measured(world: World) -> World:
    """The base and the checkpoint, measured in the same way, with a dialogue each."""
    data = yaml.safe_load(world.file.read_text())
    weights = "c" * 64
    package = {"module": "no_such_module", "pip": "pip", "file": {"path": "x.gguf", "size": 1, "sha256": weights}}
    data["checkpoints"][0]["package"] = package
    own = world.registry.checkpoint("tiny-sim").weights
    data["scores"] = [
        score("tiny-base", 0.5, checkpoint="tiny-base", weights_sha256=weights),
        score("tiny-sim", 0.9, checkpoint="tiny-sim", weights_sha256=own),
    ]
    world.file.write_text(yaml.safe_dump(data))
    keep_examples(world.root, "tiny-base", [dialogue("I am cured!", "contradicts")])
    keep_examples(world.root, "tiny-sim", [dialogue(HOSTILE, "consistent")])
    write_cards(world.registry, world.root)
    return world


def dialogue(line: str, outcome: Any) -> Judged:
    turns = [Turn(partner="How are you?", line=line)]
    transcript = Transcript(id="a", persona_id="chat-test-01", persona_text="You.", scenario="chat", turns=turns)
    return Judged(transcript=transcript, verdicts=[Verdict(metric="prompt_to_line", turn=1, outcome=outcome)])


def text(world: World) -> str:
    return (world.root / card_file(world.registry.checkpoint("tiny-sim"))).read_text()


def test_the_base_stands_beside_the_checkpoint(measured: World) -> None:
    card = text(measured)
    assert "| all | Prompt to line | 0.500 [0.440, 0.540] | 0.900 [0.840, 0.940] | 40 | 2.0 % |" in card
    assert "| all | Role flips | 0.250 | 0.250 | 40 |  |" in card
    assert "at commit `None`" not in card and f"]({CURVE})" in card
    assert list(card_problems(measured.registry, measured.root)) == []


def test_another_judges_base_score_is_not_beside_it(measured: World) -> None:
    data = yaml.safe_load(measured.file.read_text())
    data["scores"][0]["judge"] = "openai:judge"
    measured.file.write_text(yaml.safe_dump(data))
    assert "| all | Prompt to line | – | 0.900" in render(
        measured.registry, measured.registry.checkpoint("tiny-sim"), measured.root
    )


def test_words_of_models_stay_words(measured: World) -> None:
    from huggingface_hub import ModelCard

    card = text(measured)
    assert "I am cured!** ✗" in card
    assert "<script" not in card and "[link](" not in card and "**bold**" not in card
    assert card.count("</details>") == 2
    assert ModelCard(card).data.license == "apache-2.0"


def test_a_stale_card_or_picture_is_found(measured: World, tmp_path: Path) -> None:
    picture = measured.root / card_file(measured.registry.checkpoint("tiny-sim")).with_name(CURVE)
    scores = measured.registry.scores
    assert drawn_from(picture) == fingerprint(scores)
    other = Score.model_validate({**scores[1].model_dump(), **score("tiny-sim", 0.4)})
    shutil.copy(draw([scores[0], other], measured.registry, tmp_path / CURVE), picture)
    assert "shows other scores" in "\n".join(card_problems(measured.registry, measured.root))
    picture.unlink()
    assert "shows other scores" in call("registry", "check").output
    assert call("registry", "update").exit_code == 0 and picture.is_file()
    file = measured.root / card_file(measured.registry.checkpoint("tiny-sim"))
    file.write_text(file.read_text() + "Added by hand.\n")
    assert "is not what the registry and the template give" in call("registry", "check").output


def test_files_are_listed_as_the_registry_wants_them(world: World) -> None:
    shown = yaml.safe_load(call("registry", "files", str(world.adapter)).output)
    assert shown == [file.model_dump() for file in world.registry.checkpoint("tiny-sim").files]
    assert call("registry", "files", str(world.root / "nothing")).exit_code == 2
