"""Count the source by room, before and after: `python benchmarks/source_lines.py BEFORE [AFTER]`.

BEFORE and AFTER are commits (HEAD by default). Lines of Python, with docstrings and blank ones, and
of templates. Writes benchmarks/results/source_lines.md.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SUBJECTS = {
    "activations": ("activations",),
    "calibration, with its pipeline": ("calibration", "pipelines/planted_truth"),
    "campaign": ("campaign",),
    "consistency, matching, compare": ("consistency", "matching", "compare"),
    "features": ("features", "pipelines/consensus", "pipelines/feature"),
    "figures": ("figures",),
    "language models and text": ("language", "text", "pipelines/language"),
    "pipelines, the others": ("pipelines",),
    "reporting": ("reporting", "report.py"),
    "sae: CUDA": ("sae/gpu", "sae/engines/cuda.py"),
    "sae: files of other projects": ("sae/formats",),
    "sae: kernels": ("sae/kernels",),
    "sae: the rest": ("sae",),
    "tasks": ("tasks",),
    "tracking": ("tracking", "recording.py", "served"),
    "transformer": ("transformer",),
    "hooks and datasets": ("hooks", "datasets", "checks.py", "plain_errors.py"),
    "commands": ("commands", "cli.py"),
}
"""Parts of paths below src/husai; the longest that fits counts."""


def count(commit: str) -> Counter[str]:
    """Count the lines of each subject at a commit."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout

    starts = [(start, subject) for subject, parts in SUBJECTS.items() for start in parts]
    found: Counter[str] = Counter()
    for path in git("ls-tree", "-r", "--name-only", commit, "src/husai").splitlines():
        if not path.endswith((".py", ".pyi", ".j2")):
            continue
        below = path.removeprefix("src/husai/")
        fits = [(len(start), subject) for start, subject in starts if below.startswith(start)]
        subject = max(fits)[1] if fits else "what all share"
        found[subject] += len(git("show", f"{commit}:{path}").splitlines())
    return found


def main() -> None:
    """Count, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    options = parser.parse_args()
    before, after = count(options.before), count(options.after)
    lines = ["| subject | before | after | change |", "|---|---:|---:|---:|"]
    for subject in sorted({*before, *after}):
        old, new = before[subject], after[subject]
        lines.append(f"| {subject} | {old:,} | {new:,} | {new - old:+,} |")
    old, new = before.total(), after.total()
    lines.append(f"| all | {old:,} | {new:,} | {new - old:+,} |")
    head = f"# Lines of source by subject, {options.before} and later\n"
    text = "\n".join([head, *lines]) + "\n"
    (ROOT / "benchmarks" / "results" / "source_lines.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
