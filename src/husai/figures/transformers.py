"""The figure of several transformers: which findings hold for all of them, and which do not."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.figures.style import FONT, GREY, require, styles, tidy

STOPS: Mapping[str, tuple[str, str]] = {
    "early_stop": ("early stop", "o"),
    "cleaned_up": ("cleaned up", "s"),
}
"""When the training of a transformer was stopped: name and marker."""

LEAST_FEATURES = 1.0
"""Kinds with fewer features per SAE than this are not drawn."""


def transformers_figure(groups: pd.DataFrame, kinds: pd.DataFrame, d_sae: int) -> Figure:
    """Draw answers with a feature, and reproducibility, against the number of key frequencies.

    Parameters
    ----------
    groups, kinds
        Of ``benchmarks/transformers_study.py``.
    d_sae
        The width that is drawn.

    Raises
    ------
    InputError
        When a column is missing, or no row has that width.
    """
    groups, kinds = (
        table[table["d_sae"] == d_sae] if "d_sae" in table else table for table in (groups, kinds)
    )
    require(
        groups,
        ["transformer", "stop", "architecture", "effective_frequencies", "answers"],
        "groups",
    )
    require(kinds, ["transformer", "architecture", "kind", "reproducibility"], "kinds")
    look = styles(sorted(set(groups["architecture"])))
    figure = Figure(figsize=(3.3 * (1 + len(look)), 3.2), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(look))
    for (architecture, stop), part in groups.groupby(["architecture", "stop"], sort=True):
        title, mark = STOPS[str(stop)]
        colour = look[str(architecture)][0]
        first.plot(
            part["effective_frequencies"],
            part["answers"],
            mark,
            color=colour,
            mfc="none",
            ms=6,
            label=f"{architecture}, {title}",
        )
    number = float(groups["n_answers"].max())
    first.axhline(number, color=GREY, ls=":", lw=0.9)
    first.set(ylabel=f"answers with a feature, of {number:.0f}\n(d_sae {d_sae})", ylim=(-4, None))
    first.legend(fontsize=FONT - 1, frameon=False, loc="center left")
    axis_of = groups.drop_duplicates("transformer").set_index("transformer")
    for axis, name in zip(others, sorted(look), strict=True):
        _kinds(axis, kinds[kinds["architecture"] == name], axis_of, look[name][0])
        axis.set_title(f"{name}: reproducibility over seeds", fontsize=FONT)
    for axis in (first, *others):
        axis.set_xlabel("effective number of key frequencies")
        tidy(axis)
    return figure


def _kinds(axis: Axes, kinds: pd.DataFrame, by: pd.DataFrame, colour: str) -> None:
    """Draw the mean reproducibility of answer features and of the rest beside the null."""
    kinds = kinds.assign(answer=kinds["kind"] == "answer")
    for (answer, stop), part in kinds.groupby(["answer", "stop"], sort=True):
        weighted = part.assign(_sum=part["reproducibility"] * part["n_features"])
        sums = weighted.groupby("transformer")[["_sum", "n_features"]].sum()
        sums = sums[sums["n_features"] >= LEAST_FEATURES]
        title, mark = STOPS[str(stop)]
        axis.plot(
            by["effective_frequencies"].reindex(sums.index),
            sums["_sum"] / sums["n_features"],
            mark,
            color=colour,
            mfc=colour if answer else "none",
            ms=6,
            label=f"{'answer features' if answer else 'other features'}, {title}",
        )
    null = kinds.groupby("transformer")["null_mean"].mean()
    axis.plot(
        by["effective_frequencies"].reindex(null.index),
        null,
        "_",
        color=GREY,
        ms=12,
        label="permuted null",
    )
    axis.set(ylabel="mean reproducibility of a feature", ylim=(0.5, 1.02))
    axis.legend(fontsize=FONT - 2, frameon=False, loc="lower right", ncols=2)
