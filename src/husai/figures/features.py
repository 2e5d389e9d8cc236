"""Figures of single features: how two dictionaries match, and which features come back."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike, NDArray

from husai.errors import InputError
from husai.figures.style import (
    COLOURS,
    FONT,
    GREY,
    dagger_note,
    group_order,
    outside_legend,
    plain_log,
    require,
    tidy,
    unconverged_gate,
)
from husai.matching.match import unit_rows
from husai.matching.result import Match


def similarity_figure(
    A: ArrayLike,
    B: ArrayLike,
    match: Match,
    *,
    names: tuple[str, str] = ("A", "B"),
    unconverged: bool = False,
) -> Figure:
    """Draw how similar the matched features of two dictionaries are, best pairs first.

    If the line is high and the dots lie below it, the features have one clear partner; if the dots
    reach the line, another feature fits as well as the partner.

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]`` dictionaries.
    match
        Their match.
    names
        Of the two SAEs.
    unconverged
        Whether one of the two is not converged.
    """
    order = np.argsort(-match.similarity, kind="stable")
    rows, columns = match.a_index[order], match.b_index[order]
    other = _best_other(unit_rows(A, "A"), unit_rows(B, "B"), rows, columns, signed=match.signed)
    kind = "cosine" if match.signed else "|cosine|"
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axis = figure.subplots()
    at = np.arange(1, len(order) + 1)
    if np.isfinite(other).all():
        axis.plot(
            at, other, ".", ms=2.5, color=COLOURS[1], label=f"best other feature of {names[1]}"
        )
    axis.plot(at, match.similarity[order], color=COLOURS[0], label=f"its partner in {names[1]}")
    axis.axhline(
        match.mean, color=GREY, ls="--", lw=0.9, label=f"mean of partners {match.mean:.2f}"
    )
    lowest = min(0.0, float(match.similarity.min(initial=0.0)))
    axis.set(
        xlabel=f"features of {names[0]}, ordered by similarity to their partner",
        ylabel=f"{kind} with a feature of {names[0]}",
        ylim=(lowest, 1.03),
    )
    axis.legend(fontsize=FONT - 1, frameon=False, loc="lower left")
    tidy(axis)
    if unconverged:
        dagger_note(figure)
    return figure


def _best_other(
    A: NDArray[np.float64],
    B: NDArray[np.float64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    *,
    signed: bool,
) -> NDArray[np.float64]:
    """Highest similarity of each feature to a feature other than its partner, block by block."""
    found = np.full(len(rows), -np.inf)
    for start in range(0, len(rows), 1024):
        own = slice(start, start + 1024)
        cosine = A[rows[own]] @ B.T
        cosine = cosine if signed else np.abs(cosine)
        cosine[np.arange(len(cosine)), columns[own]] = -np.inf
        found[own] = cosine.max(axis=1)
    return found


def reproducibility_figure(
    features: pd.DataFrame,
    *,
    space: str = "full",
    threshold: float = 0.7,
    max_points: int = 4000,
    lead: str | None = None,
) -> Figure:
    """Draw the reproducibility of each feature against how often it fires.

    Parameters
    ----------
    features
        ``features`` of a report, with ``firing_rate``.
    space
        Which space.
    threshold
        Drawn as a line: above it a feature counts as found.
    max_points
        Points drawn for a group; median and quartiles use all features.
    lead
        Kind of feature that has a colour of its own, if ``features`` has kinds.
    """
    require(features, ["group", "space", "firing_rate", "reproducibility"], "features")
    chosen = features[(features["space"] == space) & features["reproducibility"].notna()]
    if chosen.empty:
        raise InputError(
            f"features: no feature in space {space!r} was compared with another seed; train at "
            "least two seeds"
        )
    names = group_order(chosen)
    columns = min(3 if len(names) <= 9 else 5, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(2.2 * columns + 0.6, 2.0 * lines + 0.7), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    rate = chosen["firing_rate"].to_numpy(dtype=np.float64)
    floor = rate[rate > 0].min(initial=1.0) / 3
    any_open = False
    for axis, name in zip(axes.ravel(), names, strict=False):
        part = chosen[chosen["group"] == name]
        hollow = "converged" in part and any(unconverged_gate(v) for v in part["converged"])
        any_open |= hollow
        drawn = part.sample(min(len(part), max_points), random_state=0)
        for colour, cloud in _clouds(drawn, lead):
            x = np.maximum(cloud["firing_rate"].to_numpy(dtype=np.float64), floor)
            axis.plot(
                x, cloud["reproducibility"], ".", ms=2, alpha=0.35, color=colour, rasterized=True
            )
        _strata(axis, part, floor)
        axis.axhline(threshold, color=GREY, lw=0.8, ls="--")
        axis.set(xscale="log", title=name + (" †" if hollow else ""), ylim=(0, 1.03))
        tidy(axis)
        axis.title.set_fontsize(FONT)
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    if (rate <= 0).any():
        # features that never fire are drawn in a column of their own
        axes[0, 0].set_xticks([floor, *_decades(floor, rate.max())])
        axes[0, 0].set_xticklabels(["never", *(f"{x:g}" for x in _decades(floor, rate.max()))])
    else:
        plain_log(axes[0, 0])
    axes[0, 0].xaxis.set_minor_locator(NullLocator())
    figure.supxlabel(
        "firing rate (share of rows)" + ("\n† SAEs not converged" if any_open else ""),
        size=FONT,
    )
    figure.supylabel("reproducibility: mean similarity to partners in other seeds", size=FONT)
    handles = [
        Line2D([], [], color="black", marker="o", ms=3, lw=1.6, label="median and quartiles"),
        Line2D([], [], color=GREY, ls="--", label=f"found at {threshold:g} or above"),
    ]
    if lead is not None and "kind" in chosen:
        for colour, label in (
            (COLOURS[0], f"features that stand for one {lead}"),
            (COLOURS[1], "all other features"),
        ):
            handles.append(Line2D([], [], color=colour, marker="o", ms=4, ls="", label=label))
    outside_legend(figure, handles, columns=2, side="upper")
    return figure


def _clouds(part: pd.DataFrame, lead: str | None) -> list[tuple[str, pd.DataFrame]]:
    """Split the points by colour: features of the leading kind, and all others."""
    if lead is None or "kind" not in part:
        return [(COLOURS[5], part)]
    own = part["kind"] == lead
    return [(COLOURS[1], part[~own]), (COLOURS[0], part[own])]


def _decades(floor: float, highest: float) -> list[float]:
    """Give the powers of ten above the column of features that never fire."""
    first = int(np.ceil(np.log10(8 * floor)))
    return [10.0**n for n in range(first, int(np.ceil(np.log10(highest))) + 1)]


def _strata(axis: Axes, part: pd.DataFrame, floor: float) -> None:
    """Draw median and quartiles for each third of a decade of firing rate, and for silent ones."""
    rate = np.maximum(part["firing_rate"].to_numpy(dtype=np.float64), floor)
    y = part["reproducibility"].to_numpy(dtype=np.float64)
    stratum = np.where(rate > floor, np.floor(3 * np.log10(rate)), -np.inf)
    for one in np.unique(stratum):
        own = stratum == one
        if own.sum() < 3:
            continue
        low, middle, high = np.quantile(y[own], [0.25, 0.5, 0.75])
        x = float(np.exp(np.log(rate[own]).mean()))
        axis.plot([x, x], [low, high], color="black", lw=1.6)
        axis.plot(x, middle, "o", ms=4, color="black", mec="white", mew=0.5)


def reliability_figure(table: pd.DataFrame) -> Figure:
    """Draw a reliability diagram: how often a new seed has features, by predicted probability.

    Parameters
    ----------
    table
        From :func:`husai.features.reliability`.

    Raises
    ------
    InputError
        When it is empty: fewer than four SAEs.
    """
    if table.empty:
        raise InputError("reliability: this needs at least four SAEs; train more seeds")
    require(table, ["predicted", "happened", "n", "brier", "brier_of_base_rate"], "reliability")
    figure = Figure(figsize=(3.8, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--", label="calibrated")
    size = 10 + 150 * table["n"] / table["n"].max()
    axis.plot(table["predicted"], table["happened"], color=COLOURS[0], lw=0.8)
    axis.scatter(table["predicted"], table["happened"], s=size, color=COLOURS[0], alpha=0.7)
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("predicted probability that a new seed has the feature")
    axis.set_ylabel("share of these features that it has")
    first = table.iloc[0]
    axis.set_title(
        f"Brier score {first['brier']:.3f}; of the base rate: "
        f"{first['brier_of_base_rate']:.3f}\n(area of a point: number of features)",
        fontsize=FONT,
    )
    axis.legend(fontsize=FONT, frameon=False, loc="upper left")
    tidy(axis)
    return figure


def widths_figure(shares: pd.DataFrame) -> Figure:
    """Draw what one or a few latents of another SAE explain, by the widths of the two.

    Parameters
    ----------
    shares
        From :class:`husai.campaign.feature_groups.GroupTables`.
    """
    require(shares, ["measure", "from", "to", "verdict", "share", "low", "high"], "shares")
    measures = [("codes", "activations"), ("decoder", "directions")]
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    for axis, (measure, title) in zip(figure.subplots(1, 2), measures, strict=True):
        part = shares[shares["measure"] == measure]
        pairs = list(dict.fromkeys(zip(part["from"], part["to"], strict=True)))
        left = np.zeros(len(pairs))
        at = np.arange(len(pairs))[::-1]
        for verdict, colour in zip(dict.fromkeys(part["verdict"]), _SHADES, strict=False):
            own = part[part["verdict"] == verdict].set_index(["from", "to"]).loc[pairs]
            axis.barh(at, own["share"], left=left, color=colour, label=verdict, height=0.75)
            left = left + own["share"].to_numpy()
            if verdict == part["verdict"].iloc[0]:
                ends = [own["share"] - own["low"], own["high"] - own["share"]]
                axis.errorbar(
                    own["share"],
                    at,
                    xerr=np.array(ends, dtype=float),
                    fmt="none",
                    color="black",
                    capsize=2,
                    lw=0.8,
                )
        axis.set_yticks(at, [f"{a} in {b}" for a, b in pairs], fontsize=FONT)
        axis.set(xlim=(0, 1), xlabel=f"share of the latents, by their {title}")
        axis.legend(
            fontsize=FONT, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0)
        )
        tidy(axis)
    return figure


_SHADES = (COLOURS[0], COLOURS[1], COLOURS[4], "#DDDDDD")
