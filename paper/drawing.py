"""What the paper's figures share: places, colours, names, and reading a page's tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.figures.style import COLOURS, GREY

__all__ = ["GREY"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
OUT = ROOT / "build" / "paper" / "figures"
WIDTH = 6.9  # of a figure across the page, in inches
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = COLOURS
ARCHITECTURES = {
    "topk": ("TopK", BLUE, "o"),
    "relu": ("ReLU", ORANGE, "s"),
    "batch_topk": ("BatchTopK", GREEN, "^"),
    "jumprelu": ("JumpReLU", PINK, "D"),
    "matryoshka_batch_topk": ("Matryoshka", YELLOW, "v"),
}
KINDS = {
    "answer": ("one answer", BLUE, "o"),
    "answer, several": ("several answers", SKY, "P"),
    "operand": ("one operand", GREEN, "^"),
    "operand, several": ("several operands", PINK, "D"),
    "other": ("none of the labels", ORANGE, "s"),
}


def new(width: float, height: float, *axes: Any, **options: Any) -> tuple[Figure, Any]:
    """Make a figure and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*axes, **options)


def letter(axis: Axes, name: str) -> None:
    """Name a panel in its upper left corner, outside the axes."""
    axis.annotate(
        name,
        (0, 1),
        xytext=(-6, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        weight="bold",
    )


def short_group(group: str) -> str:
    """Name a setting for an axis: ``topk d256 k4`` becomes TopK 256."""
    words = group.split(" ")
    name = f"{ARCHITECTURES[words[0]][0]} {words[1].removeprefix('d')}"
    return f"{name}, untrained" if words[-1] == "untrained" else name


def page_table(path: Path, *header: str) -> pd.DataFrame:
    """Read the table of a Markdown page whose header row begins with these cells."""
    lines = path.read_text(encoding="utf-8").split("\n")

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip().strip("|").split("|")]

    first = next(i for i, line in enumerate(lines) if tuple(cells(line)[: len(header)]) == header)
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    names = cells(lines[first])
    counted = [
        f"{n} {names[:i].count(n) + 1}" if n in names[:i] else n for i, n in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=counted)


def estimate(cell: str) -> tuple[float, float, float]:
    """Read ``0.889 [0.870, 0.909]``."""
    value, low, high = map(float, re.findall(r"-?[\d.]+", cell))
    return value, low, high
