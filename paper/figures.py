"""Draw the figures of the paper, the slides and the poster from committed results.

    python paper/figures.py            # build/paper/figures/*.svg

Every number drawn is read from ``docs/results`` or ``benchmarks/results``. Text becomes outlines,
so that no font is needed where the documents are compiled.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "paper" / "figures"


def main() -> None:
    """Draw every figure."""
    OUT.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
