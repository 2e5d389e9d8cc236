"""What all figures share: palette, markers, axes, names of scores and nulls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from husai.consistency.scores.registry import SCORES
from husai.errors import InputError

logger = logging.getLogger(__name__)

# Okabe and Ito's palette: distinct for any colour vision; markers distinguish lines in grey print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
GREY = "#666666"
FONT = 8.0
# One hue from light to dark: it keeps its order in grey print and for every colour vision.
SEQUENTIAL = "cividis"
DIVERGING = "PuOr_r"

# the names of a plan's groups begin with architecture and width
_NAME = r"^(\S+) d(\d+)"

# The permuted null, the one to base claims on, has the strongest colour.
NULLS = {
    "permuted": ("permuted null", "_", "#000000"),
    "isotropic": ("isotropic null", "_", "#AAAAAA"),
    "data_aware": ("data-aware reference", "x", "#BBBBBB"),
}


def score_name(score: str, signed: bool) -> str:
    """Name a score for an axis, with its sign convention."""
    return f"{SCORES[score].term} ({'signed' if signed else 'absolute'})"


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Give each name a colour and a marker of its own."""
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def group_order(table: pd.DataFrame) -> list[str]:
    """Order groups for a figure: the architecture with most widths first, from narrow to wide.

    Parameters
    ----------
    table
        ``group``; ``architecture`` and ``d_sae``, or else a group's name begins with them.
    """
    known = table.drop_duplicates("group")
    if not {"architecture", "d_sae"} <= set(known):
        named = known["group"].astype(str).str.extract(_NAME)
        known = known.assign(architecture=named[0], d_sae=named[1].astype(float))
    widths = known.groupby("architecture")["d_sae"].transform("nunique")
    by = ["_n", "architecture", "d_sae"]
    return [str(n) for n in known.assign(_n=-widths).sort_values(by, kind="stable")["group"]]


def unconverged_gate(value: Any) -> bool:
    """Whether an SAE is known not to be converged."""
    return value is not None and not pd.isna(value) and not bool(value)


def tidy(axis: Axes) -> None:
    """Remove the top and right edges, and set the font sizes."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=FONT)
    axis.xaxis.label.set_fontsize(FONT)
    axis.yaxis.label.set_fontsize(FONT)
    axis.title.set_fontsize(FONT + 1)


def plain_log(axis: Axes, which: Literal["x", "y"] = "x") -> None:
    """Give a logarithmic axis plain numbers, few enough to read."""
    if which == "x":
        axis.set_xscale("log")
        low, high = axis.get_xlim()
    else:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
    ticks = axis.xaxis if which == "x" else axis.yaxis
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks.set_major_locator(LogLocator(10, subs=steps, numticks=6))
    ticks.set_minor_locator(NullLocator())
    ticks.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def require(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Refuse a table without rows or without the columns that a figure draws."""
    missing = [column for column in columns if column not in table.columns]
    if missing or table.empty:
        raise InputError(f"{name}: {f'columns {missing} are missing' if missing else 'no row'}")


def outside_legend(
    figure: Figure,
    handles: Sequence[Artist] | None = None,
    *,
    columns: int = 3,
    side: Literal["lower", "upper"] = "lower",
    title: str | None = None,
) -> None:
    """Draw one legend below or above all axes; without handles, of the labels in the axes."""
    given: dict[str, Any] = {"loc": f"outside {side} center"}
    if handles is not None:
        given["handles"] = handles
    figure.legend(
        **given,
        ncols=columns,
        fontsize=FONT - 1,
        frameon=False,
        title=title,
        title_fontsize=FONT - 1,
    )


def dagger_note(figure: Figure) -> None:
    """Explain the dagger below a figure."""
    figure.supxlabel(
        "† SAEs not converged: longer training may change what is shown", size=FONT - 1
    )


def not_available(why: str) -> Figure:
    """Give a figure that says why there is nothing to draw."""
    figure = Figure(figsize=(4.8, 0.8), layout="constrained")
    figure.text(0.5, 0.5, why, ha="center", va="center", size=FONT + 1)
    return figure


def drawn_or_reason(draw: Callable[[], Figure]) -> Figure:
    """Draw a figure, or one that says why there is nothing to draw: one seed, no latent fires."""
    try:
        return draw()
    except InputError as error:
        logger.warning("nothing to draw: %s", error)
        return not_available(str(error))
