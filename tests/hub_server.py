"""A Hugging Face Hub on a free local port, for the unmodified client: repositories, LFS or Xet, faults on demand.

    with HubServer(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=WRITE)

It keeps what the real one keeps (commits with a parent, refs, pull requests, collections) and refuses what the real one
is known to refuse. Every request is in `log`. Xet storage is a folder that the released `hf_xet` opens by itself: the
token route answers with the address `local://FOLDER`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

WRITE = "hf_writewritewritewritewritewrite12"
READ = "hf_readreadreadreadreadreadread12345"
OTHER = "hf_otherotherotherotherotherother12"
USERS = {WRITE: ("org", True), READ: ("visitor", False), OTHER: ("other", True)}
LARGE = (".safetensors", ".bin", ".pt", ".pkl", ".gguf", ".parquet", ".zip", ".eval", ".png", ".jpg")


@dataclass(frozen=True)
class Blob:
    """A file: by its git id, and by its sha256 where it is in large file storage (and its Xet hash, if that is it)."""

    oid: str
    size: int
    sha256: str | None = None
    xet: str | None = None


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: dict[str, Blob]


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: list[str] = field(default_factory=list)

    def commit(self, ref: str, tree: dict[str, Blob], title: str) -> Commit:
        parent = self.refs.get(ref)
        seed = json.dumps([title, parent, sorted((path, blob.oid) for path, blob in tree.items()), len(self.commits)])
        made = Commit(hashlib.sha1(seed.encode()).hexdigest(), parent, title, tree)
        self.commits[made.oid] = made
        self.refs[ref] = made.oid
        return made

    def at(self, revision: str) -> Commit:
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if revision in self.commits:
            return self.commits[revision]
        raise Refusal(404, f"no revision {revision}", "RevisionNotFound")

    def history(self, ref: str = "main") -> list[Commit]:
        found = [self.at(ref)]
        while found[-1].parent:
            found.append(self.commits[found[-1].parent])
        return found


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass
class Fault:
    """Something that goes wrong `times` times, at requests whose method and path match.

    `status` is answered instead of working; with status 0 the connection breaks. `late`: the work is done first, so
    only the answer is lost. `call` is called when the fault strikes.
    """

    method: str
    path: str
    status: int = 503
    times: int = 1
    late: bool = False
    message: str = "injected"
    call: Callable[[], None] | None = None


@dataclass
class Seen:
    method: str
    path: str
    status: int
    authorized: bool
    host: str
    sent: int
    at: float


class HubServer:
    """See the module. Only on loopback; `url` and `storage` are two names of it, so that a token sent on is seen."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cas = folder / "cas"
        self.mode = "lfs"  # for tests: how their client is set
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.log: list[Seen] = []
        self.lock = threading.RLock()

    def __enter__(self) -> HubServer:
        quiet: dict[str, Any] = {"log_level": "critical", "lifespan": "off", "interface": "asgi3"}
        config = uvicorn.Config(self._serve, host="127.0.0.1", port=0, **quiet)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(5)

    def repo(self, name: str, kind: str = "model") -> Repo:
        """For tests: a repository that must be there."""
        return self.repos[kind, name]

    def text(self, name: str, path: str, kind: str = "model", revision: str = "main") -> str:
        """For tests: the text of a file that is not in large file storage."""
        return self._file(self.repo(name, kind).at(revision).tree[path]).read_text(encoding="utf-8")

    def writes(self, since: int = 0) -> list[Seen]:
        """Requests that changed something."""
        asking = r"/preupload/|/validate-yaml|/paths-info/|/objects/batch|/verify"
        return [
            seen
            for seen in self.log[since:]
            if seen.method in ("POST", "PUT", "DELETE", "PATCH")
            and seen.status < 400
            and not re.search(asking, seen.path)
        ]

    # -------------------------------------------------------------------------------------------------- serving

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode().partition("?")[0]  # a revision may hold %2F
        body = b"" if path.startswith("/_lfs/") else await request.body()
        fault = next(
            (f for f in self.faults if f.times and f.method == request.method and re.search(f.path, path)), None
        )
        answer: Response | None = None
        if fault:
            fault.times -= 1
            if fault.call:
                fault.call()
        if fault is None or fault.late or fault.status == 200:
            answer = await self._answer(request, path)
        if fault and fault.status != 200:
            headers = {"X-Error-Message": fault.message}
            answer = JSONResponse({"error": fault.message}, fault.status or 200, headers=headers)
        assert answer is not None
        self.log.append(
            Seen(
                request.method,
                unquote(path),
                fault.status if fault and fault.status != 200 else answer.status_code,
                "authorization" in request.headers,
                str(request.url.hostname),
                len(body) or int(request.headers.get("content-length", 0)),
                time.monotonic(),
            )
        )
        if fault and fault.status == 0:  # a body that ends before its time
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"999")]})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            raise ConnectionError("injected")
        await answer(scope, receive, send)

    async def _answer(self, request: Request, path: str) -> Response:
        try:
            for methods, pattern, route in ROUTES:
                if request.method in methods and (match := re.fullmatch(pattern, path)):
                    values = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    return await route(self, request, **values)
            raise Refusal(404, f"no such route: {request.method} {path}")
        except Refusal as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            return JSONResponse({"error": error.message, **error.body}, error.status, headers=headers)

    def _user(self, request: Request) -> tuple[str, bool] | None:
        header = request.headers.get("authorization")
        if header is None:
            return None
        user = USERS.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def _writer(self, request: Request, name: str) -> None:
        user = self._user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if not user[1] or name.partition("/")[0] != user[0]:
            raise Refusal(403, "You don't have the rights to write to this repository.")

    def _repo(self, request: Request, kind: str, name: str) -> Repo:
        repo, user = self.repos.get((kind, name)), self._user(request)
        if repo is None or (repo.private and (user is None or user[0] != name.partition("/")[0])):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    # ------------------------------------------------------------------------------------------------- contents

    def _file(self, blob: Blob) -> Path:
        return self.folder / "blobs" / (blob.sha256 or blob.oid)

    def _store(self, data: bytes) -> Blob:
        blob = Blob(hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), len(data))
        self._file(blob).write_bytes(data)
        return blob

    def _large(self, sha256: str) -> Blob:
        """What was uploaded under this checksum, by LFS or into the Xet folder."""
        file = self.folder / "blobs" / sha256
        xet = None
        if file.exists():
            size = file.stat().st_size
        elif sha256 in (stored := xet_files(self.cas)):
            xet, size = stored[sha256]
        else:
            raise Refusal(400, f"object {sha256} was never uploaded")
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return replace(self._store(pointer), size=size, sha256=sha256, xet=xet)

    # --------------------------------------------------------------------------------------------------- routes

    async def whoami(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write" if user[1] else "read"}
        return JSONResponse({"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": token}})

    async def create(self, request: Request) -> Response:
        wanted = await request.json()
        kind, user = wanted.get("type") or "model", self._user(request)
        name = f"{wanted.get('organization') or (user or ('',))[0]}/{wanted['name']}"
        self._writer(request, name)
        url = f"{self.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.repos:
            raise Refusal(409, "You already created this repo", url=url)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repo = self.repos[kind, name] = Repo(kind, name, private)
        repo.commit("refs/heads/main", {".gitattributes": self._store(b"*.safetensors filter=lfs\n")}, "initial commit")
        return JSONResponse({"url": url, "name": name})

    async def settings(self, request: Request, kind: str, name: str) -> Response:
        self._writer(request, name)
        changes = await request.json()
        if "visibility" in changes:
            self._repo(request, kind, name).private = changes["visibility"] == "private"
        return JSONResponse(changes)

    async def validate(self, request: Request) -> Response:
        content = (await request.json())["content"]
        errors = [{"message": problem} for problem in card_problems(content)]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def info(self, request: Request, kind: str, name: str, revision: str = "main") -> Response:
        repo = self._repo(request, kind, name)
        commit = repo.at(revision)
        readme = commit.tree.get("README.md")
        card = front_matter(self._file(readme).read_text(encoding="utf-8")) if readme else {}
        found = {
            "_id": "0",
            "id": name,
            "sha": commit.oid,
            "private": repo.private,
            "cardData": card,
            "tags": card.get("tags", []),
            "siblings": [{"rfilename": path} for path in commit.tree],
            "lastModified": now(),
            "createdAt": now(),
        }
        if "evalResults" in request.query_params.getlist("expand"):
            rows = [
                {"filename": path, "verified": False, "data": row}
                for path, blob in commit.tree.items()
                if path.startswith(".eval_results/")
                for row in eval_rows(self._file(blob).read_text(encoding="utf-8"))
            ]
            found = {"_id": "0", "id": name, "evalResults": rows}
        return JSONResponse(found)

    async def preupload(self, request: Request, kind: str, name: str, revision: str) -> Response:
        commit = self._repo(request, kind, name).at(revision)
        ignored: list[str] = []
        if ".gitignore" in commit.tree:
            ignored = self._file(commit.tree[".gitignore"]).read_text(encoding="utf-8").split()
        answers = []
        for file in (await request.json())["files"]:
            binary = b"\0" in base64.b64decode(file["sample"])
            large = file["path"].endswith(LARGE) or binary or file["size"] > 10 << 20
            known = commit.tree.get(file["path"])
            same = {"oid": known.sha256 or known.oid} if known else {}
            skip = any(Path(file["path"]).match(pattern) for pattern in ignored)
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": skip, **same})
        return JSONResponse({"files": answers})

    async def lfs_batch(self, request: Request, name: str) -> Response:
        self._writer(request, name)
        objects = []
        for wanted in (await request.json())["objects"]:
            if not (self.folder / "blobs" / wanted["oid"]).exists():
                upload = {"href": f"{self.storage}/_lfs/{wanted['oid']}"}
                wanted = {**wanted, "actions": {"upload": upload, "verify": {"href": f"{self.url}/{name}.git/verify"}}}
            objects.append(wanted)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def lfs_put(self, request: Request, sha256: str) -> Response:
        if "authorization" in request.headers:
            raise Refusal(400, "the token was sent to the storage host")
        digest, part = hashlib.sha256(), self.folder / f"{sha256}.part"
        with part.open("wb") as file:
            async for piece in request.stream():
                file.write(piece)
                digest.update(piece)
        if digest.hexdigest() != sha256:
            raise Refusal(400, "sha256 mismatch")
        part.replace(self.folder / "blobs" / sha256)
        return Response(headers={"ETag": f'"{sha256}"'})

    async def lfs_verify(self, request: Request, name: str) -> Response:
        return JSONResponse({}, 200 if (self.folder / "blobs" / (await request.json())["oid"]).exists() else 404)

    async def xet_token(self, request: Request, kind: str, name: str, way: str, revision: str = "") -> Response:
        self._repo(request, kind, name)
        if way == "write" and "create_pr" not in request.query_params:
            self._writer(request, name)
        address, expires = f"local://{self.cas}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(expires)}
        return JSONResponse({"casUrl": address, "exp": expires, "accessToken": "x"}, headers=headers)

    async def commit(self, request: Request, kind: str, name: str, revision: str) -> Response:
        pull = "create_pr" in request.query_params
        if not pull:
            self._writer(request, name)
        repo = self._repo(request, kind, name)
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        header, operations = lines[0]["value"], lines[1:]
        with self.lock:
            head = repo.at(revision)
            if header.get("parentCommit", head.oid) != head.oid:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(head.tree)
            for operation in operations:
                self._apply(tree, operation["key"], operation["value"])
            if pull:
                repo.pulls.append(header["summary"])
                ref = f"refs/pr/{len(repo.pulls)}"
                repo.refs[ref] = head.oid
            else:
                ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
            made = repo.commit(ref, tree, header["summary"])
        url = f"{self.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}"}
        return JSONResponse(answer | ({"pullRequestUrl": f"{url}/discussions/{len(repo.pulls)}"} if pull else {}))

    def _apply(self, tree: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if path.startswith("/") or "\\" in path or {"..", ".git"} & set(path.split("/")):
            raise Refusal(400, f"Invalid path: {path}")
        if key == "lfsFile":
            tree[path] = self._large(value["oid"])
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise Refusal(404, f"no file {path}", "EntryNotFound")
        elif key == "file":
            data = base64.b64decode(value["content"])
            if b"\0" in data:
                raise Refusal(400, "Your push was rejected because it contains binary files.")
            if path == "README.md" and (found := card_problems(data.decode())):
                raise Refusal(400, found[0])
            if path.startswith(".eval_results/"):
                eval_rows(data.decode())
            tree[path] = self._store(data)
        else:
            raise Refusal(400, f"unknown operation {key}")

    async def tree(self, request: Request, kind: str, name: str, revision: str, path: str = "") -> Response:
        commit = self._repo(request, kind, name).at(revision)
        prefix = f"{path.strip('/')}/" if path else ""
        deep = request.query_params.get("recursive", "").lower() in ("true", "1")
        files = {p: blob for p, blob in commit.tree.items() if p.startswith(prefix)}
        if prefix and not files:
            raise Refusal(404, f"no folder {path}", "EntryNotFound")
        rest = {p: p.removeprefix(prefix).split("/") for p in files}
        folders = {prefix + parts[0] for parts in rest.values() if len(parts) > 1}
        shown = [entry(p, blob) for p, blob in files.items() if deep or len(rest[p]) == 1]
        return JSONResponse(shown + [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders])

    async def paths_info(self, request: Request, kind: str, name: str, revision: str) -> Response:
        commit = self._repo(request, kind, name).at(revision)
        wanted = (await request.form()).getlist("paths")
        return JSONResponse([entry(p, blob) for p, blob in commit.tree.items() if p in wanted])

    async def refs(self, request: Request, kind: str, name: str) -> Response:
        repo = self._repo(request, kind, name)

        def of(prefix: str) -> list[dict[str, str]]:
            found = [(ref, oid) for ref, oid in repo.refs.items() if ref.startswith(prefix)]
            return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid} for ref, oid in found]

        answer = {"branches": of("refs/heads/"), "tags": of("refs/tags/"), "pullRequests": of("refs/pr/")}
        return JSONResponse({**answer, "converts": []})

    async def tag(self, request: Request, kind: str, name: str, revision: str) -> Response:
        self._writer(request, name)
        repo, ref = self._repo(request, kind, name), f"refs/tags/{(await request.json())['tag']}"
        if ref in repo.refs:
            raise Refusal(409, "Tag already exists")
        repo.refs[ref] = repo.at(revision).oid
        return JSONResponse({})

    async def discussions(self, request: Request, kind: str, name: str) -> Response:
        repo = self._repo(request, kind, name)
        shown = [
            {
                "title": title,
                "num": number,
                "status": "open",
                "isPullRequest": True,
                "createdAt": now(),
                "author": {"name": "org"},
                "repo": {"name": name, "type": kind},
            }
            for number, title in enumerate(repo.pulls, start=1)
        ]
        return JSONResponse({"discussions": shown, "count": len(shown), "start": 0})

    async def collection(self, request: Request, slug: str = "", items: str = "") -> Response:
        if request.method == "GET":
            owner = request.query_params.get("owner")
            if slug:
                return JSONResponse(self.collections[slug])
            listed = [c for c in self.collections.values() if owner in (None, c["owner"])]
            return JSONResponse([{k: v for k, v in c.items() if k != "position"} for c in listed])
        wanted = await request.json()
        if not items:
            self._writer(request, f"{wanted['namespace']}/x")
            words = re.sub(r"[^a-z0-9]+", "-", wanted["title"].lower())
            slug = f"{wanted['namespace']}/{words}-{len(self.collections):024x}"
            key = (wanted["title"], wanted["namespace"])
            same = [c["slug"] for c in self.collections.values() if (c["title"], c["owner"]) == key]
            if same:
                raise Refusal(409, "exists", slug=same[0])
            empty = {"position": 0, "private": False, "theme": "blue", "upvotes": 0, "items": [], "lastUpdated": now()}
            self.collections[slug] = {**empty, "slug": slug, "title": wanted["title"], "owner": wanted["namespace"]}
            return JSONResponse(self.collections[slug])
        self._writer(request, slug)
        found = self.collections[slug]["items"]
        if any(item["id"] == wanted["item"]["id"] for item in found):
            raise Refusal(409, "already in the collection")
        found.append({"_id": str(len(found)), **wanted["item"], "position": len(found)})
        return JSONResponse(self.collections[slug])

    async def resolve(self, request: Request, name: str, revision: str, path: str, kind: str = "models") -> Response:
        repo = self._repo(request, kind.removesuffix("s"), name)
        commit = repo.at(revision)
        blob = commit.tree.get(path)
        headers = {"X-Repo-Commit": commit.oid}
        if blob is None:
            return JSONResponse({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{blob.oid}"'
        if blob.sha256 is None:
            return FileResponse(self._file(blob), headers=headers, media_type="text/plain")
        headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        if blob.xet:
            route = f"{self.url}/api/{repo.kind}s/{name}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": blob.xet, "X-Xet-Refresh-Route": route, "Link": f'<{route}>; rel="xet-auth"'}
        return RedirectResponse(f"{self.storage}/_storage/{blob.sha256}", 302, headers)

    async def stored(self, request: Request, sha256: str) -> Response:
        if "authorization" in request.headers:
            raise Refusal(400, "the token was sent to the storage host")
        return FileResponse(self.folder / "blobs" / sha256)


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def entry(path: str, blob: Blob) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": "file", "path": path, "oid": blob.oid, "size": blob.size}
    if blob.sha256:
        shown["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    return shown | ({"xetHash": blob.xet} if blob.xet else {})


def front_matter(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", text, re.S)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def card_problems(text: str) -> list[str]:
    try:
        card = front_matter(text)
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    problems = [f'"{key}" must be an array' for key in ("tags", "datasets") if not isinstance(card.get(key, []), list)]
    base = card.get("base_model")
    if base is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        problems.append(f'"base_model" with value "{base}" is not valid. Use a model id from the Hub.')
    return problems


def eval_rows(text: str) -> list[dict[str, Any]]:
    rows = yaml.safe_load(text)
    if not isinstance(rows, list) or not rows:
        raise Refusal(400, ".eval_results: a list is needed")
    for row in rows:
        unknown = set(row) - {"dataset", "value", "verifyToken", "date", "source", "notes"}
        if unknown or set(row["dataset"]) - {"id", "task_id", "revision"} or "task_id" not in row["dataset"]:
            raise Refusal(400, f".eval_results: bad row {row}")
        if not isinstance(row["value"], (int, float)) or not isinstance(row.get("date", ""), str):
            raise Refusal(400, f".eval_results: bad value or date in {row}")
    return rows


def xet_files(folder: Path) -> dict[str, tuple[str, int]]:
    """Checksum to Xet hash and size, from the shard files of the storage folder.

    A shard is a header of 48 bytes, then for each file: its hash (32), flags and the number n of segments (two u32),
    padding to 48; n segments of 48 bytes, each with its size at byte 36; with flag 31 another n of 48; with flag 30 a
    block of 48 that begins with the sha256. A hash of only ones ends the list. Hashes are four little-endian u64.
    """

    def written(raw: bytes) -> str:
        return struct.pack(">4Q", *struct.unpack("<4Q", raw)).hex()

    found = {}
    for shard in (folder / "xet" / "xorbs" / "shards").glob("*.mdb"):
        data, place = shard.read_bytes(), 48
        while (name := data[place : place + 32]) != b"\xff" * 32:
            flags, count = struct.unpack_from("<2I", data, place + 32)
            starts = range(place + 48, place + 48 * (1 + count), 48)
            size = sum(struct.unpack_from("<I", data, start + 36)[0] for start in starts)
            place += 48 * (1 + count * (2 if flags >> 31 & 1 else 1))
            if flags >> 30 & 1:
                found[written(data[place : place + 32])] = (written(name), size)
                place += 48
    return found


NAME, KIND, REVISION = r"(?P<name>[\w.-]+/[\w.-]+)", "(?P<kind>model|dataset|space)s", "(?P<revision>[^/]+)"
API = f"/api/{KIND}/{NAME}"
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/api/whoami-v2", HubServer.whoami),
    ("POST", "/api/repos/create", HubServer.create),
    ("POST", "/api/validate-yaml", HubServer.validate),
    ("GET POST", r"/api/collections(/(?P<slug>[\w.-]+/[\w.-]+?)(?P<items>/items)?)?", HubServer.collection),
    ("PUT", f"{API}/settings", HubServer.settings),
    ("POST", f"{API}/preupload/{REVISION}", HubServer.preupload),
    ("POST", f"{API}/commit/{REVISION}", HubServer.commit),
    ("GET", f"{API}/xet-(?P<way>read|write)-token(/{REVISION})?", HubServer.xet_token),
    ("GET", f"{API}/tree/{REVISION}(/(?P<path>.+))?", HubServer.tree),
    ("POST", f"{API}/paths-info/{REVISION}", HubServer.paths_info),
    ("GET", f"{API}/refs", HubServer.refs),
    ("POST", f"{API}/tag/{REVISION}", HubServer.tag),
    ("GET", f"{API}/discussions", HubServer.discussions),
    ("GET", f"{API}(/revision/{REVISION})?", HubServer.info),
    ("POST", rf"/(?:(?:datasets|spaces)/)?{NAME}\.git/info/lfs/objects/batch", HubServer.lfs_batch),
    ("POST", rf"/{NAME}\.git/verify", HubServer.lfs_verify),
    ("PUT", "/_lfs/(?P<sha256>[0-9a-f]{64})", HubServer.lfs_put),
    ("GET HEAD", "/_storage/(?P<sha256>[0-9a-f]{64})", HubServer.stored),
    ("GET HEAD", f"/(?:(?P<kind>datasets|spaces)/)?{NAME}/resolve/{REVISION}/(?P<path>.+)", HubServer.resolve),
]
