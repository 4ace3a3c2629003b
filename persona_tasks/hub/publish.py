"""Publishing a release: look at what the Hub has, show what would change, change it in one commit, look again.

A repository is private until its commit is verified, so nobody sees half a release. Whatever breaks on the way, the
next run starts from what is on the Hub then, does what is missing, and nothing twice. `make_plan` only reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from persona_tasks.embedded.weights import sha256
from persona_tasks.hub.client import HubError, talking_to
from persona_tasks.hub.files import Refused, git_oid
from persona_tasks.hub.release import Release

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

Action = Literal["add", "change", "keep", "delete"]
NOT_OURS = {".gitattributes"}  # the Hub writes it


@dataclass(frozen=True)
class Change:
    """What happens to one file."""

    path: str
    action: Action
    size: int


@dataclass(frozen=True)
class Plan:
    """What is between a release and its repository as it is now.

    Attributes:
        head: The commit that the new one must follow; None where there is no repository.
        private: Whether the repository is private now.
        tagged: The commit of the release's tag, if it exists.
        listed: Whether the collection has it.
        pull_request: An open pull request that holds exactly this release.
    """

    release: Release
    head: str | None
    private: bool
    changes: list[Change]
    tagged: str | None
    listed: bool
    pull_request: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict, repr=False)

    @property
    def uploads(self) -> list[Change]:
        return [change for change in self.changes if change.action != "keep"]


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        revision: The commit at which the release lies (of a pull request, its head).
        committed: Whether this run made it.
    """

    revision: str
    committed: bool
    pull_request: str | None = None


def make_plan(api: HfApi, release: Release, create_pr: bool = False) -> Plan:
    """Compare a release with its repository. Only reads.

    Raises:
        Refused: A file must not be published, or the version's tag holds other weights.
        HubError: The Hub does not answer.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    files = release.files
    name, kind = release.repository, release.kind
    with talking_to(release.repository):
        try:
            info = api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError:
            changes = [Change(path, "add", file.stat().st_size) for path, file in files.items()]
            return Plan(release, None, True, changes, None, _listed(api, release), files=files)
        head = str(info.sha)
        there = _tree(api, release, head)
        if ".gitignore" in there:
            raise Refused(f"{release.repository} holds a .gitignore, which would make files disappear; delete it there")
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(name, repo_type=kind).tags}
        tagged = tags.get(release.version)
        if tagged:
            _check_tag(_tree(api, release, tagged), release, files)
        found = _same_pull_request(api, release, files) if create_pr else None
        return Plan(
            release, head, bool(info.private), _changes(there, files), tagged, _listed(api, release), found, files
        )


def carry_out(
    api: HfApi, plan: Plan, *, private: bool = False, create_pr: bool = False, say: Callable[[str], None] = print
) -> Outcome:
    """Make the repository what the plan's release is.

    Args:
        api: A client with a token that may write.
        plan: From `make_plan`; if the repository has changed since, nothing is done.
        private: Leave a new repository private.
        create_pr: Ask for the change by a pull request instead of making it.
        say: Told what was done, one line at a time.

    Raises:
        Refused: What is asked for would hide or overwrite something.
        HubError: The Hub failed or somebody else was faster. Run it again.
    """
    release = plan.release
    if create_pr:
        return _ask(api, plan, say)
    if private and plan.head and not plan.private:
        raise Refused(f"{release.repository} is public already; make it private on the Hub if that is meant")
    with talking_to(release.repository):
        if plan.head is None:
            api.create_repo(
                release.repository, repo_type=release.kind, private=True, exist_ok=True, space_sdk=_sdk(release)
            )
            say(f"created {release.repository}")
            plan = make_plan(api, release)
        revision, committed = _commit(api, plan), bool(plan.uploads)
        if committed:
            say(f"committed {len(plan.uploads)} files as {revision[:12]}")
        verify(api, release, revision, plan.files)
        if plan.tagged is None:
            api.create_tag(release.repository, repo_type=release.kind, tag=release.version, revision=revision)
            say(f"tagged {release.version}")
        if plan.private and not private:
            api.update_repo_settings(release.repository, repo_type=release.kind, visibility="public")
            say("made public")
        if not plan.listed and not private:
            _list(api, release)
            say(f"added to the collection {release.collection!r}")
    return Outcome(revision, committed)


def verify(api: HfApi, release: Release, revision: str, files: Mapping[str, Path]) -> None:
    """Raises: HubError if the commit does not hold exactly these files with these checksums."""
    wrong = [change.path for change in _changes(_tree(api, release, revision), files) if change.action != "keep"]
    if wrong:
        raise HubError(f"{release.repository}@{revision[:12]} is not what was sent: {', '.join(wrong)}. Run it again")


def _commit(api: HfApi, plan: Plan, create_pr: bool = False) -> str:
    """One commit on the expected parent: `upload_folder` could make several, and guards only the first."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if not plan.uploads:
        return str(plan.head)
    operations = [
        CommitOperationDelete(change.path)
        if change.action == "delete"
        else CommitOperationAdd(change.path, str(plan.files[change.path]))
        for change in plan.uploads
    ]
    release = plan.release
    made = api.create_commit(
        release.repository,
        operations,
        repo_type=release.kind,
        commit_message=_message(release),
        parent_commit=plan.head,
        create_pr=create_pr,
    )
    return str(made.pr_url if create_pr else made.oid)


def _ask(api: HfApi, plan: Plan, say: Callable[[str], None]) -> Outcome:
    """A pull request, unless there is nothing to ask for or the same one is open."""
    release = plan.release
    if plan.head is None:
        raise Refused(f"{release.repository} does not exist; a pull request needs a repository")
    if not plan.uploads:
        return Outcome(plan.head, False)
    if plan.pull_request:
        say(f"the pull request is open: {plan.pull_request}")
        return Outcome(plan.head, False, plan.pull_request)
    with talking_to(release.repository):
        url = _commit(api, plan, create_pr=True)
        number = url.rstrip("/").rpartition("/")[2]
        verify(api, release, f"refs/pr/{number}", plan.files)
    say(f"opened the pull request {url}")
    return Outcome(plan.head, True, url)


def _same_pull_request(api: HfApi, release: Release, files: Mapping[str, Path]) -> str | None:
    for discussion in api.get_repo_discussions(
        release.repository, repo_type=release.kind, discussion_type="pull_request", discussion_status="open"
    ):
        if discussion.title == _message(release):
            there = _tree(api, release, f"refs/pr/{discussion.num}")
            if all(change.action == "keep" for change in _changes(there, files)):
                return str(discussion.url)
    return None


def _message(release: Release) -> str:
    return f"Release {release.version}"


def _tree(api: HfApi, release: Release, revision: str) -> dict[str, RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    listed = api.list_repo_tree(release.repository, repo_type=release.kind, recursive=True, revision=revision)
    return {entry.path: entry for entry in listed if isinstance(entry, RepoFile) and entry.path not in NOT_OURS}


def _changes(there: Mapping[str, RepoFile], files: Mapping[str, Path]) -> list[Change]:
    changes = []
    for path, file in sorted(files.items()):
        known = there.get(path)
        action: Action = "add" if known is None else "keep" if _same(known, file) else "change"
        changes.append(Change(path, action, file.stat().st_size))
    gone = [Change(path, "delete", entry.size) for path, entry in sorted(there.items()) if path not in files]
    return changes + gone


def _same(entry: RepoFile, file: Path) -> bool:
    return bool(entry.lfs.sha256 == sha256(file) if entry.lfs else entry.blob_id == git_oid(file))


def _check_tag(tagged: Mapping[str, RepoFile], release: Release, files: Mapping[str, Path]) -> None:
    """A card may be written anew under the same version; weights and data may not."""
    fixed = [path for path in files if path.endswith((".safetensors", ".jsonl"))]
    for path in fixed:
        if path not in tagged or not _same(tagged[path], files[path]):
            raise Refused(
                f"{release.repository}: {release.version} is tagged with another {path}; a tag never moves, so raise "
                f"the version in the registry"
            )


def _sdk(release: Release) -> str | None:
    return "static" if release.kind == "space" else None


def _listed(api: HfApi, release: Release) -> bool:
    if release.collection is None:
        return True
    namespace = release.repository.partition("/")[0]
    for collection in api.list_collections(owner=namespace):
        if collection.title == release.collection:
            items = api.get_collection(collection.slug).items  # the listing cuts long collections short
            return any(item.item_id == release.repository for item in items)
    return False


def _list(api: HfApi, release: Release) -> None:
    namespace = release.repository.partition("/")[0]
    collection = api.create_collection(str(release.collection), namespace=namespace, exists_ok=True)
    api.add_collection_item(collection.slug, release.repository, release.kind, exists_ok=True)
