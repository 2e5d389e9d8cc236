"""The figure of agreement between seeds over training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from husai.figures.style import (
    COLOURS,
    FONT,
    GREY,
    LINES,
    not_available,
    outside_legend,
    styles,
    tidy,
    unconverged_gate,
)


def training_figure(trajectories: pd.DataFrame, *, max_columns: int = 5) -> Figure:
    """Draw PW-MCC and cosine to the initialisation over training; a column for each width.

    Parameters
    ----------
    trajectories
        Of :func:`husai.consistency.study.tables.trajectory_table`.
    max_columns
        Most widths to show; the narrowest and the widest are always among them.
    """
    if "step" not in trajectories or trajectories["step"].isna().all():
        given = trajectories["reason"].dropna() if "reason" in trajectories else ()
        reasons = [str(reason) for reason in given]
        return not_available("; ".join(dict.fromkeys(reasons)) or "no trajectory")
    known = trajectories[trajectories["step"].notna() & trajectories["mean"].notna()]
    widths = sorted(set(known["d_sae"]))
    if len(widths) > max_columns:
        at = np.linspace(0, len(widths) - 1, max_columns).round().astype(int)
        widths = [widths[i] for i in at]
    # one colour for a setting at all widths
    known = known.assign(
        setting=[
            re.sub(rf" d{int(width)}\b", "", str(group))
            for group, width in zip(known["group"], known["d_sae"], strict=True)
        ]
    )
    look = styles(list(dict.fromkeys(known["setting"])))
    strokes = {name: LINES[i // len(COLOURS) % len(LINES)] for i, name in enumerate(look)}
    figure = Figure(figsize=(max(4.4, 2.5 * len(widths) + 0.6), 4.6), layout="constrained")
    axes = figure.subplots(2, len(widths), squeeze=False, sharey="row", sharex=True)
    any_open = False
    for column, width in enumerate(widths):
        part = known[known["d_sae"] == width]
        for setting, own in part.groupby("setting", sort=False):
            colour, marker = look[str(setting)]
            hollow = any(unconverged_gate(v) for v in own["converged"])
            any_open |= hollow
            own = own.sort_values("step")
            stroke = strokes[str(setting)]
            _trajectory(axes[:, column], own, colour, marker, stroke, hollow)
            if "permuted_mean" in own and own["permuted_mean"].notna().any():
                level, last = float(own["permuted_mean"].mean()), float(own["step"].max())
                axes[0, column].plot([0.8 * last, last], [level] * 2, "--", color=colour, lw=1.2)
        if "isotropic_mean" in part and part["isotropic_mean"].notna().any():
            level = float(part["isotropic_mean"].mean())
            axes[0, column].axhline(level, color="black", ls=":", lw=0.9)
        axes[0, column].set(title=f"d_sae = {int(width)}", ylim=(0, 1.02))
        axes[1, column].set(xlabel="training step", ylim=(0, 1.02))
        for axis in axes[:, column]:
            axis.set_xlim(left=0)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            tidy(axis)
    axes[0, 0].set_ylabel("PW-MCC between seeds", size=FONT)
    axes[1, 0].set_ylabel("|cosine| to initialisation", size=FONT)
    handles = [
        Line2D([], [], color=c, marker=m, ls=strokes[n], label=n) for n, (c, m) in look.items()
    ]
    handles += [
        Line2D([], [], color=GREY, ls="--", lw=1.2, label="permuted null (in the group's colour)"),
        Line2D([], [], color="black", ls=":", lw=0.9, label="isotropic null"),
    ]
    if any_open:
        handles.append(
            Line2D([], [], color=GREY, marker="o", mfc="white", ls="", label="† not converged")
        )
    outside_legend(figure, handles, columns=4)
    return figure


def _trajectory(
    axes: Sequence[Axes] | NDArray[Any],
    table: pd.DataFrame,
    colour: str,
    marker: str,
    stroke: str,
    hollow: bool,
) -> None:
    step = table["step"].to_numpy(dtype=np.float64)
    face = "white" if hollow else colour
    look: dict[str, Any] = {"marker": marker, "ms": 3.5, "color": colour, "mfc": face, "lw": 1}
    axes[0].plot(step, table["mean"], stroke, **look)
    if table["low"].notna().any():
        low, high = (table[name].to_numpy(dtype=np.float64) for name in ("low", "high"))
        axes[0].fill_between(step, low, high, color=colour, alpha=0.15, lw=0)
    if "cosine_to_init" in table:
        axes[1].plot(step, table["cosine_to_init"], stroke, **look)
