"""Make the pictures of the documentation; they are illustrations, of dialogues that no model held.

    python docs/pictures.py        # needs Chromium and the development packages

Lines and reasons are those of the calibration set, put together by chance with a rising share of contradictions.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
sys.path.insert(0, str(ROOT))  # for the tests' dialogues and browser

from persona_tasks.report import frames, plots  # noqa: E402
from persona_tasks.report.write import write_report  # noqa: E402
from persona_tasks.scoring import summarise  # noqa: E402
from persona_tasks.transcript import append_jsonl  # noqa: E402
from tests.browser import chromium, open_page  # noqa: E402
from tests.dialogues import dialogues  # noqa: E402

SHARES = {"simulator A": 0.6, "simulator B": 0.2}


def main() -> None:
    """Write drift.png, report.png and reader.png."""
    records = {name: dialogues(name, drift=share) for name, share in SHARES.items()}
    summaries = {name: summarise(held) for name, held in records.items()}
    curves = frames.drift_frame(summaries)
    chosen = curves[(curves["metric"] == "prompt_to_line") & curves["scenario"].isin(["all", "education", "therapy"])]
    plots.drift_curves(chosen).savefig(PICTURES / "drift.png", dpi=110)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dialogues.jsonl"
        append_jsonl(file, [record for held in records.values() for record in held])
        page = write_report([file], Path(folder) / "report.html", title="Two simulators", command="docs/pictures.py")[0]
        photograph(page)


def photograph(file: Path) -> None:
    """The report as a browser shows it."""
    with chromium() as browser:
        page = open_page(browser, file, (1200, 1600))
        page.screenshot(path=PICTURES / "report.png")
        page.select_option("#metric", "line_to_line")
        page.set_viewport_size({"width": 1200, "height": 760})
        page.locator("button.row").nth(36).press("Enter")
        page.wait_for_timeout(300)  # smooth scrolling
        page.screenshot(path=PICTURES / "reader.png")


if __name__ == "__main__":
    main()
