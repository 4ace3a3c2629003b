"""The publishing commands: from a name in the registry to releases, their plans, a table, and the registry after."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from rich import box
from rich.table import Table

from persona_tasks.hub.client import client
from persona_tasks.hub.entries import Publication
from persona_tasks.hub.publish import Outcome, Plan, carry_out, make_plan
from persona_tasks.hub.registry import Registry, load, registry_file, root_of, save
from persona_tasks.hub.release import Release, adapter_release, check_publishable, merged_release

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to publish; see `persona-tasks publish --help`."""

    dry_run: bool = False
    create_pr: bool = False
    private: bool = False
    namespace: str | None = None

    def in_registry(self, registry: Registry) -> bool:
        """Whether this publication is the one that the registry speaks of."""
        return not (self.create_pr or self.private) and self.namespace in (None, registry.namespace)


def publish_checkpoint(name: str, merged: bool, options: Options, say: Say) -> None:
    """Publish a checkpoint, and its merged model if asked to; note in the registry where they are.

    Raises:
        RegistryError: There is no such checkpoint.
        Refused: It must not be published.
        HubError: The Hub failed; running it again goes on.
    """
    file = registry_file()
    registry, root = load(file), root_of(file)
    checkpoint = registry.checkpoint(name)
    check_publishable(registry, checkpoint, root)
    namespace = options.namespace or registry.namespace
    with tempfile.TemporaryDirectory() as scratch:
        kinds = {"published": adapter_release, **({"merged": merged_release} if merged else {})}
        for field, make in kinds.items():
            release = make(registry, checkpoint, root, Path(scratch), namespace)
            outcome = publish_release(release, options, say)
            if outcome is None or not options.in_registry(registry):
                continue
            where = _publication(release, outcome, getattr(checkpoint, field))
            if where == getattr(checkpoint, field):
                continue
            checkpoint = checkpoint.model_copy(update={"status": "published", field: where})
            save(load(file).replace(checkpoint), file)


def publish_benchmark(options: Options, say: Say) -> None:
    """Publish the persona bank and the calibration set; note in the registry where they are."""
    from persona_tasks.hub.benchmark import benchmark_release

    file = registry_file()
    registry = load(file)
    with tempfile.TemporaryDirectory() as scratch:
        namespace = options.namespace or registry.namespace
        release = benchmark_release(registry, root_of(file), Path(scratch), namespace)
        outcome = publish_release(release, options, say)
    if outcome is None or not options.in_registry(registry):
        return
    where = _publication(release, outcome, registry.benchmark.published)
    benchmark = registry.benchmark.model_copy(update={"status": "published", "published": where})
    save(registry.model_copy(update={"benchmark": benchmark}), file)


def publish_leaderboard(options: Options, say: Say) -> None:
    """Publish the leaderboard as a static Space."""
    from persona_tasks.hub.leaderboard import leaderboard_release

    file = registry_file()
    registry = load(file)
    with tempfile.TemporaryDirectory() as scratch:
        namespace = options.namespace or registry.namespace
        publish_release(leaderboard_release(registry, root_of(file), Path(scratch), namespace), options, say)


def publish_release(release: Release, options: Options, say: Say) -> Outcome | None:
    """Show the plan and, unless it is a dry run, carry it out."""
    api = client()
    plan = make_plan(api, release, options.create_pr)
    show_plan(plan, options)
    if options.dry_run:
        return None
    outcome = carry_out(api, plan, private=options.private, create_pr=options.create_pr, say=say)
    say(f"{release.repository} is at {outcome.revision}" + ("" if outcome.committed else ", as it was"))
    return outcome


def _publication(release: Release, outcome: Outcome, known: Publication | None) -> Publication:
    """The entry as it was if nothing has changed, so that publishing twice leaves the registry alone."""
    if known and (known.repository, known.revision) == (release.repository, outcome.revision):
        return known
    today = datetime.now(timezone.utc).date()
    return Publication(repository=release.repository, revision=outcome.revision, on=today)


def show_plan(plan: Plan, options: Options) -> None:
    """A table of what would change."""
    from rich.console import Console

    table = Table(f"{plan.release.kind} {plan.release.repository}", "", "bytes", box=box.SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for change in plan.changes:
        table.add_row(change.path, change.action, f"{change.size:,}")
    for what, state in _around(plan, options):
        table.add_row(what, state)
    Console().print(table, highlight=False)


def _around(plan: Plan, options: Options) -> Iterable[tuple[str, str]]:
    if options.create_pr:
        yield "pull request", plan.pull_request or ("open" if plan.uploads else "not needed")
        return
    yield "parent commit", plan.head[:12] if plan.head else "new repository"
    yield f"tag {plan.release.version}", f"at {plan.tagged[:12]}" if plan.tagged else "add"
    visible = "private" if options.private and plan.private else "public"
    yield "visibility", f"private → {visible}" if plan.private and visible == "public" else visible
    if plan.release.collection:
        yield "collection", "keep" if plan.listed else "add"
