"""What may leave this machine: an allow-list of names, and a look into every file before it is uploaded.

The Hub's client follows symbolic links, uploads pickles and `.env`, and silently leaves out what a `.gitignore` names.
None of that can happen to a folder that has passed `check_folder`.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

from persona_tasks.hub.entries import LOCAL_PATH, SECRET

ALLOWED = re.compile(
    r"README\.md|LICENSE|eval\.yaml|index\.html|drift_curve\.png|side_by_side\.md"
    r"|(adapter_)?config\.json|generation_config\.json|(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors"
    r"|model\.safetensors\.index\.json|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.json|merges\.txt|chat_template\.jinja|\.eval_results/[\w-]+\.yaml|data/[\w/-]+\.jsonl"
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_HEADER = 100_000_000  # bytes: what the safetensors library allows


class Refused(RuntimeError):
    """This must not be published. The message names the file and the reason."""


def check_folder(folder: Path) -> dict[str, Path]:
    """Every file of a folder that is to be published, by its path in the repository.

    Raises:
        Refused: A link, a file of another kind than a release needs, a secret, a path of this machine, broken
            safetensors, code to be trusted, or an adapter of an unpinned base.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise Refused(f"{name}: a link, which would be followed; copy the file")
        if path.is_dir():
            continue
        if not ALLOWED.fullmatch(name):
            raise Refused(f"{name}: not a file that a release holds; pickles, caches and settings stay here")
        check_file(path, name)
        found[name] = path
    return found


def check_file(path: Path, name: str) -> None:
    """Raises: Refused; see `check_folder`."""
    if path.suffix == ".safetensors":
        _no_secret(name, json.dumps(check_safetensors(path).get("__metadata__", {})))
        return
    if path.suffix == ".png":
        if not path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n"):
            raise Refused(f"{name}: no PNG picture")
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{name}: not text; weights belong into safetensors") from None
    _no_secret(name, text)
    if name not in ("tokenizer.json", "vocab.json", "merges.txt") and (local := LOCAL_PATH.search(text)):
        raise Refused(f"{name}: holds a path of this machine: {local[0]}")
    if path.suffix == ".json":
        _check_config(name, _json(name, text))


def _no_secret(name: str, text: str) -> None:
    if found := SECRET.search(text):
        raise Refused(f"{name}: holds what looks like a secret, at character {found.start()}")


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refused(f"{name}: not JSON ({error})") from None


def _check_config(name: str, config: Any) -> None:
    if not isinstance(config, dict):
        return
    if config.get("auto_map"):
        raise Refused(f"{name}: `auto_map` asks its users to run code from the repository")
    if name == "adapter_config.json":
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        if not isinstance(base, str) or not HUB_ID.fullmatch(base):
            raise Refused(f"{name}: the base model must be named by its id on the Hub, not {base!r}")
        if not isinstance(revision, str) or not COMMIT.fullmatch(revision):
            raise Refused(f"{name}: the base model's revision must be a commit, not {revision!r}")


def check_safetensors(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: after 8 bytes of length, JSON with the place of each tensor in the rest.

    Raises:
        Refused: The header is none, or the tensors do not fill the rest of the file exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise Refused(f"{path.name}: no safetensors file")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            spans = sorted(tuple(t["data_offsets"]) for name, t in header.items() if name != "__metadata__")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Refused(f"{path.name}: no safetensors file: its header cannot be read") from None
    end = 0
    for first, last in spans:
        if first != end or last < first:
            raise Refused(f"{path.name}: its tensors overlap or leave a gap at byte {end}")
        end = last
    if not spans or 8 + length + end != size:
        raise Refused(f"{path.name}: {size} bytes long, its header says {8 + length + end}")
    return header


def git_oid(path: Path) -> str:
    """The name git gives a file's content: what the Hub lists for files outside large file storage."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
