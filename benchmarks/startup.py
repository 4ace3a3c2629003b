"""How long `persona-tasks --help` and `import persona_tasks` take: the median of seven fresh processes, in seconds.

python benchmarks/startup.py
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 7


def main() -> None:
    """Measure and print."""
    script = shutil.which("persona-tasks", path=str(Path(sys.executable).parent))
    if script is None:
        sys.exit("persona-tasks is not installed beside this python; run `make setup` first")
    for command in ([script, "--help"], [sys.executable, "-c", "import persona_tasks"], [sys.executable, "-c", "pass"]):
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        label = " ".join([Path(command[0]).name, *command[1:]])
        print(f"{statistics.median(times):6.3f} s  {label}")


if __name__ == "__main__":
    main()
