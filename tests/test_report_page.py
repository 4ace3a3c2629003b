"""The report in a real browser: what it shows, by mouse and by keyboard, on a desk and on a phone."""

import pytest

from persona_tasks.report.html import render
from persona_tasks.report.runs import Material, Run
from persona_tasks.report.write import write_report
from persona_tasks.scoring import summarise
from persona_tasks.transcript import Judged, Probe, Transcript, Turn, Verdict, append_jsonl
from tests.browser import DESK, PHONE, chromium, needs_browser, open_page, serious_faults
from tests.dialogues import dialogues

pytestmark = needs_browser
LONG = 1_000_000
HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</textarea></script><img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b[0m \x07 \u202eesrever",
    "{{ 7 * 7 }} &lt;b&gt; ]]> --> ${1}",
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    append_jsonl(folder / "base.jsonl", dialogues("base", drift=0.6))
    append_jsonl(folder / "tuned.jsonl", dialogues("tuned", drift=0.1))
    return write_report([folder / "base.jsonl", folder / "tuned.jsonl"], folder / "report.html")[0]


def rows(page):
    return page.locator("button.row:visible")


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_no_serious_fault_of_accessibility_and_nothing_wider_than_the_screen(browser, report, size, scheme):
    page = open_page(browser, report, size, scheme)
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    rows(page).first.click()
    page.locator("details.questions summary").first.click()
    assert serious_faults(page) == []
    assert page.problems == []


def test_scenario_search_and_first_contradiction_narrow_the_rows(browser, report):
    page = open_page(browser, report)
    records = dialogues("base", drift=0.6) + dialogues("tuned", drift=0.1)
    assert rows(page).count() == len(records) == 80
    page.locator("#scenarios label", has_text="therapy").click()
    assert rows(page).count() == 20
    assert page.locator(".scenario:visible").count() == 1
    page.locator("#scenarios label", has_text="all").click()

    def first(record):
        return min((v.turn for v in record.of("prompt_to_line") if v.outcome == "contradicts"), default=None)

    page.select_option("#first", "3")
    assert rows(page).count() == sum(first(record) == 3 for record in records) > 0
    page.select_option("#first", "never")
    assert rows(page).count() == sum(first(record) is None for record in records) > 0
    page.select_option("#first", "")
    word = records[0].transcript.lines[0].split(".")[0].upper()
    page.fill("#text", word)
    told = [r.transcript.model_dump_json().lower() + " ".join(v.reason.lower() for v in r.verdicts) for r in records]
    assert rows(page).count() == sum(word.lower() in text for text in told) > 0
    page.fill("#text", "no such words anywhere")
    assert rows(page).count() == 0 and page.locator("#count").inner_text() == "0 of 80 dialogues"


def test_dialogues_are_found_by_the_drift_they_show(browser, report):
    page = open_page(browser, report)
    records = dialogues("base", drift=0.6) + dialogues("tuned", drift=0.1)

    def shows(record, drift):
        own = {v.drift for v in record.of("prompt_to_line") if v.outcome == "contradicts"}
        against = any(v.outcome == "contradicts" for v in record.of("line_to_line"))
        return drift in own or (drift == "self_contradiction" and against)

    for drift in ("helper_voice", "fact_contradiction", "self_contradiction"):
        page.select_option("#drift", drift)
        count = sum(shows(record, drift) for record in records)
        assert rows(page).count() == count and 0 < count < 80
        assert page.locator(f"#drift option[value={drift}]").inner_text() == f"{drift.replace('_', ' ')} ({count})"
    page.select_option("#drift", "helper_voice")
    rows(page).first.click()
    assert page.locator(".verdict.x", has_text="contradicts the persona: helper voice").count() >= 1


def test_a_judge_that_names_no_drift_gives_no_filter_by_it(browser, tmp_path):
    records = dialogues("base", drift=0.6)[:2]
    for record in records:
        record.verdicts = [v.model_copy(update={"drift": None}) for v in record.of("prompt_to_line")]
    append_jsonl(tmp_path / "base.jsonl", records)
    page = open_page(browser, write_report([tmp_path / "base.jsonl"], tmp_path / "report.html")[0])
    assert rows(page).count() == 2 and not page.locator("#drift").is_visible()


def test_a_click_on_a_cell_opens_the_dialogue_at_that_turn(browser, report):
    page = open_page(browser, report)
    page.select_option("#first", "5")
    row = rows(page).first
    box = row.locator(".strip").bounding_box()
    row.locator(".strip").click(position={"x": box["width"] * 4.5 / 8, "y": box["height"] / 2})
    assert page.locator("#reader-title").inner_text() == row.locator(".who").inner_text()
    here = page.locator(".turn.here")
    assert here.get_attribute("id") == "turn-5"
    assert "contradicts the persona" in here.inner_text()


def test_the_reader_shows_verdicts_reasons_arcs_answers_and_persona(browser, report):
    page = open_page(browser, report)
    records = dialogues("base", drift=0.6)
    number, record = next((n, r) for n, r in enumerate(records) if any(v.conflicts for v in r.verdicts))
    page.goto(f"{report.as_uri()}#dialogue-{number + 1}")
    page.reload()
    page.wait_for_selector("#reader[open]")
    for place, turn in enumerate(record.transcript.turns, start=1):
        shown = page.locator(f"#turn-{place}").inner_text()
        assert turn.line in shown and turn.partner in shown
    for verdict in record.of("prompt_to_line"):
        assert verdict.reason in page.locator(f"#turn-{verdict.turn}").inner_text()
    conflicts = [v for v in record.of("line_to_line") if v.outcome == "contradicts"]
    assert page.locator("#arcs path").count() == sum(len(v.conflicts) for v in conflicts)
    page.locator(f"#turn-{conflicts[0].turn} a").first.click()
    assert page.locator(".turn.here").get_attribute("id") == f"turn-{conflicts[0].conflicts[0]}"
    right = [v for v in record.of("qa") if v.turn == 4 and v.outcome == "consistent"]
    assert f"Questions after turn 4: {len(right)} of 8 right" in page.locator("#turn-4").inner_text()
    assert record.transcript.persona_text.splitlines()[0] in page.locator("#persona").inner_text()


def test_everything_works_by_keyboard(browser, report):
    page = open_page(browser, report)
    page.focus("#text")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "row":
            break
    names = rows(page).locator(".who").all_inner_texts()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#reader-title").inner_text() == names[1]
    page.keyboard.press("ArrowRight")
    assert page.locator("#reader-title").inner_text() == names[2]
    page.keyboard.press("Escape")
    assert not page.locator("#reader").is_visible()
    page.wait_for_function("name => document.activeElement.querySelector('.who')?.textContent === name", arg=names[2])


def test_hostile_text_shows_as_text(browser, tmp_path):
    turns = [Turn(partner=text, line=text) for text in HOSTILE] + [Turn(partner="", line="a" * LONG)]
    record = Judged(
        transcript=Transcript(
            id=HOSTILE[0],
            persona_id=HOSTILE[1],
            persona_text=HOSTILE[1],
            scenario=HOSTILE[0],
            turns=turns,
            probes=[Probe(turn=1, question=0, mode="open", answer=HOSTILE[1])],
            metadata={"questions": [HOSTILE[1]]},
            model=HOSTILE[1],
        ),
        verdicts=[
            *(Verdict(metric="prompt_to_line", turn=n, outcome="contradicts", reason=HOSTILE[1]) for n in range(1, 6)),
            Verdict(metric="qa", turn=1, probe=0, outcome="contradicts", reason=HOSTILE[1]),
        ],
        judge=HOSTILE[0],
    )
    append_jsonl(tmp_path / "hostile.jsonl", [record])
    file = write_report([tmp_path / "hostile.jsonl"], tmp_path / "report.html", command=HOSTILE[1])[0]
    assert file.stat().st_size < 500_000
    page = open_page(browser, file)
    rows(page).first.click()
    said = page.locator(".said").all_inner_texts()
    assert said[0] == HOSTILE[0] and said[1] == HOSTILE[1] and said[3] == HOSTILE[3]
    assert said[2] == "␛[31mred␛[0m ␇ ⟨U+202E⟩esrever"
    assert said[4].startswith("a" * 1000) and said[4].endswith("(980,000 more characters in the file)")
    assert page.title() == "Persona drift" and page.locator("img, textarea").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == DESK[0]
    assert page.problems == []


def test_five_hundred_long_dialogues_load_and_filter_without_delay(browser, tmp_path):
    records = dialogues("base", drift=0.3, turns=30, repeats=50, scenario="therapy")
    file = tmp_path / "report.html"
    file.write_text(render(Material([Run("base", "hand", records)]), {"base": summarise(records, 20)}, "Many", ""))
    page = open_page(browser, file)
    ready = page.evaluate("performance.now()")
    timed = """async ([selector, value, event]) => {
        const control = document.querySelector(selector), start = performance.now();
        control.value = value;
        control.dispatchEvent(new Event(event));
        await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
        return performance.now() - start;
    }"""
    search = page.evaluate(timed, ["#text", "the", "input"])
    metric = page.evaluate(timed, ["#metric", "line_to_line", "change"])
    first = page.evaluate(timed, ["#first", "2", "change"])
    assert 0 < rows(page).count() < 500
    # Measured on two busy cores, all texts different (6 MB): 1.2 s to load, 130 ms for the first search, 65 to 120 ms
    # to change the metric. The bounds leave room for a busier machine.
    assert ready < 6000 and max(search, metric, first) < 1000, (ready, search, metric, first)
