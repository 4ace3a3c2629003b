"""All methods side by side: the same people, the same partner's lines, one judge that never gave a reward.

python -m training.compare --config training/recipes/compare.yaml --out results/compare

A recipe lists *cells* (one trained model each) and *conditions* (how long, with whom). Each cell whose weights are
there is played under each condition, then judged. Dialogues go to ``dialogues/<condition>/<cell>.jsonl``, with verdicts
to ``judged/<condition>/<cell>.jsonl``, batch by batch: the same command again does only what is missing, also without
--resume. After each cell the results are written anew, ``results.json`` and ``results.md``; at the end, pictures
(``drift``, ``training``, ``trade_off``) and ``side_by_side.md``. A cell without weights says `not run`.

Before anything is played, a cell is refused if its rewards came from the judge that reports, or if it was trained on
the people it would be reported on (see `check_cell`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from persona_tasks.embedded.weights import known
from persona_tasks.judge_card import worth
from persona_tasks.lm_eval_tasks.roles import open_role
from persona_tasks.personas import Persona
from persona_tasks.report.judges import judge_kappa
from persona_tasks.transcript import METRICS
from training import recipe as common
from training.compare_page import markdown, side_by_side, write_pictures, write_trade_off
from training.compare_play import (
    Cell,
    CompareError,
    Recipe,
    file_of,
    judge_settings,
    people_of,
    play_cells,
    stored,
    taken,
    there,
    weights_of,
)
from training.compare_table import BASE, Played, Results, compare

# ------------------------------------------------------------------------------------------- what must not be compared


def run_folder(model: str) -> Path | None:
    """The folder of the training run that a model folder belongs to, with its recipe.json; None without one."""
    folder = Path(model).expanduser()
    return next((place for place in (folder, folder.parent) if (place / "recipe.json").is_file()), None)


def check_cell(cell: Cell, judge: str, people: Sequence[Persona]) -> list[str]:
    """See that the run behind a cell has learned neither from the judge that reports nor from the people it plays.

    Looked at are the run's recipe.json, the JSONL files it names and the runs of the bases it names: every value under
    a key `judge`, `split`, `personas` or `persona_id`.

    Returns:
        What could not be looked at.

    Raises:
        CompareError: It has learned from one of them.
    """
    notes: list[str] = []
    ids = {persona.id for persona in people}
    for where, tree in _learned_from(cell.model, notes):
        for name in _texts(tree, "judge"):
            if _same_model(name, judge):
                raise CompareError(
                    f"cell {cell.name}: the judge that reports, {judge}, gave its rewards or labels "
                    f"({name} in {where}); report with another judge"
                )
        splits, named = _texts(tree, "split"), _texts(tree, "personas") | _texts(tree, "persona_id")
        trained_on = {p.id for p in people if p.split in splits or "all" in splits} | (ids & named)
        if trained_on:
            raise CompareError(
                f"cell {cell.name}: trained on {len(trained_on)} of the people that it would be reported on, "
                f"{min(trained_on)} for example ({where})"
            )
    return [f"cell {cell.name}: {note}" for note in notes]


def _learned_from(model: str, notes: list[str]) -> Iterator[tuple[Path, Any]]:
    """Recipes and records that a model was trained with, those of its base included."""
    if known(model):
        return
    run = run_folder(model)
    if run is None:
        notes.append(f"{model} has no recipe.json: what it was trained on is not known")
        return
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    yield run / "recipe.json", recipe
    for name in sorted(text for text in _leaves(recipe) if text.endswith(".jsonl")):
        if not Path(name).is_file():
            notes.append(f"{name}, which it was trained on, is not here: its people and judges are not known")
            continue
        lines = Path(name).read_text(encoding="utf-8").splitlines()
        yield Path(name), [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut short
    for base in (recipe.get("base"), recipe.get("start")):
        if isinstance(base, str) and Path(base).is_dir() and Path(base).resolve() != Path(model).resolve():
            yield from _learned_from(base, notes)


def _leaves(tree: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, (dict, list)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)


def _texts(tree: Any, key: str) -> set[str]:
    """All texts under a key, however deep."""
    if isinstance(tree, list):
        return {text for part in tree for text in _texts(part, key)}
    if not isinstance(tree, dict):
        return set()
    return {t for name, part in tree.items() for t in (_leaves(part) if name == key else _texts(part, key))}


def _same_model(one: str, other: str) -> bool:
    """Whether two specifications name the same model: the same name, or the same weights."""
    names = [re.sub(r"^persona/", "", name) for name in (one, other)]
    if names[0] == names[1]:
        return True
    return all(there(name) for name in names) and weights_of(names[0]) == weights_of(names[1])


# ------------------------------------------------------------------------------------------------------------- results


def write(recipe: Recipe, out: Path, notes: list[str], pictures: bool = False) -> None:
    """Compute everything from the dialogues that there are so far, and write it down.

    Args:
        recipe: What is compared.
        out: The folder with the dialogues.
        notes: For the reader.
        pictures: Draw the pictures and the dialogues side by side too, for the first condition.
    """
    present = [cell for cell in recipe.cells if there(cell.model)]
    played = {title: _played(recipe, title, out) for title in recipe.conditions}
    runs = {cell.name: run for cell in present if (run := run_folder(cell.model)) and not known(cell.model)}
    name = open_role(recipe.judge, "judge").name
    results = Results(
        judge=name,
        judge_worth=worth(name),
        judge_kappa={metric: judge_kappa(name, metric) for metric in METRICS},
        weights={"judge": judge_settings(recipe)["weights"]} | {cell.name: weights_of(cell.model) for cell in present},
        origin=common.origin(),
        trained={cell: _origin_of(run) for cell, run in runs.items()},
        recipe=recipe.model_dump(mode="json"),
        notes=notes,
        conditions={title: compare(cells, recipe.conditions[title].turns) for title, cells in played.items()},
    )
    (out / "results.json").write_text(results.model_dump_json(indent=2) + "\n", encoding="utf-8")
    files = draw(recipe, next(iter(played.values())), runs, out) if pictures else []
    first = next(iter(results.conditions.values()))
    if pictures and any(row.metrics for row in first):
        files.insert(0, write_trade_off(first, out))
    (out / "results.md").write_text(markdown(results, files), encoding="utf-8")


def draw(recipe: Recipe, cells: Sequence[Played], runs: dict[str, Path], out: Path) -> list[str]:
    """Pictures, and the dialogues side by side; returns the names of their files."""
    logs = {cell: run / "log.jsonl" for cell, run in runs.items() if (run / "log.jsonl").is_file()}
    files = write_pictures(cells, logs, out)
    shown = next((cell for cell in cells if cell.name == recipe.side_by_side and cell.records), None)
    if shown:
        base = next(cell for cell in cells if cell.method == BASE)
        (out / "side_by_side.md").write_text(side_by_side(base, shown), encoding="utf-8")
        files.append("side_by_side.md")
    return files


def _played(recipe: Recipe, title: str, out: Path) -> list[Played]:
    condition = recipe.conditions[title]
    wanted = {f"{person.id}/{seed}" for person in people_of(recipe) for seed in condition.seeds}
    cells = []
    for cell in recipe.cells:
        if taken(condition, cell):
            there_are = [r for r in stored(file_of(out, "judged", title, cell)) if r.transcript.id in wanted]
            due = len(wanted) if there(cell.model) else 0
            cells.append(Played(cell.name, cell.method, cell.seed, due, there_are))
    return cells


def _origin_of(run: Path) -> dict[str, Any]:
    file = run / "origin.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def main() -> None:
    """Parse the command line and compare."""
    options = common.parser(__doc__).parse_args()
    with common.plain_errors():
        run(common.load_recipe(Recipe, options.config, options.set), options.out)
    print((options.out / "results.md").read_text(encoding="utf-8"))


def run(recipe: Recipe, out: Path) -> None:
    """Play, judge and tabulate what is missing in `out`.

    Raises:
        CompareError: A cell must not be compared, or what is in `out` was made otherwise.
    """
    people, present = people_of(recipe), [cell for cell in recipe.cells if there(cell.model)]
    notes = [note for cell in present for note in check_cell(cell, recipe.judge, people)]
    if recipe.limit:
        notes.append(f"only {recipe.limit} people were played (`limit`)")
    common.begin(out, recipe)
    write(recipe, out, notes)
    play_cells(recipe, out, lambda: write(recipe, out, notes))
    write(recipe, out, notes, pictures=True)


if __name__ == "__main__":
    main()
