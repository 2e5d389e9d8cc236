"""Figures of the consensus dictionary: what it keeps, whether it recurs, what new seeds have."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai.figures.style import COLOURS, FONT, GREY, require, styles, tidy

_MEASURES = {
    "variance_kept": "variance kept",
    "loss_recovered": "loss recovered",
    "probe_accuracy": "accuracy of a probe",
}


def consensus_figure(worth: pd.DataFrame, recurrence: pd.DataFrame) -> Figure:
    """Draw what dictionaries keep by their number of latents, and whether the consensus recurs.

    Parameters
    ----------
    worth
        From :func:`husai.campaign.features.worth_summary`.
    recurrence
        From :func:`husai.features.consensus_recurrence`; empty below six seeds.
    """
    require(worth, ["min_share", "dictionary", "n_latents", "variance_kept"], "worth")
    shown = [name for name in _MEASURES if name in worth]
    if worth["min_share"].nunique() == 1:
        return _one_size(worth, recurrence, shown)
    n = len(shown) + (not recurrence.empty)
    figure = Figure(figsize=(2.7 * n, 3.3), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    looks = styles(list(worth["dictionary"]))
    for axis, measure in zip(axes, shown, strict=False):
        for name, part in worth.groupby("dictionary", sort=False):
            colour, marker = looks[str(name)]
            own = part.sort_values("n_latents")
            axis.errorbar(
                own["n_latents"],
                own[measure],
                yerr=_reach(own, measure),
                color=colour,
                marker=marker,
                ms=4,
                lw=1,
                capsize=2,
                label=str(name),
            )
        axis.set(xlabel="latents", ylabel=_MEASURES[measure])
        tidy(axis)
    if not recurrence.empty:
        _recurrence(axes[-1], recurrence)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=3, fontsize=FONT, frameon=False
    )
    return figure


def _one_size(worth: pd.DataFrame, recurrence: pd.DataFrame, shown: list[str]) -> Figure:
    """Dictionaries below one another where the consensus has one size only."""
    n = len(shown) + (not recurrence.empty)
    figure = Figure(figsize=(2.6 * n + 1.4, 2.4), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    table = worth.iloc[::-1].reset_index(drop=True)
    labels = [
        f"{name}\n({latents:.0f} latents)"
        for name, latents in zip(table["dictionary"], table["n_latents"], strict=True)
    ]
    for axis, measure in zip(axes, shown, strict=False):
        axis.errorbar(
            table[measure],
            range(len(table)),
            xerr=_reach(table, measure),
            fmt="o",
            ms=4,
            color=COLOURS[0],
            capsize=3,
        )
        axis.set_yticks(range(len(table)), labels if axis is axes[0] else [], fontsize=FONT)
        axis.set(xlabel=_MEASURES[measure], ylim=(-0.5, len(table) - 0.5))
        tidy(axis)
    if not recurrence.empty:
        _recurrence(axes[-1], recurrence)
    return figure


def _reach(table: pd.DataFrame, measure: str) -> np.ndarray:
    """Lengths ``[2, n]`` of the bars below and above; 0 where there is no interval."""
    ends = [
        table[measure] - table[f"{measure}_low"].astype(float),
        table[f"{measure}_high"].astype(float) - table[measure],
    ]
    return np.nan_to_num(np.array(ends, dtype=np.float64)).clip(min=0)


def _recurrence(axis: Axes, table: pd.DataFrame) -> None:
    """Agreement of two halves of the seeds, a line for each of what is compared."""
    names = list(table["between"])[::-1]
    for at, name in enumerate(names):
        own = table[table["between"] == name]
        colour = GREY if "null" in name else COLOURS[0]
        axis.errorbar(
            own["pw_mcc"], [at], xerr=_reach(own, "pw_mcc"), color=colour, marker="o", capsize=3
        )
    axis.set_yticks(range(len(names)), [_lines(name) for name in names], fontsize=FONT)
    axis.set(xlim=(0, 1.02), ylim=(-0.5, len(names) - 0.5), xlabel="PW-MCC of two halves of seeds")
    tidy(axis)


def _lines(name: str) -> str:
    return name.replace(" of one", "\nof one").replace("permuted ", "permuted\n")


def calibration_figure(table: pd.DataFrame) -> Figure:
    """Draw how often new seeds had a feature, against the probability predicted from known ones.

    Parameters
    ----------
    table
        From :func:`husai.features.new_seed_calibration`.
    """
    require(table, ["threshold", "predicted", "happened", "brier"], "calibration")
    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--")
    looks = styles([f"{one:g}" for one in table["threshold"]])
    for threshold, part in table.groupby("threshold"):
        colour, marker = looks[f"{threshold:g}"]
        first = part.iloc[0]
        label = (
            f"|cosine| ≥ {threshold:g}: Brier {first['brier']:.3f} "
            f"(base rate {first['brier_of_base_rate']:.3f})"
        )
        size = 6 + 90 * part["n"] / table["n"].max()
        axis.plot(part["predicted"], part["happened"], color=colour, lw=0.8)
        axis.scatter(
            part["predicted"],
            part["happened"],
            s=size,
            color=colour,
            marker=marker,
            alpha=0.7,
            label=label,
        )
    axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axis.set_xlabel("predicted probability that a new seed has the feature")
    axis.set_ylabel("share of new seeds that have it")
    axis.legend(fontsize=FONT - 1, frameon=False, loc="upper left")
    tidy(axis)
    return figure
