"""The study's main picture: the reproducibility of every feature, by what it stands for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from husai.consistency.study.labels import leading_kind, plural
from husai.errors import InputError
from husai.figures.style import (
    COLOURS,
    FONT,
    GREY,
    dagger_note,
    group_order,
    outside_legend,
    require,
    tidy,
    unconverged_gate,
)

_MOST_POINTS = 1500


def kinds_figure(features: pd.DataFrame, kinds: pd.DataFrame) -> Figure:
    """Draw the reproducibility of every feature: one kind, all others, and the permuted null.

    Parameters
    ----------
    features, kinds
        Of a report, of one hook; ``features`` with ``kind``.

    Raises
    ------
    InputError
        When no group has two seeds and labels.
    """
    require(kinds, ["group", "kind", "reproducibility", "null_q05", "null_q95"], "kinds")
    require(features, ["group", "space", "kind", "reproducibility"], "features")
    chosen = features[(features["space"] == "full") & features["reproducibility"].notna()]
    lead = leading_kind(kinds)
    if chosen.empty or lead is None:
        raise InputError("kinds: no label explains a feature, so there are no kinds to draw")
    names = group_order(kinds)
    figure = Figure(figsize=(max(4.6, 1.15 * len(names) + 1.6), 4.2), layout="constrained")
    axis = figure.subplots()
    rng = np.random.default_rng(0)
    any_open = False
    labels = []
    for x, name in enumerate(names):
        part, own = chosen[chosen["group"] == name], kinds[kinds["group"] == name]
        first = own.iloc[0]
        if pd.notna(first["null_q05"]):
            axis.fill_between(
                [x - 0.45, x + 0.45],
                first["null_q05"],
                first["null_q95"],
                color=GREY,
                alpha=0.25,
                lw=0,
                zorder=0,
            )
        for side, mine in ((-0.2, part["kind"] == lead), (0.2, part["kind"] != lead)):
            values = part.loc[mine, "reproducibility"].to_numpy(dtype=np.float64)
            if not len(values):
                continue
            colour = COLOURS[0] if side < 0 else COLOURS[1]
            shown = values
            if len(shown) > _MOST_POINTS:
                shown = rng.choice(shown, _MOST_POINTS, replace=False)
            axis.plot(
                x + side + rng.uniform(-0.15, 0.15, len(shown)),
                shown,
                ".",
                ms=2,
                alpha=0.35,
                color=colour,
                rasterized=True,
            )
            mean = float(values.mean())
            axis.plot([x + side - 0.17, x + side + 0.17], [mean, mean], color="black", lw=1.4)
            axis.text(
                x + side,
                1.035,
                f"{mean:.2f}",
                color=colour,
                ha="center",
                va="bottom",
                fontsize=FONT - 1,
                fontweight="bold",
            )
        share = float((part["kind"] == lead).mean())
        hollow = any(unconverged_gate(flag) for flag in own["converged"])
        any_open |= hollow
        kind = str(first["architecture"])
        setting = f"{kind}\n{name.removeprefix(kind).strip()}{' †' if hollow else ''}"
        labels.append(f"{setting}\n{share:.0%} {plural(lead)}")
    axis.set_xticks(range(len(names)), labels)
    axis.set(
        ylim=(0, 1.12),
        xlim=(-0.6, len(names) - 0.4),
        ylabel="reproducibility of a feature\n(mean similarity to its partners in other seeds)",
    )
    axis.set_yticks(np.linspace(0, 1, 6))
    tidy(axis)
    outside_legend(
        figure,
        [
            Line2D(
                [],
                [],
                color=COLOURS[0],
                marker="o",
                ms=4,
                ls="",
                label=f"features that stand for one {lead}",
            ),
            Line2D([], [], color=COLOURS[1], marker="o", ms=4, ls="", label="all other features"),
            Line2D([], [], color="black", lw=1.4, label="mean"),
            Patch(color=GREY, alpha=0.25, label="chance: the middle 90 % of permuted features"),
        ],
        columns=2,
        side="upper",
    )
    if any_open:
        dagger_note(figure)
    return figure
