"""A Hub of its own for each test that asks for one, once with LFS storage and once with Xet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_scores import fill
from tests.hub_server import WRITE, HubServer
from tests.hub_world import BASE, World, make_world, push


@pytest.fixture(scope="session")
def world_template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world as it is before anything is published, with its base model's commit as the server will name it."""
    root = tmp_path_factory.mktemp("template")
    with HubServer(root / "hub") as server, pytest.MonkeyPatch.context() as patch:
        connect(patch, server, root / "cache", "lfs")
        first = make_world(root / "first")
        revision = push(first.base, BASE)
    return make_world(root / "world", first.base, revision)


@pytest.fixture
def world(world_template: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A registry with a tiny adapter, to be changed at will."""
    shutil.copytree(world_template.root, tmp_path / "world")
    made = World(tmp_path / "world", world_template.base)
    monkeypatch.setenv("PERSONA_TASKS_REGISTRY", str(made.file))
    monkeypatch.setenv("PERSONA_TASKS_CACHE", str(tmp_path / "persona-cache"))
    return made


@pytest.fixture
def filled(world: World) -> World:
    """The world with scores."""
    return fill(world)


@pytest.fixture(params=["lfs", "xet"])
def hub(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> Iterator[HubServer]:
    """A Hub with the base model on it, and the client in this process set to it as environment variables would."""
    with HubServer(tmp_path / "hub") as server:
        server.mode = request.param
        connect(monkeypatch, server, tmp_path / "cache", request.param)
        assert push(world.base, BASE) == world.registry.checkpoint("tiny-base").revision
        server.log.clear()
        yield server


def connect(patch: pytest.MonkeyPatch, server: HubServer, cache: Path, mode: str) -> None:
    """Set what the client reads from the environment when it is imported, which has happened long ago."""
    from huggingface_hub import constants

    patch.setenv("HF_ENDPOINT", server.url)
    patch.setenv("HF_TOKEN", WRITE)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", mode == "lfs")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


def hub_environment(server: HubServer, world: World, cache: Path) -> dict[str, str]:
    """For another process that starts with an empty cache."""
    from tests.hub_world import environment

    chosen = {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": WRITE,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1" if server.mode == "lfs" else "0",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PERSONA_TASKS_CACHE": str(cache / "persona"),
    }
    return environment(world, **chosen)
