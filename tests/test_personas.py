"""Loading a bank: a user's own, and every way in which one can be broken."""

from pathlib import Path

import pytest
import yaml

from persona_tasks.personas import BANK, BankError, load_bank

GOOD = {
    "id": "kiosk-1",
    "name": "Ann Lee",
    "description": "You are Ann.",
    "facts": [{"attribute": "job", "value": "baker"}],
    "questions": [{"question": "What do you do?", "options": ["a", "b", "c", "d", "e"], "answer": 0, "about": "job"}],
}


def write(folder: Path, *personas: object, scenario: str = "chat", name: str = "mine.yaml", **extra: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(yaml.safe_dump({"scenario": scenario, "personas": list(personas), **extra}))
    return str(folder)


def changed(**values: object) -> dict[str, object]:
    return {**GOOD, **values}


def test_a_folder_of_yaml_is_a_bank_with_our_scenarios(tmp_path):
    bank = load_bank(write(tmp_path / "bank", GOOD))
    assert [p.id for p in bank.select()] == ["kiosk-1"] and bank.select()[0].split == "test"
    assert "therapy" in bank.scenarios and bank.scripts["chat"].test.openings


def test_a_bank_may_bring_its_own_scenario_and_partner(tmp_path):
    root = tmp_path / "bank"
    write(root, scenario="kiosk", name="empty.yaml")
    (root / "empty.yaml").unlink()
    write(root / "personas", GOOD, scenario="kiosk")
    for kind in ("scenarios", "partners"):
        (root / kind).mkdir()
    scenario = yaml.safe_load((BANK / "scenarios" / "chat.yaml").read_text())
    (root / "scenarios" / "kiosk.yaml").write_text(yaml.safe_dump(scenario | {"id": "kiosk"}))
    partner = yaml.safe_load((BANK / "partners" / "chat.yaml").read_text())
    (root / "partners" / "kiosk.yaml").write_text(yaml.safe_dump(partner | {"scenario": "kiosk"}))
    bank = load_bank(str(root))
    assert bank.select("kiosk")[0].id == "kiosk-1" and bank.scripts["kiosk"].train != bank.scripts["chat"].test


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (changed(colour="red"), "colour: Extra inputs"),
        (changed(facts=[]), "facts: Tuple should have at least 1 item"),
        ({k: v for k, v in GOOD.items() if k != "name"}, "name: Field required"),
        (changed(questions=[{**GOOD["questions"][0], "answer": 5}]), "questions.0.answer: Input should be less"),
        (changed(questions=[{**GOOD["questions"][0], "about": "cat"}]), "questions.0.about: 'cat' is neither"),
        (changed(questions=[{**GOOD["questions"][0], "options": list("aabcd")}]), "the five options must differ"),
        (changed(questions=[{**GOOD["questions"][0], "options": list("abcd")}]), "questions.0.options"),
        (changed(traits=[{"name": "x", "behaviour": "y", "guards_against": "joy"}]), "traits.0.guards_against"),
        (changed(id="No Spaces!"), "id: String should match"),
        ("just text", "expected a mapping"),
    ],
)
def test_a_broken_persona_names_file_persona_field_and_reason(tmp_path, entry, says):
    folder = write(tmp_path / "bank", entry)
    with pytest.raises(BankError) as error:
        load_bank(folder)
    assert "mine.yaml: personas.0" in str(error.value) and says in str(error.value)


def test_broken_files(tmp_path):
    cases = {
        "missing": "not a folder",
        write(tmp_path / "a", GOOD, GOOD): "'kiosk-1' occurs twice",
        write(tmp_path / "b", GOOD, scenario="nowhere"): "names scenario 'nowhere'",
        write(tmp_path / "c", GOOD, colour="red"): "unknown field 'colour'",
    }
    (tmp_path / "d").mkdir()
    cases[str(tmp_path / "d")] = "no persona files"
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "x.yaml").write_text("personas: [unclosed")
    cases[str(tmp_path / "e")] = "x.yaml: not readable as YAML"
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x.yaml").write_text("- a list")
    cases[str(tmp_path / "f")] = "x.yaml: expected a mapping with"
    for folder, says in cases.items():
        with pytest.raises(BankError, match=says):
            load_bank(folder)


def test_partner_lines_are_checked(tmp_path):
    folder = Path(write(tmp_path / "bank", GOOD))
    (folder / "partners").mkdir()
    lines = {"openings": ["Hi {nmae}"], "fact_questions": ["a"], "follow_ups": ["b"], "pressure": ["c"]}
    both = {**lines, "openings": ["Hi"]}
    for pools, says in (
        ({"train": lines, "test": both}, "unknown placeholder {nmae}"),
        ({"train": both, "test": both}, "in the train and in the test pool"),
    ):
        (folder / "partners" / "chat.yaml").write_text(yaml.safe_dump({"scenario": "chat", **pools}))
        load_bank.cache_clear()
        with pytest.raises(BankError, match=r"chat\.yaml: .*" + says):
            load_bank(str(folder))


def test_selecting_what_is_not_there():
    bank = load_bank()
    for choice, says in ((("x", "test"), "scenario 'x'"), (("chat", "x"), "split 'x'")):
        with pytest.raises(BankError, match=says):
            bank.select(*choice)
    with pytest.raises(BankError, match="no persona 'x'"):
        bank.persona("x")
