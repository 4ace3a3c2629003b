"""Model cards, generated from the registry: one template, and what is compared with it so that none goes stale."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_tasks.hub.entries import Checkpoint, Score, Value
from persona_tasks.hub.registry import Registry
from persona_tasks.transcript import METRICS, Judged, read_jsonl

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATE = Path("model_cards") / "template.md.jinja"
CURVE = "drift_curve.png"
PAGE = "side_by_side.md"  # dialogues of it and its base, as `training.compare` prints them; not made from the registry
TURNS_SHOWN = 6


def repository(registry: Registry, checkpoint: Checkpoint, namespace: str | None = None, merged: bool = False) -> str:
    """Where a checkpoint goes: its repository, in another namespace if one is given."""
    name = checkpoint.repository.partition("/")[2] + ("-merged" if merged else "")
    return f"{namespace or checkpoint.repository.partition('/')[0]}/{name}"


def render(
    registry: Registry, checkpoint: Checkpoint, root: Path, namespace: str | None = None, merged: bool = False
) -> str:
    """The card of an adapter, or of its merged model."""
    from huggingface_hub import ModelCard

    scores = scores_of(registry, checkpoint)
    card = ModelCard.from_template(
        metadata(registry, checkpoint, namespace, merged),
        template_path=str(root / TEMPLATE),
        id=checkpoint.id,
        title=checkpoint.title + (" (merged)" if merged else ""),
        description=checkpoint.description,
        role=checkpoint.role,
        merged=merged,
        repository=repository(registry, checkpoint, namespace, merged),
        adapter_repository=repository(registry, checkpoint, namespace),
        base=registry.base_of(checkpoint),
        version=checkpoint.version,
        training=list(_training(registry, checkpoint)),
        tables=[_table(registry, score) for score in scores],
        measured=_measured(checkpoint),
        has_curve=bool(curve_scores(registry, checkpoint)),
        dialogues=_dialogues(registry, checkpoint, root),
        page=PAGE if (root / card_file(checkpoint)).with_name(PAGE).is_file() else None,
        limits=checkpoint.limits,
        license=checkpoint.license,
        year=max([score.date.year for score in registry.scores], default=2026),
    )
    return str(card.content).rstrip("\n") + "\n"


def metadata(
    registry: Registry, checkpoint: Checkpoint, namespace: str | None = None, merged: bool = False
) -> ModelCardData:
    """The card's front matter, by which the Hub files the model."""
    from huggingface_hub import ModelCardData

    benchmark = registry.benchmark.repository
    tags = ["persona-tasks", "persona", "simulated-user" if checkpoint.role == "simulator" else "judge"]
    return ModelCardData(
        language="en",
        license=checkpoint.license,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        base_model=registry.base_of(checkpoint).repository,
        base_model_relation="finetune" if merged else "adapter",
        datasets=[f"{namespace}/{benchmark.partition('/')[2]}" if namespace else benchmark],
        tags=[*tags, "lora", str(checkpoint.method)],
    )


def card_file(checkpoint: Checkpoint) -> Path:
    """Where the generated card of a checkpoint lies, from the root."""
    return Path("model_cards") / checkpoint.id / "README.md"


def write_cards(registry: Registry, root: Path) -> list[Path]:
    """Generate all cards and drift curves anew; returns what was written."""
    from persona_tasks.hub.figure import draw

    written = []
    for checkpoint in registry.checkpoints:
        if checkpoint.kind == "adapter":
            file = root / card_file(checkpoint)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(render(registry, checkpoint, root), encoding="utf-8")
            written.append(file)
            if scores := curve_scores(registry, checkpoint):
                written.append(draw(scores, registry, file.with_name(CURVE)))
    return written


def card_problems(registry: Registry, root: Path) -> Iterator[str]:
    """Cards and pictures that are not what the registry says now."""
    for checkpoint in registry.checkpoints:
        if checkpoint.kind == "adapter":
            yield from stale(registry, checkpoint, root)


def stale(registry: Registry, checkpoint: Checkpoint, root: Path) -> Iterator[str]:
    """What of one checkpoint's card and picture is not up to date."""
    from persona_tasks.hub.figure import drawn_from, fingerprint

    file = root / card_file(checkpoint)
    remedy = "run `persona-tasks registry update`"
    if not file.is_file() or file.read_text(encoding="utf-8") != render(registry, checkpoint, root):
        yield f"{file} is not what the registry and the template give; {remedy}"
    scores = curve_scores(registry, checkpoint)
    picture = file.with_name(CURVE)
    if scores and (not picture.is_file() or drawn_from(picture) != fingerprint(scores)):
        yield f"{picture} shows other scores than the registry has; {remedy}"
    if not scores and picture.is_file():
        yield f"{picture} belongs to no score; delete it"


def scores_of(registry: Registry, checkpoint: Checkpoint) -> list[Score]:
    """Its scores, the newest first."""
    return sorted((s for s in registry.scores if s.checkpoint == checkpoint.id), key=lambda s: s.date, reverse=True)


def comparable(registry: Registry, score: Score) -> Score | None:
    """The same measurement of the base model, if there is one."""
    checkpoint = registry.checkpoint(str(score.checkpoint))
    if checkpoint.base is None:
        return None
    for other in scores_of(registry, registry.base_of(checkpoint)):
        if other.key[2:] == score.key[2:]:
            return other
    return None


def curve_scores(registry: Registry, checkpoint: Checkpoint) -> list[Score]:
    """The newest score with a curve, and the base model's beside it."""
    for score in scores_of(registry, checkpoint):
        if any(value.curve for value in score.values):
            base = comparable(registry, score)
            return [base, score] if base else [score]
    return []


def _training(registry: Registry, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    training, recipe = checkpoint.training, checkpoint.recipe
    assert training and recipe  # of every adapter, by its validation
    base = registry.base_of(checkpoint)
    yield "base model", f"`{base.repository}` at `{base.revision}`"
    yield "method", str(checkpoint.method).upper()
    if training.rewards:
        yield "rewards", ", ".join(training.rewards)
    if training.judge:
        yield "judge in training", f"`{training.judge}`"
    yield "personas", training.personas
    yield "steps", str(training.steps)
    yield "seed", str(training.seed)
    yield "hardware", training.hardware + (f", {training.hours:g} hours" if training.hours is not None else "")
    yield "recipe", f"`{recipe.path}`, sha256 `{recipe.sha256}`"
    yield "command", f"`{recipe.command}`"
    if training.data_sha256:
        yield "data", f"sha256 `{training.data_sha256}`"
    yield "code", f"commit `{training.commit}`"
    yield "weights", f"sha256 `{checkpoint.weights}`"


def _table(registry: Registry, score: Score) -> str:
    from persona_tasks.judge_card import known_card, worth

    task = registry.task(score.task)
    base = comparable(registry, score)
    head = [
        f"**{task.title}** (`{task.id}` {score.task_version}, {', '.join(_settings(score))}){_judge(registry, score)}, "
        f"{score.harness}, {score.date}:",
        "",
        "| scenario | metric | base | this model | n | unparsed |",
        "|---|---|---|---|---|---|",
    ]
    if score.judge and known_card(score.judge):
        head.insert(1, f"({worth(score.judge)})")
    rows = []
    for value in score.values:
        before = base.value(value.metric, value.scenario) if base else None
        unparsed = "" if value.unparsed is None else f"{100 * value.unparsed:.1f} %"
        cells = (value.scenario, registry.metric(value.metric).title, _shown(before), _shown(value), value.n, unparsed)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    logs = ", ".join(f"[{log.name}]({log.url})" if log.url else f"`{log.name}`" for log in score.logs)
    checksums = ", ".join(f"`{log.sha256[:12]}…`" for log in score.logs)
    commit = f" at commit `{score.commit}`" if score.commit else ""
    source = f"`{score.command}`{commit}; log {logs}, sha256 {checksums}."
    return "\n".join([*head, *rows, "", source])


def _measured(checkpoint: Checkpoint) -> str:
    """A judge's agreement with the labelled lines, where it was measured."""
    from persona_tasks.judge_card import known_card
    from persona_tasks.tables import card_markdown

    card = known_card(f"persona/{checkpoint.id}") if checkpoint.role == "judge" else None
    return card_markdown(card) if card else ""


def _settings(score: Score) -> Iterator[str]:
    yield f"{score.split} split"
    if score.turns:
        yield f"{score.turns} turns"
    yield "seeds " + ", ".join(map(str, score.seeds))


def _judge(registry: Registry, score: Score) -> str:
    if score.judge is None:
        return ""
    judge = registry.judge(score.judge)
    doubt = "" if judge is None or judge.usable else f" (no usable judge: {judge.note})"
    return f", judge `{score.judge}`{doubt}"


def _shown(value: Value | None) -> str:
    if value is None:
        return "–"
    low, high = value.interval or (None, None)
    return f"{value.value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


# ------------------------------------------------------------------------------------------------------- dialogues


def dialogue_file(root: Path, checkpoint: str) -> Path:
    """Where the example dialogues of a checkpoint are kept, one per scenario."""
    return root / "model_cards" / "dialogues" / f"{checkpoint}.jsonl"


def examples(records: Sequence[Judged]) -> list[Judged]:
    """Of each scenario the dialogue of the first persona: chosen by its id, not by how it went."""
    first: dict[str, Judged] = {}
    for record in sorted(records, key=lambda record: (record.transcript.persona_id, record.transcript.seed or 0)):
        first.setdefault(record.transcript.scenario, record)
    return [first[scenario] for scenario in sorted(first)]


def keep_examples(root: Path, checkpoint: str, records: Sequence[Judged]) -> None:
    """Keep the example dialogues of a run for the cards."""
    file = dialogue_file(root, checkpoint)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (record.model_dump_json(exclude_defaults=True) + "\n" for record in examples(records))
    file.write_text("".join(lines), encoding="utf-8")


def _dialogues(registry: Registry, checkpoint: Checkpoint, root: Path) -> str:
    files = [dialogue_file(root, name) for name in (str(checkpoint.base), checkpoint.id)]
    if not all(file.is_file() for file in files):
        return ""
    before, after = ({record.transcript.persona_id: record for record in read_jsonl(file)} for file in files)
    shared = sorted(set(before) & set(after))
    parts = []
    for persona in shared:
        for title, record in (("base", before[persona]), (checkpoint.id, after[persona])):
            lines = _dialogue(record)
            parts.append(f"<details><summary>{persona}, {title}</summary>\n\n{lines}\n\n</details>")
    return "\n".join(parts)


def _dialogue(record: Judged) -> str:
    contradicting = {v.turn for v in record.of(METRICS[0]) if v.outcome == "contradicts"}
    lines = []
    for number, turn in enumerate(record.transcript.turns[:TURNS_SHOWN], start=1):
        mark = " ✗" if number in contradicting else ""
        lines += [f"> *{_plain(turn.partner)}*", ">", f"> **{_plain(turn.line)}**{mark}", ">"]
    return "\n".join(lines[:-1])


def _plain(text: str) -> str:
    """Words of a model, harmless in Markdown: on one line, and neither HTML nor links nor emphasis."""
    escaped = html.escape(" ".join(text.split()) or "…", quote=False)
    return "".join("\\" + char if char in "\\`*_[]|#" else char for char in escaped)
