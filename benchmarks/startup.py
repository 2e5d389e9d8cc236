"""How long a user waits for the first line of ``husai --help`` and ``kedro registry list``.

    python benchmarks/startup.py

Each command is measured beside a minimal process, ``python -c pass`` or the import of Kedro's own
command line, in alternating rounds. Times are CPU seconds, minima over the rounds: on an idle
machine they equal wall-clock time, and other work changes them little.
Writes benchmarks/results/startup.md, and exits with code 1 if a limit is exceeded.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "startup.md"
ROUNDS = 7


class Start(NamedTuple):
    """A command, what it is held against, and the processor seconds it may take."""

    name: str
    command: list[str]
    bare_name: str
    bare: list[str]
    limit: float


STARTS = (
    Start("husai --help", ["-m", "husai.cli", "--help"], "python -c pass", ["-c", "pass"], 0.2),
    Start(
        "kedro registry list",
        ["-m", "kedro", "registry", "list"],
        "import kedro.framework.cli",
        ["-c", "import kedro.framework.cli"],
        2.0,
    ),
)


def seconds(arguments: list[str]) -> float:
    """Processor time of one process from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True, timeout=120
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Time all starts, write the table, and say whether all are within their limits."""
    lines = ["| command | seconds | limit | bare process | seconds | ratio |", "|---|" + "---|" * 5]
    late = False
    for one in STARTS:
        rounds = [(seconds(one.command), seconds(one.bare)) for _ in range(ROUNDS)]
        took, bare = (min(column) for column in zip(*rounds, strict=True))
        late |= took > one.limit
        lines.append(
            f"| `{one.name}` | {took:.3f} | {one.limit:g} | `{one.bare_name}` | {bare:.3f} | "
            f"{took / bare:.1f} |"
        )
    RESULT.write_text(
        f"# Starting\n\nProcessor seconds, minima of {ROUNDS} alternating rounds "
        "(`python benchmarks/startup.py`).\n\n" + "\n".join(lines) + "\n"
    )
    print(RESULT.read_text())
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
