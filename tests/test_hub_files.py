"""What may leave this machine: each kind of file that is refused, and that a good folder is not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from persona_tasks.hub.client import HubError, redacted, talking_to
from persona_tasks.hub.files import Refused, check_folder

CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "revision": "b" * 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "release"
    made.mkdir()
    save_file({"a": np.ones((4, 4), "f4"), "b": np.ones(3, "f4")}, made / "adapter_model.safetensors")
    (made / "adapter_config.json").write_text(json.dumps(CONFIG))
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\nSee https://example.org/data/x and an/data/b.\n")
    return made


def test_a_good_folder_is_let_through(folder: Path) -> None:
    assert set(check_folder(folder)) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def header(text: bytes, tail: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + tail


def tensor(first: int, last: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [last - first], "data_offsets": [first, last]}


REFUSED = [
    ("training_args.bin", b"\x80\x04", "not a file that a release holds"),
    ("pytorch_model.pt", b"PK", "not a file that a release holds"),
    ("model.pkl", b"\x80", "not a file that a release holds"),
    (".env", b"HF_TOKEN=x", "not a file that a release holds"),
    (".gitignore", b"*.safetensors", "not a file that a release holds"),
    ("modeling_mine.py", b"import os", "not a file that a release holds"),
    ("sub/config.json", b"{}", "not a file that a release holds"),
    ("README.md", b"token hf_" + b"A" * 30, "looks like a secret"),
    ("README.md", b"-----BEGIN RSA PRIVATE KEY-----", "looks like a secret"),
    ("chat_template.jinja", b"{# sk-" + b"a" * 30 + b" #}", "looks like a secret"),
    ("README.md", b"trained in /home/bob/runs", "a path of this machine"),
    ("README.md", b"trained in C:\\Users\\bob", "a path of this machine"),
    ("generation_config.json", b'{"a": "~/runs/1"}', "a path of this machine"),
    ("tokenizer.json", b"\xff\xfe\x00", "not text"),
    ("config.json", b"{", "not JSON"),
    ("config.json", b'{"auto_map": {"AutoModel": "m.M"}}', "run code"),
    (
        "adapter_config.json",
        json.dumps({**CONFIG, "base_model_name_or_path": "/base"}).encode(),
        "by its id on the Hub",
    ),
    ("adapter_config.json", json.dumps({**CONFIG, "base_model_name_or_path": None}).encode(), "by its id on the Hub"),
    ("adapter_config.json", json.dumps({**CONFIG, "revision": "main"}).encode(), "must be a commit"),
    ("adapter_config.json", json.dumps({**CONFIG, "revision": None}).encode(), "must be a commit"),
    ("model.safetensors", b"", "no safetensors file"),
    ("model.safetensors", b"\xff" * 64, "no safetensors file"),
    ("model.safetensors", b"\x80\x04\x95pickled pickled pickled", "no safetensors file"),
    ("model.safetensors", header(b"[1, 2]"), "header cannot be read"),
    (
        "model.safetensors",
        header(json.dumps({"a": tensor(0, 2), "b": tensor(4, 6)}).encode(), b"123456"),
        "leave a gap",
    ),
    ("model.safetensors", header(json.dumps({"a": tensor(0, 4), "b": tensor(2, 6)}).encode(), b"123456"), "overlap"),
    ("model.safetensors", header(json.dumps({"a": tensor(0, 2)}).encode(), b"12 and a payload"), "its header says"),
    (
        "model.safetensors",
        header(json.dumps({"a": tensor(0, 2), "__metadata__": {"k": "hf_" + "a" * 30}}).encode(), b"12"),
        "looks like a secret",
    ),
    ("drift_curve.png", b"GIF89a", "no PNG"),
]


@pytest.mark.parametrize(("name", "data", "why"), REFUSED)
def test_what_is_refused(folder: Path, name: str, data: bytes, why: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with pytest.raises(Refused, match=why) as refused:
        check_folder(folder)
    assert str(refused.value).startswith(name)


def test_links_are_refused_to_files_and_to_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("outside")
    (folder / "LICENSE").symlink_to(tmp_path / "LICENSE")
    with pytest.raises(Refused, match="LICENSE: a link"):
        check_folder(folder)
    (folder / "LICENSE").unlink()
    (tmp_path / "data").mkdir()
    (folder / "data").symlink_to(tmp_path / "data")
    with pytest.raises(Refused, match="data: a link"):
        check_folder(folder)


def test_secrets_are_taken_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    assert redacted("Bearer an-unusual-token, sk-" + "a" * 20) == "Bearer ***, ***"


def test_only_the_network_is_called_a_broken_connection() -> None:
    with pytest.raises(HubError, match="the connection broke"), talking_to("org/x"):
        raise ConnectionResetError("reset")
    with pytest.raises(ZeroDivisionError), talking_to("org/x"):
        _ = 1 / 0
