"""`persona-tasks lm-eval ARGS...`: lm-eval's own command line, which also finds our tasks where they are not installed
beside its own (an editable lm-eval, for example)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from persona_tasks.lm_eval_tasks import TASKS


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Run `lm_eval` with these arguments."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    sys.argv = ["lm_eval", *arguments]  # the harness reads, and changes, this
    harness = HarnessCLI()
    parsed = harness.parse_args()
    if hasattr(parsed, "include_path") or "include_path" in vars(parsed):
        parsed.include_path = include_paths(parsed.include_path)
    harness.execute(parsed)


def include_paths(given: str | None) -> list[str] | None:
    """The user's path, and ours if lm-eval does not find our tasks by itself."""
    paths = [*([given] if given else []), *([] if installed() else [str(TASKS)])]
    return paths or None


def installed() -> bool:
    """Whether our tasks lie beside lm-eval's own, where it finds them without a flag."""
    import lm_eval.tasks

    return (Path(lm_eval.tasks.__file__).parent / "persona_drift" / "persona_drift.yaml").is_file()
