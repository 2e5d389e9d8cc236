"""The figure of a language model's study: the share of features that other seeds have."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from husai.figures.style import COLOURS, FONT, LINES, group_order, require, styles, tidy

DRAWN = 10
"""Features an SAE that a class must have to be drawn: the share of fewer says little."""


def language_figure(
    by_density: pd.DataFrame,
    by_probe: pd.DataFrame,
    untrained: Collection[str] = (),
    *,
    least: float = DRAWN,
) -> Figure:
    """Draw the share of features that every other seed has, by density and by choice of probes.

    Parameters
    ----------
    by_density, by_probe
        Tables of :mod:`husai.reporting.language_page`, with a row for each group and class.
    untrained
        Groups of a model at new initial weights, which are drawn dashed and hollow.
    least
        Features an SAE that a class of ``by_density`` must have to be drawn.

    Raises
    ------
    InputError
        When a column or every row is missing.
    """
    columns = ["group", "everywhere", "everywhere_low", "everywhere_high"]
    require(by_density, [*columns, "density", "features"], "by_density")
    require(by_probe, [*columns, "kind"], "by_probe")
    by_density = by_density[by_density["features"] >= least]
    names = group_order(by_density)
    names = [n for n in names if n not in untrained] + [n for n in names if n in untrained]
    kinds = [name.split(" ")[0] for name in names]
    look = styles(kinds)
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    classes = sorted(set(by_density["density"]), key=lambda one: float(one.split(" ")[0]))
    for number, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        colour, marker = look[kind]
        part = by_density[by_density["group"] == name].set_index("density").reindex(classes)
        left.errorbar(
            np.arange(len(classes)) + (number - (len(names) - 1) / 2) * 0.05,
            part["everywhere"],
            yerr=_ends(part),
            color=colour,
            marker=marker,
            mfc="none" if name in untrained else colour,
            ls=LINES[kinds[:number].count(kind) % len(LINES)],
            ms=4,
            lw=1,
            elinewidth=0.8,
            label=name,
        )
    left.set_xticks(range(len(classes)), [str(one).replace(" to ", "\nto ") for one in classes])
    left.set(
        xlabel="share of tokens on which a feature fires",
        ylabel="share of features in every other seed",
    )
    left.set_ylim(-0.02, 1.02)
    left.legend(fontsize=FONT - 1.5, frameon=False, loc="upper left")
    probed = set(by_probe["group"])
    _probes(right, by_probe, [name for name in names if name in probed])
    for axis in (left, right):
        tidy(axis)
    return figure


def _ends(part: pd.DataFrame) -> NDArray[np.float64]:
    """Return the lengths of intervals on either side ``[2, n]``, as matplotlib needs them."""
    middle, low, high = (part[f"everywhere{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    return np.clip([middle - low, high - middle], 0, None)


def _probes(axis: Axes, by_probe: pd.DataFrame, names: Sequence[str]) -> None:
    kinds = list(dict.fromkeys(by_probe["kind"]))
    for number, kind in enumerate(kinds):
        part = by_probe[by_probe["kind"] == kind].set_index("group").reindex(list(names))
        y = np.arange(len(names)) + (number - (len(kinds) - 1) / 2) * 0.22
        axis.errorbar(
            part["everywhere"],
            y,
            xerr=_ends(part),
            fmt="o^s"[number % 3],
            color=COLOURS[number],
            ms=4,
            lw=0.8,
            label=kind,
        )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="share of features in every other seed", xlim=(-0.02, 1.02))
    axis.legend(fontsize=FONT - 1.5, frameon=False, loc="lower right")
